"""The file store: contents by their SHA-256, in plain files that can be hard-linked."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from homeport.kernel.errors import InvalidError, NotFoundError
from homeport.storage.writer import FileWriter, Hashes

T = TypeVar("T")

_SHA256: Final = re.compile(r"^[0-9a-f]{64}$")
_EMPTY_SHA256: Final = hashlib.sha256().hexdigest()
_COPY_BYTES: Final = 1024 * 1024
_SMALL_BYTES: Final = 64 * 1024
"""Contents up to this size are stored many at a time."""
_THREADS: Final = 4
"""Enough to keep a disk busy; more would only take the event loop's processor."""

STREAM_BYTES: Final = 1024 * 1024
"""A stream is handed to the disk in pieces of this size; two of them are in memory at most."""


class ContentMismatchError(InvalidError):
    """What arrived is not what was announced: it changed or was damaged on the way."""


class FileStore:
    """Files under ``root/<first two hex digits>/<sha256>``, read-only, written once.

    Every write goes to a temporary file that is renamed when whole and verified, so a name that
    exists has its content. With ``fsync`` a file survives power loss once its ``put_…`` returned.
    All disk work runs on the store's own threads.
    """

    def __init__(self, root: Path, *, fsync: bool = False) -> None:
        self.root = root
        self._fsync = fsync
        self._temporary = root / "tmp"
        self._small: list[tuple[bytes, str | None, asyncio.Future[str]]] = []
        self._storing: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="files")

    def prepare(self) -> None:
        """Create the folders and remove temporary files of an earlier run (at start-up)."""
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Wait for running disk work and end the threads."""
        self._pool.shutdown(wait=True)

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    def path(self, sha256: str) -> Path:
        """Where the content with this hash is or would be.

        Raises ``InvalidError`` for anything but 64 lower-case hex digits.
        """
        if not _SHA256.fullmatch(sha256):
            raise InvalidError(f"{sha256[:80]!r} is not a SHA-256 in lower-case hex")
        return self.root / sha256[:2] / sha256

    async def has(self, sha256: str) -> bool:
        """Whether the content is here; if so it is safe from ``sweep`` for its grace period."""
        path = self.path(sha256)
        return await self.run(_touch, path) is not None

    async def sizes(self, hashes: Iterable[str]) -> dict[str, int]:
        """Sizes in bytes of those contents that are here (and protected as by ``has``)."""
        paths = {sha256: self.path(sha256) for sha256 in hashes}
        return await self.run(_touch_all, paths)

    async def open(self, sha256: str) -> BinaryIO:
        """The content as an open file. Raises ``NotFoundError``."""
        path = self.path(sha256)
        try:
            return await self.run(partial(open, path, "rb"))
        except FileNotFoundError:
            raise NotFoundError(f"no file with SHA-256 {sha256} is stored") from None

    async def read(self, sha256: str) -> bytes:
        """The whole content. Raises ``NotFoundError``."""
        path = self.path(sha256)
        try:
            return await self.run(path.read_bytes)
        except FileNotFoundError:
            raise NotFoundError(f"no file with SHA-256 {sha256} is stored") from None

    # ── writing ─────────────────────────────────────────────────────────────────────────────

    async def put_bytes(self, data: bytes, *, expect: str | None = None) -> str:
        """Store ``data``; its SHA-256. Raises ``ContentMismatchError`` if not ``expect``."""
        if len(data) > _SMALL_BYTES or self._fsync:
            return await self.run(self._put_bytes, data, expect)
        stored: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._small.append((data, expect, stored))
        if self._storing is None:
            self._storing = asyncio.create_task(self._store_small())
        return await stored

    async def _store_small(self) -> None:
        """What is waiting goes to a thread together: handing over costs more than writing."""
        while self._small:
            batch, self._small = self._small, []
            work = [(data, expect) for data, expect, _ in batch]
            try:
                outcomes = await self.run(self._put_each, work)
            except Exception as error:  # the threads have ended: the server is stopping
                outcomes = [error] * len(batch)
            for (_, _, stored), outcome in zip(batch, outcomes, strict=True):
                if stored.done():  # its caller is gone
                    continue
                if isinstance(outcome, str):
                    stored.set_result(outcome)
                else:
                    stored.set_exception(outcome)
        self._storing = None

    def _put_each(self, batch: list[tuple[bytes, str | None]]) -> list[str | Exception]:
        outcomes: list[str | Exception] = []
        for data, expect in batch:
            try:
                outcomes.append(self._put_bytes(data, expect))
            except Exception as error:  # that caller's own
                outcomes.append(error)
        return outcomes

    async def put_file(self, source: Path, *, expect: str | None = None) -> str:
        """Store a copy of the file ``source``; its SHA-256."""
        return await self.run(self._put_file, source, expect)

    async def adopt_file(self, source: Path, *, expect: str | None = None) -> str:
        """Store the file ``source`` itself (same disk): it is moved here after hashing."""
        return await self.run(self._adopt_file, source, expect)

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
        writer = await self.run(self._writer, ("sha256", "md5") if md5 else ("sha256",))
        try:
            await self.pump(writer, chunks, size_max)
            hashes = await self.run(self._finish, writer, expect)
        except BaseException:
            self._pool.submit(writer.abort)  # after the write that may still be running
            raise
        return hashes.sha256, hashes.md5, hashes.size

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

    def run(self, function: Callable[..., T], *args: object) -> asyncio.Future[T]:
        """Run disk work on the store's threads."""
        return asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    # ── collection ──────────────────────────────────────────────────────────────────────────

    async def sweep(self, live: Collection[str], *, grace_s: float = 86400.0) -> int:
        """Remove contents that are not in ``live`` and unused for ``grace_s``; how many.

        The grace period covers contents whose owner is about to be recorded: writing a file and
        asking for it both count as use.
        """
        return await self.run(self._sweep, frozenset(live), time.time() - grace_s)

    def _sweep(self, live: frozenset[str], before: float) -> int:
        removed = 0
        for folder in self.root.iterdir() if self.root.exists() else ():
            if len(folder.name) != 2 or not folder.is_dir():
                continue
            for entry in os.scandir(folder):
                status = entry.stat()
                used = max(status.st_atime, status.st_mtime)
                if entry.name not in live and used < before:
                    os.unlink(entry.path)
                    removed += 1
        return removed

    # ── on the threads ──────────────────────────────────────────────────────────────────────

    def _writer(self, algorithms: tuple[str, ...] = ("sha256",)) -> FileWriter:
        self._temporary.mkdir(parents=True, exist_ok=True)
        return FileWriter(self._temporary / secrets.token_hex(16), algorithms)

    def _put_bytes(self, data: bytes, expect: str | None) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        _verify(sha256, expect)
        if _touch(self.path(sha256)) == len(data):
            return sha256
        writer = self._writer(())
        try:
            writer.write([data])
            self._keep(writer, sha256)
        except BaseException:
            writer.abort()
            raise
        return sha256

    def _put_file(self, source: Path, expect: str | None) -> str:
        writer = self._writer()
        try:
            with source.open("rb") as file:
                while piece := file.read(_COPY_BYTES):
                    writer.write([piece])
            return self._finish(writer, expect).sha256
        except BaseException:
            writer.abort()
            raise

    def _adopt_file(self, source: Path, expect: str | None) -> str:
        with source.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            _verify(sha256, expect)
            if self._fsync:
                os.fsync(file.fileno())
        self._place(source, sha256)
        return sha256

    def _finish(self, writer: FileWriter, expect: str | None) -> Hashes:
        hashes = writer.hashes()
        _verify(hashes.sha256, expect)
        self._keep(writer, hashes.sha256)
        return hashes

    def _keep(self, writer: FileWriter, sha256: str) -> None:
        writer.close(fsync=self._fsync)
        self._place(writer.path, sha256)

    def _place(self, source: Path, sha256: str) -> None:
        target = self.path(sha256)
        if _touch(target) == source.stat().st_size:
            source.unlink()  # the same content: keep the file that others may have linked
            return
        source.chmod(0o444)
        target.parent.mkdir(exist_ok=True)
        os.rename(source, target)
        if self._fsync:
            _fsync_folder(target.parent)


def _verify(sha256: str, expect: str | None) -> None:
    if expect is not None and sha256 != expect:
        raise ContentMismatchError(f"the content has SHA-256 {sha256}, but {expect} was announced")


def _touch(path: Path) -> int | None:
    """Size of the file, marked as used; ``None`` if it is missing (or was lost in a power cut)."""
    try:
        status = path.stat()
        # Only the access time: nodes link these files, and bytecode is checked by mtime.
        os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
    except FileNotFoundError:
        return None
    if status.st_size == 0 and path.name != _EMPTY_SHA256:
        return None
    return status.st_size


def _touch_all(paths: dict[str, Path]) -> dict[str, int]:
    found = {sha256: _touch(path) for sha256, path in paths.items()}
    return {sha256: size for sha256, size in found.items() if size is not None}


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
