"""Writing a file in pieces while hashing it, on whatever thread is free."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec


class Hashes(msgspec.Struct, frozen=True):
    """What was written: hex digests (empty if not asked for) and the size in bytes."""

    sha256: str
    md5: str
    size: int


class FileWriter:
    """One file being written from ``offset`` on.

    Calls may come from different threads but one after the other; ``abort`` may come at any time
    and waits for the call that is running.
    """

    def __init__(self, path: Path, algorithms: Sequence[str], *, offset: int = 0) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._digests = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
        self._offset = offset
        self._size = 0
        self._lock = threading.Lock()

    def write(self, pieces: Sequence[bytes]) -> None:
        """Append ``pieces``."""
        with self._lock:
            for piece in pieces:
                for digest in self._digests.values():
                    digest.update(piece)
                self._write_all(piece)

    def _write_all(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            written = os.pwrite(self._descriptor, view, self._offset)
            self._offset += written
            self._size += written
            view = view[written:]

    def hashes(self) -> Hashes:
        """Digests of what was written so far."""
        with self._lock:
            digests = {name: digest.hexdigest() for name, digest in self._digests.items()}
            return Hashes(digests.get("sha256", ""), digests.get("md5", ""), self._size)

    def close(self, *, fsync: bool) -> None:
        """Close the file; with ``fsync`` it is on the disk afterwards."""
        with self._lock:
            if self._descriptor >= 0:
                if fsync:
                    os.fsync(self._descriptor)
                os.close(self._descriptor)
                self._descriptor = -1

    def abort(self) -> None:
        """Close and remove the file."""
        self.close(fsync=False)
        self.path.unlink(missing_ok=True)
