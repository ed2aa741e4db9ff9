"""Layers of one tree, read as an overlay shows them. Layers are given topmost first."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


def merged(directories: Sequence[Path], name: str) -> list[Path]:
    """The directories called ``name`` in these layers of one directory that show through."""
    found: list[Path] = []
    for directory in directories:
        path = directory / name
        try:
            info = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISDIR(info.st_mode):
            break
        found.append(path)
    return found


def has(directories: Sequence[Path], name: str) -> bool:
    """Whether these layers of one directory have anything of that name."""
    for directory in directories:
        try:
            return not is_whiteout(os.lstat(directory / name))
        except (FileNotFoundError, NotADirectoryError):
            continue
    return False


def has_path(layers: Sequence[Path], path: str) -> bool:
    """Whether anything shows at ``path``."""
    *parents, name = path.split("/")
    directories = list(layers)
    for parent in parents:
        directories = merged(directories, parent)
    return has(directories, name)


def walk(
    directories: Sequence[Path], without: Iterable[str] = ()
) -> Iterator[tuple[str, Path, os.stat_result]]:
    """Everything in merged layers of one directory, but for the names ``without``.

    Gives the path relative to it, where it is and its state; directories before their contents.
    """
    seen = set(without)
    for directory in directories:
        for name in sorted(os.listdir(directory)):
            if name in seen:
                continue
            seen.add(name)
            info = os.lstat(directory / name)
            if is_whiteout(info):
                continue
            yield name, directory / name, info
            if stat.S_ISDIR(info.st_mode):
                for relative, path, below in walk(merged(directories, name)):
                    yield f"{name}/{relative}", path, below


def is_whiteout(info: os.stat_result) -> bool:
    """Whether it says that nothing is there, whatever lower layers have."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0
