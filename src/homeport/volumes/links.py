"""Symbolic links in a volume, followed as long as they stay in it."""

from __future__ import annotations

from typing import Final

from homeport.link.volumes import SYMLINK, VolumeEntry
from homeport.volumes.model import split
from homeport.volumes.tree import Tree

_LINKS_MAX: Final = 40
"""Symbolic links followed for one path, as Linux does."""


def follow(tree: Tree, path: str) -> VolumeEntry | None:
    """What is at ``path`` behind symbolic links that stay in the volume."""
    for _ in range(_LINKS_MAX):
        entry = tree.get(path)
        if entry is not None and entry.kind != SYMLINK:
            return entry
        link = entry or _link_above(tree, path)
        if link is None or link.target.startswith("/"):
            return None
        resolved = _resolved(split(link.path)[0], link.target, path[len(link.path) + 1 :])
        if resolved is None:
            return None
        path = resolved
    return None


def _link_above(tree: Tree, path: str) -> VolumeEntry | None:
    parent = split(path)[0]
    while parent:
        entry = tree.get(parent)
        if entry is not None:
            return entry if entry.kind == SYMLINK else None
        parent = split(parent)[0]
    return None


def _resolved(folder: str, target: str, rest: str) -> str | None:
    """``target`` and ``rest`` seen from ``folder``; ``None`` if that leads out of the volume."""
    parts = folder.split("/") if folder else []
    for part in f"{target}/{rest}".split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)
