"""What a container changed in a volume: read from the upper directory of its overlay.

The container runs meanwhile and may be hostile: everything is opened relative to the upper
directory, and symbolic links in it never lead out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from homeport.link.volumes import DIRECTORY, FILE, GONE, SYMLINK
from homeport.node.runtime import linux
from homeport.node.volumes.stacked import has, is_whiteout, merged, walk

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_OPAQUE: Final = "trusted.overlay.opaque"
_REDIRECT: Final = "trusted.overlay.redirect"

_GONE: Final = (GONE,)
_Lowers = Callable[[], list[Path]]
"""The lower layers of a directory, topmost first; looked for when they are needed."""

Mark = tuple[int, ...]
"""Tells whether something changed since it was committed: kind, mode, inode, size, times."""


@dataclass(frozen=True, slots=True)
class Found:
    """Something that is at ``path``. ``lower`` is where its content is if not in the upper."""

    path: str
    kind: int
    mode: int
    size: int
    mtime: float
    target: str = ""
    lower: Path | None = None


@dataclass(slots=True)
class Difference:
    """What changed since ``known``.

    ``trees`` were removed from what the container was given, ``removed`` are single paths that it
    had set itself. ``marks`` is what there is now.
    """

    found: list[Found] = field(default_factory=list[Found])
    trees: list[str] = field(default_factory=list[str])
    removed: list[str] = field(default_factory=list[str])
    marks: dict[str, Mark] = field(default_factory=dict[str, Mark])

    def __bool__(self) -> bool:
        return bool(self.found or self.trees or self.removed)


def difference(upper: Path, lowers: Sequence[Path], known: dict[str, Mark]) -> Difference:
    """What differs in ``upper`` from what ``known`` says was committed. Blocks.

    ``lowers`` are the layers below it, topmost first.
    """
    root = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _Scan(root, lowers, known).run()
    finally:
        os.close(root)


@contextmanager
def opened(upper: Path, found: Found) -> Generator[int]:
    """A descriptor for reading a file that was found. Raises ``OSError`` if it is gone."""
    if found.lower is not None:
        descriptor = os.open(found.lower, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    else:
        root = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = linux.open_in_root(root, found.path, flags)
        finally:
            os.close(root)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def mark_of(info: os.stat_result, kind: int) -> Mark:
    """How a file or directory is recognised as the same later on."""
    mode = stat.S_IMODE(info.st_mode)
    if kind == DIRECTORY:  # its times change with what is in it
        return (kind, mode, info.st_ino)
    return (kind, mode, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


class _Scan:
    def __init__(self, root: int, lowers: Sequence[Path], known: dict[str, Mark]) -> None:
        self._root = root
        self._lowers = lowers
        self._known = known
        self._result = Difference()

    def run(self) -> Difference:
        self._directory("", lambda: list(self._lowers), is_new=False)
        live = self._result.marks
        for path, mark in self._known.items():
            if mark[0] != GONE and live.get(path, _GONE)[0] == GONE:
                self._result.removed.append(path)
        return self._result

    def _directory(self, path: str, lowers: _Lowers, *, is_new: bool) -> None:
        """Look at a directory of the upper; ``lowers`` are those merged with it.

        ``is_new``: it was renamed, so what is in the lower ones is new at this place.
        """
        try:
            descriptor = linux.open_in_root(
                self._root, path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            )
        except OSError:  # it is gone, or no directory any more
            return
        try:
            names = os.listdir(descriptor)
            for name in names:
                try:
                    info = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    self._entry(join(path, name), name, info, descriptor, lowers, is_new)
                except (FileNotFoundError, NotADirectoryError):
                    continue
        finally:
            os.close(descriptor)
        if is_new:
            for relative, source, info in walk(lowers(), names):
                self._brought(join(path, relative), source, info)

    def _entry(
        self,
        path: str,
        name: str,
        info: os.stat_result,
        parent: int,
        lowers: _Lowers,
        is_new: bool,
    ) -> None:
        if not _can_be_kept(path):
            return
        if stat.S_ISDIR(info.st_mode):
            self._subdirectory(path, name, info, parent, lowers, is_new)
        elif stat.S_ISREG(info.st_mode):
            self._note(path, info, FILE)
        elif stat.S_ISLNK(info.st_mode):
            self._note(path, info, SYMLINK, os.readlink(name, dir_fd=parent))
        elif is_whiteout(info):
            self._result.marks[path] = _GONE
            if self._known.get(path) != _GONE:
                self._result.trees.append(path)
        else:
            log.debug("a special file is not kept in a volume", path=path)

    def _subdirectory(
        self,
        path: str,
        name: str,
        info: os.stat_result,
        parent: int,
        lowers: _Lowers,
        is_new: bool,
    ) -> None:
        descriptor = os.open(
            name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent
        )
        try:
            is_opaque = _attribute(descriptor, _OPAQUE) == b"y"
            redirect = _attribute(descriptor, _REDIRECT)
        finally:
            os.close(descriptor)
        mark = (*mark_of(info, DIRECTORY), is_opaque, hash(redirect))
        if (is_opaque or redirect) and self._known.get(path) != mark and has(lowers(), name):
            self._result.trees.append(path)  # it replaces what was here
        self._note(path, info, DIRECTORY, mark=mark)
        if redirect:
            self._directory(path, lambda: _redirected(redirect, self._lowers, lowers), is_new=True)
        elif is_opaque:
            self._directory(path, list, is_new=False)
        else:
            self._directory(path, lambda: merged(lowers(), name), is_new=is_new)

    def _brought(self, path: str, source: Path, info: os.stat_result) -> None:
        """Something of a lower layer that a renamed directory brought to ``path``."""
        if not _can_be_kept(path):
            return
        if stat.S_ISDIR(info.st_mode):
            self._note(path, info, DIRECTORY)
        elif stat.S_ISLNK(info.st_mode):
            self._note(path, info, SYMLINK, os.readlink(source))
        else:
            self._note(path, info, FILE, lower=source)

    def _note(
        self,
        path: str,
        info: os.stat_result,
        kind: int,
        target: str = "",
        lower: Path | None = None,
        mark: Mark | None = None,
    ) -> None:
        mark = mark or mark_of(info, kind)
        self._result.marks[path] = mark
        if self._known.get(path) == mark:
            return
        mode = stat.S_IMODE(info.st_mode)
        size = info.st_size if kind == FILE else 0
        self._result.found.append(Found(path, kind, mode, size, info.st_mtime, target, lower))


def join(directory: str, name: str) -> str:
    """The path of ``name`` in ``directory``; the root is the empty string."""
    return f"{directory}/{name}" if directory else name


def _redirected(redirect: bytes, top: Sequence[Path], siblings: _Lowers) -> list[Path]:
    """The lower directories that a renamed directory was."""
    text = os.fsdecode(redirect)
    directories = list(top) if text.startswith("/") else siblings()
    for part in text.strip("/").split("/"):
        directories = merged(directories, part)
    return directories


def _attribute(descriptor: int, name: str) -> bytes:
    try:
        return os.getxattr(descriptor, name)
    except OSError:
        return b""


def _can_be_kept(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        log.warning("a file whose name is no UTF-8 is not kept in a volume", path=repr(path))
        return False
    return True
