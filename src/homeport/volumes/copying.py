"""Copying inside a volume, with the rules of UNIX ``cp``. Contents are shared, not copied."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from homeport.kernel.errors import InvalidError, NotFoundError
from homeport.link.volumes import DIRECTORY, VolumeEntry
from homeport.volumes.model import is_inside, join, normalised, split
from homeport.volumes.tree import Tree


def copy(tree: Tree, sources: Sequence[str], target: str, *, recursive: bool, now: float) -> None:
    """Copy ``sources`` to ``target``.

    Raises ``InvalidError`` for what ``cp`` refuses, ``NotFoundError`` for a missing path.
    """
    if not sources:
        raise InvalidError("name at least one path to copy")
    destination = normalised(target)
    found = tree.get(destination)
    is_directory = found is not None and found.kind == DIRECTORY
    if not is_directory and (len(sources) > 1 or target.endswith("/")):
        raise InvalidError(f"the target {target!r} is not a directory")
    for source in sources:
        path = normalised(source)
        entry = tree.get(path)
        if entry is None:
            raise NotFoundError(f"cannot copy {source!r}: there is no such file or directory")
        if entry.kind == DIRECTORY and not recursive:
            raise InvalidError(f"{source!r} is a directory, which is only copied with recursive")
        into = join(destination, split(path)[1]) if is_directory else destination
        if entry.kind == DIRECTORY:
            _copy_directory(tree, entry, into, now)
        else:
            _copy_file(tree, entry, into, now)


def _copy_file(tree: Tree, entry: VolumeEntry, into: str, now: float) -> None:
    if into == entry.path:
        raise InvalidError(f"{entry.path!r} cannot be copied to itself")
    found = tree.get(into)
    if found is not None and found.kind == DIRECTORY:
        raise InvalidError(f"the directory {into!r} cannot be replaced by a file")
    _require_parent(tree, into)
    tree.put([_moved(entry, into, now)])


def _copy_directory(tree: Tree, entry: VolumeEntry, into: str, now: float) -> None:
    if is_inside(into, entry.path):
        where = entry.path or "/"
        raise InvalidError(f"the directory {where!r} cannot be copied into itself")
    found = tree.get(into)
    if found is not None and found.kind != DIRECTORY:
        raise InvalidError(f"the file {into!r} cannot be replaced by a directory")
    _require_parent(tree, into)
    copies = [
        _moved(below, into + below.path[len(entry.path) :], now)
        for below in tree.descendants(entry.path)
    ]
    there = tree.get_many(copied.path for copied in copies)
    for copied in copies:
        existing = there.get(copied.path)
        if existing is not None and (existing.kind == DIRECTORY) != (copied.kind == DIRECTORY):
            raise InvalidError(f"{copied.path!r} cannot be replaced: one of the two is a directory")
    if found is None:
        copies.insert(0, _moved(entry, into, now))
    tree.put(copies)


def _require_parent(tree: Tree, path: str) -> None:
    parent = split(path)[0]
    found = tree.get(parent)
    if found is None:
        raise NotFoundError(f"cannot copy to {path!r}: there is no directory {parent!r}")
    if found.kind != DIRECTORY:
        raise InvalidError(f"cannot copy to {path!r}: {parent!r} is not a directory")


def _moved(entry: VolumeEntry, path: str, now: float) -> VolumeEntry:
    return msgspec.structs.replace(entry, path=path, mtime=now)
