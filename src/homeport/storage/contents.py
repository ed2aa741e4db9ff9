"""The interface of stores of contents by their SHA-256, and what all of them do alike on this disk."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from homeport.kernel.errors import InvalidError, NotFoundError
from homeport.storage.writer import FileWriter

T = TypeVar("T")

EMPTY_SHA256: Final = hashlib.sha256().hexdigest()
STREAM_BYTES: Final = 1024 * 1024
"""A stream is handed to the disk in pieces of this size; two of them are in memory at most."""

_SHA256: Final = re.compile(r"^[0-9a-f]{64}$")
_COPY_BYTES: Final = 1024 * 1024
_THREADS: Final = 4
"""Enough to keep a disk busy; more would only take the event loop's processor."""


class ContentMismatchError(InvalidError):
    """What arrived is not what was announced: it changed or was damaged on the way."""


class ContentStore(ABC):
    """Contents by their SHA-256 (64 lower-case hex digits; anything else is ``InvalidError``).

    A content that a ``put_…`` or ``adopt_…`` returned for is kept: it survives the death of any
    process. ``scratch`` is a folder on this machine's disk, for what is on its way in; disk work
    runs on the store's own threads.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._temporary = scratch / "tmp"
        self._pool = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="files")

    def prepare(self) -> None:
        """Create the folders and remove temporary files of an earlier run (at start-up)."""
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True, exist_ok=True)

    async def start(self) -> None:
        """See that the store can be worked with, once the database is open.

        Raises ``ConflictError`` or ``UnavailableError`` with what is to be done about it.
        """
        return

    def close(self) -> None:
        """Wait for running disk work and end the threads."""
        self._pool.shutdown(wait=True)

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    async def has(self, sha256: str) -> bool:
        """Whether the content is here; if so it is safe from ``sweep`` for its grace period."""
        return bool(await self.sizes([sha256]))

    @abstractmethod
    async def sizes(self, hashes: Iterable[str]) -> dict[str, int]:
        """Sizes in bytes of those contents that are here (and protected as by ``has``)."""

    @abstractmethod
    def local(self, sha256: str) -> Path | None:
        """The file with the content (there or not); ``None`` if contents are not files here."""

    @abstractmethod
    async def open(self, sha256: str) -> BinaryIO:
        """The content as an open file. Raises ``NotFoundError``."""

    @abstractmethod
    async def read(self, sha256: str) -> bytes:
        """The whole content. Raises ``NotFoundError``."""

    @abstractmethod
    async def part(self, sha256: str, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``, fewer at the end. Raises ``NotFoundError``."""

    @abstractmethod
    def stream(self, sha256: str) -> AsyncIterator[bytes]:
        """The content in pieces of a few MiB, of which two are in memory. Raises ``NotFoundError``."""

    # ── writing ─────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    async def put_bytes(self, data: bytes, *, expect: str | None = None) -> str:
        """Store ``data``; its SHA-256. Raises ``ContentMismatchError`` if not ``expect``."""

    @abstractmethod
    async def put_file(self, source: Path, *, expect: str | None = None) -> str:
        """Store a copy of the file ``source``; its SHA-256."""

    @abstractmethod
    async def adopt_file(self, source: Path, *, expect: str | None = None) -> str:
        """Store the file ``source`` itself, which is on the disk of ``scratch``: it is gone then."""

    @abstractmethod
    async def put_stream(
        self,
        chunks: AsyncIterator[bytes],
        *,
        expect: str | None = None,
        size_max: int | None = None,
        md5: bool = True,
    ) -> tuple[str, str, int]:
        """Store what ``chunks`` yields: (SHA-256 hex, MD5 hex if asked for, size in bytes).

        Raises ``InvalidError`` (and stores nothing) beyond ``size_max`` bytes, its subclass
        ``ContentMismatchError`` if the hash is not ``expect``.
        """

    async def pump(
        self, writer: FileWriter, chunks: AsyncIterator[bytes], size_max: int | None
    ) -> None:
        """Write ``chunks``; the next piece is received while the last one is being written."""
        pieces: list[bytes] = []
        waiting = total = 0
        running: asyncio.Future[None] | None = None
        async for chunk in chunks:
            total += len(chunk)
            if size_max is not None and total > size_max:
                raise InvalidError(f"more than the announced {size_max} bytes arrived")
            pieces.append(chunk)
            waiting += len(chunk)
            if waiting >= STREAM_BYTES:
                if running is not None:
                    await running
                running = self.run(writer.write, pieces)
                pieces, waiting = [], 0
        if running is not None:
            await running
        if pieces:
            await self.run(writer.write, pieces)

    # ── collection ──────────────────────────────────────────────────────────────────────────

    @abstractmethod
    async def sweep(self, live: Collection[str], *, grace_s: float = 86400.0) -> int:
        """Remove contents that are not in ``live`` and unused for ``grace_s``; how many.

        The grace period covers contents whose owner is about to be recorded: writing a file and
        asking for it both count as use.
        """

    # ── for stores ──────────────────────────────────────────────────────────────────────────

    def run(self, function: Callable[..., T], *args: object) -> asyncio.Future[T]:
        """Run disk work on the store's threads."""
        return asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def _writer(self, algorithms: Sequence[str] = ("sha256",)) -> FileWriter:
        path = self._temporary / secrets.token_hex(16)
        try:
            return FileWriter(path, algorithms)
        except FileNotFoundError:
            self._temporary.mkdir(parents=True, exist_ok=True)
            return FileWriter(path, algorithms)

    def _copied(self, source: Path) -> FileWriter:
        writer = self._writer()
        try:
            with source.open("rb") as file:
                while piece := file.read(_COPY_BYTES):
                    writer.write([piece])
        except BaseException:
            writer.abort()
            raise
        return writer


def checked_name(sha256: str) -> str:
    """``sha256`` itself. Raises ``InvalidError`` for anything but 64 lower-case hex digits."""
    if not _SHA256.fullmatch(sha256):
        raise InvalidError(f"{sha256[:80]!r} is not a SHA-256 in lower-case hex")
    return sha256


def verify(sha256: str, expect: str | None) -> None:
    """Raises ``ContentMismatchError`` unless the hash is the announced one, if there is any."""
    if expect is not None and sha256 != expect:
        raise ContentMismatchError(f"the content has SHA-256 {sha256}, but {expect} was announced")


def not_stored(sha256: str) -> NotFoundError:
    """What is raised for contents that are not here."""
    return NotFoundError(f"no file with SHA-256 {sha256} is stored")
