"""Keeping SQLite's write-ahead log short, beside the writer.

SQLite would do it inside of some commit: copy the log into the database and wait for the disk, tens
of milliseconds in which everybody waits. A thread of its own does it while commits go on. Only
where the log has become long all the same, as it starts anew only when all of it has been copied
at the moment of a commit, does the writer copy the rest itself.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from pathlib import Path
from typing import Final

import structlog

SHORT_BYTES: Final = 4 * 1024 * 1024
"""A log that starts anew is cut to this size: what is longer has that much to be copied."""
LONG_BYTES: Final = 64 * 1024 * 1024
"""The writer copies the rest when the log is this long, and again each quarter of it."""

PRAGMAS: Final = ("wal_autocheckpoint=0", f"journal_size_limit={SHORT_BYTES}")
"""For the connections whose commits ``Checkpoints`` is told of."""

log = structlog.get_logger(__name__)


class Checkpoints:
    """Copies the log of the database at ``path``. ``start`` before use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log_path = f"{path}-wal"
        self._wanted = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._copied_at = 0
        self._long_at = LONG_BYTES

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="db-checkpoint", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait for the copying that is under way, and copy no more."""
        self._stopping = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def committed(self, connection: sqlite3.Connection) -> None:
        """The writer has just committed on ``connection``."""
        size = self._size()
        if size <= SHORT_BYTES:
            self._copied_at, self._long_at = 0, LONG_BYTES
        elif size >= self._long_at:
            self._long_at = size + LONG_BYTES // 4
            self._copy(connection)
        elif size - self._copied_at >= SHORT_BYTES:
            self._wanted.set()

    def _run(self) -> None:
        with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            while True:
                self._wanted.wait()
                self._wanted.clear()
                if self._stopping:
                    return
                self._copied_at = self._size()
                self._copy(connection)

    def _size(self) -> int:
        try:
            return os.stat(self._log_path).st_size
        except FileNotFoundError:
            return 0

    def _copy(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:  # no room on the disk, say: the log keeps what it has
            log.warning("the database's log cannot be copied", error=str(error))
