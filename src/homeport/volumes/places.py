"""Where in a container volumes, directories and buckets may be mounted. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Sequence
from typing import Final

from homeport.kernel.errors import InvalidError

SYSTEM_PATHS: Final = frozenset({"/", "/__modal", "/dev", "/etc", "/proc", "/sys"})
"""What no container can run without."""


def place(path: str) -> str:
    """The absolute path that a client's ``mount_path`` means."""
    return posixpath.normpath("/" + path.lstrip("/"))


def check_places(paths: Sequence[str], taken: Collection[str] = SYSTEM_PATHS) -> None:
    """Raise ``InvalidError`` for places where nothing can be mounted: ``taken``, or in another."""
    for number, path in enumerate(paths):
        others = [*paths[:number], *paths[number + 1 :]]
        if path in others or any(path.startswith(other + "/") for other in others):
            raise InvalidError(
                f"a volume cannot be mounted at {path}, inside or in place of another one"
            )
        if path in taken or path.startswith(("/proc/", "/sys/", "/__modal/")):
            raise InvalidError(f"a volume cannot be mounted at {path}")
