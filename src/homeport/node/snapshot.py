"""What a container wrote, made into a layer of an image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from homeport.node.builder.merged import MergedView
from homeport.node.layers import remove_tree

PLATFORM_PATHS = ("__modal", "pkg")
"""Top directories that belong to the platform, not to the image."""


def clean(upper: Path, image: Sequence[Path], mounts: Iterable[Path]) -> None:
    """Take out of ``upper`` what only belongs to this run: the platform's own files, and bytecode
    of mounted sources (the next mount may have other sources of the same name, size and time).
    """
    for name in PLATFORM_PATHS:
        remove_tree(upper / name)
    view = MergedView(image)
    for mount in mounts:
        for folder, _, _ in os.walk(mount):
            relative = Path(folder).relative_to(mount)
            cache = upper / relative / "__pycache__"
            if cache.is_dir() and view.find(f"/{relative}/__pycache__") is None:
                remove_tree(cache)
