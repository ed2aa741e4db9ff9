"""What clients and containers do to a tree: uploads, removals, commits. All inside a transaction."""

from __future__ import annotations

from collections.abc import Sequence

from homeport.kernel.errors import AlreadyExistsError, InvalidError, NotFoundError
from homeport.link.volumes import DIRECTORY, FILE, VolumeCommit, VolumeEntry
from homeport.volumes.model import NewFile, ancestors
from homeport.volumes.tree import Tree


def upload(tree: Tree, files: Sequence[NewFile], *, overwrite: bool, now: float) -> None:
    """Set all ``files``, or raise ``AlreadyExistsError`` or ``InvalidError`` and set none."""
    wanted = {file.path: file for file in files}
    above = ancestors(wanted)
    inner = sorted(above & wanted.keys())
    if inner:
        raise InvalidError(f"{inner[0]!r} cannot be a file and a directory at once")
    for path, entry in sorted(tree.get_many(wanted).items()):
        if entry.kind == DIRECTORY:
            raise AlreadyExistsError(f"/{path} is a directory and is not replaced by a file")
        if not overwrite:
            raise AlreadyExistsError(f"/{path} already exists; upload with force to replace it")
    for path, entry in sorted(tree.get_many(above).items()):
        if entry.kind != DIRECTORY:
            raise AlreadyExistsError(f"/{path} is a file, so nothing can be uploaded below it")
    tree.make_directories(above, now)
    tree.put(
        VolumeEntry(file.path, FILE, file.size, file.mode & 0o7777, now, file.hashes)
        for file in wanted.values()
    )


def remove(tree: Tree, path: str, *, recursive: bool, now: float) -> None:
    """Remove a file, or with ``recursive`` a directory. Raises as ``upload`` and ``NotFound``."""
    entry = tree.get(path)
    if entry is None:
        raise NotFoundError(f"there is no file or directory {path!r} in the volume")
    if entry.kind == DIRECTORY and not recursive:
        raise InvalidError(f"{path!r} is a directory, which is only removed with recursive")
    tree.remove(path, now)


def commit(tree: Tree, changes: VolumeCommit, now: float) -> None:
    """Take over what a container changed: for each path the last commit counts.

    What stands in the way of a new path (a file where it needs a directory, or the reverse) was
    set before and so makes room.
    """
    for path in changes.trees:
        tree.remove_as_of(path, changes.base, now)
    removed = tree.get_many(changes.removed)
    # what is inside comes first, so that empty directories go
    for path in sorted(removed, key=lambda path: path.count("/"), reverse=True):
        if removed[path].kind != DIRECTORY or not tree.has_children(path):
            tree.remove(path, now)
    wanted = {entry.path: entry for entry in changes.entries}
    above = ancestors(wanted)
    for path, entry in tree.get_many(above).items():
        if entry.kind != DIRECTORY:
            tree.remove(path, now)
    there = tree.get_many(wanted)
    for path, entry in wanted.items():
        existing = there.get(path)
        if existing is not None and existing.kind == DIRECTORY != entry.kind:
            tree.remove(path, now)
    tree.make_directories(above - wanted.keys(), now)
    tree.put(entry for path, entry in wanted.items() if not _is_same(there.get(path), entry))


def _is_same(existing: VolumeEntry | None, entry: VolumeEntry) -> bool:
    """Whether a directory is there as it should be: it need not become newer."""
    return (
        existing is not None
        and existing.kind == entry.kind == DIRECTORY
        and existing.mode == entry.mode
    )


def make_directory(tree: Tree, path: str, now: float) -> None:
    """Make a directory with all above it. Raises ``AlreadyExistsError`` if a file is in the way."""
    wanted = {path, *ancestors([path])}
    for name, entry in tree.get_many(wanted).items():
        if entry.kind != DIRECTORY:
            raise AlreadyExistsError(f"/{name} in the volume is a file, not a directory")
    tree.make_directories(wanted, now)
