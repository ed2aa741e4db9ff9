"""The directory of one network file system, as the server reads and changes it.

Containers write to the same directory at the same time, symbolic links included, so every path
is opened below its root (``kernel.confined``). All functions block: call them off the event loop.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from homeport.kernel.confined import open_in_root
from homeport.kernel.errors import ExhaustedError, InvalidError, NotFoundError
from homeport.nfs.model import Entry, EntryKind, Glob, is_pattern, normalised

_COPY_BYTES: Final = 1 << 20
_FILE_MODE: Final = 0o644
_DIRECTORY_MODE: Final = 0o755


class SharedTree:
    """``root`` exists; ``incoming`` is a directory on the same disk for files being written."""

    def __init__(self, root: Path, incoming: Path, *, fsync: bool) -> None:
        self._root = root
        self._incoming = incoming
        self._fsync = fsync

    @contextlib.contextmanager
    def _opened(self) -> Generator[int]:
        try:
            fd = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundError("the network file system was deleted") from None
        try:
            yield fd
        finally:
            os.close(fd)

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    def open(self, path: str) -> BinaryIO:
        """The file at ``path``, symbolic links followed.

        Raises ``NotFoundError``; ``InvalidError`` for what is no regular file.
        """
        with self._opened() as root, _told(path):
            fd = open_in_root(root, normalised(path) or ".", os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise InvalidError(f"{path!r} is not a file")
        return os.fdopen(fd, "rb")

    def list(self, path: str) -> list[Entry]:
        """What ``path`` names, as clients expect it.

        A directory: what is in it, by name. A file: itself, by its path. A pattern: all that
        matches, by path. Raises ``NotFoundError``.
        """
        with self._opened() as root, _told(path):
            if is_pattern(path):
                wanted = Glob(path)
                return sorted(entry for entry in _walk(root) if wanted.matches(entry.path))
            name = normalised(path)
            fd = open_in_root(root, name or ".", os.O_PATH)
            try:
                info = os.fstat(fd)
                if not stat.S_ISDIR(info.st_mode):
                    return [_entry(name, info)]
                fd, closing = open_in_root(root, name or ".", os.O_RDONLY | os.O_DIRECTORY), fd
                os.close(closing)
                return sorted(_scan(fd))
            finally:
                os.close(fd)

    # ── changes ─────────────────────────────────────────────────────────────────────────────

    def write(self, path: str, source: BinaryIO) -> None:
        """Put a file with what ``source`` holds at ``path``, at once, with the directories above.

        Raises ``InvalidError`` if a directory is there, or a file where a directory must be;
        ``ExhaustedError`` without room on the disk.
        """
        parent, _, name = path.rpartition("/")
        incoming = self._incoming / secrets.token_hex(16)
        try:
            with _told(path):
                with incoming.open("xb") as file:
                    os.fchmod(file.fileno(), _FILE_MODE)
                    shutil.copyfileobj(source, file, _COPY_BYTES)
                    file.flush()
                    if self._fsync:
                        os.fsync(file.fileno())
                with self._opened() as root:
                    directory = _make_directory(root, parent)
                    try:
                        os.rename(incoming, name, dst_dir_fd=directory)
                        if self._fsync:
                            os.fsync(directory)
                    finally:
                        os.close(directory)
        finally:
            incoming.unlink(missing_ok=True)

    def remove(self, path: str, *, recursive: bool, missing_ok: bool) -> None:
        """Remove a file, a link or, if ``recursive``, a directory with all in it.

        Raises ``NotFoundError`` unless ``missing_ok``; ``InvalidError`` for a directory that is
        not to be removed recursively, and for the root.
        """
        wanted = normalised(path)
        if not wanted:
            raise InvalidError("the root cannot be removed; delete the network file system instead")
        parent, _, name = wanted.rpartition("/")
        try:
            with self._opened() as root, _told(path):
                directory = open_in_root(root, parent or ".", os.O_RDONLY | os.O_DIRECTORY)
                try:
                    self._remove(directory, name, path, recursive)
                finally:
                    os.close(directory)
        except NotFoundError:
            if not missing_ok:
                raise

    def _remove(self, directory: int, name: str, path: str, recursive: bool) -> None:
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISDIR(info.st_mode):
            os.unlink(name, dir_fd=directory)
        elif recursive:
            shutil.rmtree(name, dir_fd=directory)
        else:
            raise InvalidError(f"{path!r} is a directory; pass recursive=True to remove it")


@contextlib.contextmanager
def _told(path: str) -> Generator[None]:
    """``OSError`` as what the caller can do about it."""
    try:
        yield
    except FileNotFoundError:
        raise NotFoundError(f"there is nothing at {path!r} in the network file system") from None
    except IsADirectoryError:
        raise InvalidError(f"{path!r} is a directory") from None
    except (NotADirectoryError, FileExistsError):
        raise InvalidError(f"{path!r} leads through something that is not a directory") from None
    except OSError as error:
        kind = ExhaustedError if error.errno in _FULL else InvalidError
        raise kind(f"{path!r}: {os.strerror(error.errno or 0)}") from None


_FULL: Final = (28, 122)
"""ENOSPC, EDQUOT."""


def _make_directory(root: int, path: str) -> int:
    """A descriptor of the directory ``path``, made with those above it if missing."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    try:
        return open_in_root(root, path or ".", flags)
    except FileNotFoundError:
        parent, _, name = path.rpartition("/")
    above = _make_directory(root, parent)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, _DIRECTORY_MODE, dir_fd=above)
    finally:
        os.close(above)
    return open_in_root(root, path, flags)


def _scan(directory: int) -> Iterator[Entry]:
    """What is in a directory, by name."""
    with os.scandir(directory) as found:
        for item in found:
            with contextlib.suppress(FileNotFoundError):  # removed while we look
                yield _entry(item.name, item.stat(follow_symlinks=False))


def _walk(root: int) -> Iterator[Entry]:
    """Everything, in no order; links are not followed."""
    for path, directories, files, fd in os.fwalk(".", dir_fd=root):
        prefix = path.removeprefix(".").removeprefix("/")
        for name in (*directories, *files):
            with contextlib.suppress(FileNotFoundError):
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                yield _entry(f"{prefix}/{name}" if prefix else name, info)


def _entry(path: str, info: os.stat_result) -> Entry:
    return Entry(path, _kind(info.st_mode), info.st_mtime, info.st_size)


def _kind(mode: int) -> EntryKind:
    if stat.S_ISREG(mode):
        return EntryKind.FILE
    if stat.S_ISDIR(mode):
        return EntryKind.DIRECTORY
    return EntryKind.SYMLINK if stat.S_ISLNK(mode) else EntryKind.OTHER
