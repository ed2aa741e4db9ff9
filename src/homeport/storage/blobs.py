"""The file store: contents by their SHA-256, in plain files that can be hard-linked."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from homeport.kernel.errors import ConflictError
from homeport.storage.contents import (
    EMPTY_SHA256,
    STREAM_BYTES,
    ContentStore,
    checked_name,
    not_stored,
    verify,
)
from homeport.storage.recent import SMALL_BYTES, Recent
from homeport.storage.writer import FileWriter, Hashes


class FileStore(ContentStore):
    """Files under ``root/<first two hex digits>/<sha256>``, read-only, written once.

    Every write goes to a temporary file that is renamed when whole and verified, so a name that
    exists has its content. With ``fsync`` a file survives power loss once its ``put_…`` returned.
    All disk work runs on the store's own threads. Small contents are stored many at a time, and
    read from memory for a while.
    """

    def __init__(
        self,
        root: Path,
        *,
        fsync: bool = False,
        in_bucket: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        super().__init__(root)
        self._in_bucket = in_bucket
        self.root = root
        self._fsync = fsync
        self._small: list[tuple[bytes, str | None, asyncio.Future[str]]] = []
        self._storing: asyncio.Task[None] | None = None
        self._recent = Recent()

    async def start(self) -> None:
        """Raises ``ConflictError`` if the contents of this installation are in a bucket."""
        if self._in_bucket is not None and (count := await self._in_bucket()):
            raise ConflictError(
                f"{count} contents of this installation are in a bucket: set blob_store to it again"
            )

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    def path(self, sha256: str) -> Path:
        """Where the content with this hash is or would be.

        Raises ``InvalidError`` for anything but 64 lower-case hex digits.
        """
        return self.root / checked_name(sha256)[:2] / sha256

    def local(self, sha256: str) -> Path | None:
        return self.path(sha256)

    async def has(self, sha256: str) -> bool:
        path = self.path(sha256)
        return await self.run(_touch, path) is not None

    async def sizes(self, hashes: Iterable[str]) -> dict[str, int]:
        paths = {sha256: self.path(sha256) for sha256 in hashes}
        return await self.run(_touch_all, paths)

    async def open(self, sha256: str) -> BinaryIO:
        path = self.path(sha256)
        try:
            return await self.run(partial(open, path, "rb"))
        except FileNotFoundError:
            raise not_stored(sha256) from None

    async def read(self, sha256: str) -> bytes:
        path = self.path(sha256)
        try:
            return await self.run(path.read_bytes)
        except FileNotFoundError:
            raise not_stored(sha256) from None

    async def part(self, sha256: str, offset: int, length: int) -> bytes:
        recent = self._recent.get(sha256)
        if recent is not None:
            return recent[offset : offset + length]
        try:
            return await self.run(_read, self.path(sha256), offset, length)
        except FileNotFoundError:
            raise not_stored(sha256) from None

    async def stream(self, sha256: str) -> AsyncIterator[bytes]:
        with await self.open(sha256) as file:
            while piece := await self.run(file.read, STREAM_BYTES):
                yield piece

    # ── writing ─────────────────────────────────────────────────────────────────────────────

    async def put_bytes(self, data: bytes, *, expect: str | None = None) -> str:
        if len(data) > SMALL_BYTES or self._fsync:
            return await self.run(self._put_bytes, data, expect)
        stored: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._small.append((data, expect, stored))
        if self._storing is None:
            self._storing = asyncio.create_task(self._store_small())
        sha256 = await stored
        self._recent.put(sha256, data)
        return sha256

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
        return await self.run(self._put_file, source, expect)

    async def adopt_file(self, source: Path, *, expect: str | None = None) -> str:
        """As everywhere; it is moved here after hashing."""
        return await self.run(self._adopt_file, source, expect)

    async def put_stream(
        self,
        chunks: AsyncIterator[bytes],
        *,
        expect: str | None = None,
        size_max: int | None = None,
        md5: bool = True,
    ) -> tuple[str, str, int]:
        writer = await self.run(self._writer, ("sha256", "md5") if md5 else ("sha256",))
        try:
            await self.pump(writer, chunks, size_max)
            hashes = await self.run(self._finish, writer, expect)
        except BaseException:
            self._pool.submit(writer.abort)  # after the write that may still be running
            raise
        return hashes.sha256, hashes.md5, hashes.size

    # ── collection ──────────────────────────────────────────────────────────────────────────

    async def sweep(self, live: Collection[str], *, grace_s: float = 86400.0) -> int:
        removed = await self.run(self._sweep, frozenset(live), time.time() - grace_s)
        if removed:
            self._recent.clear()
        return removed

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

    def _put_bytes(self, data: bytes, expect: str | None) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        verify(sha256, expect)
        target = self.path(sha256)
        if _touch(target) == len(data):
            return sha256
        writer = self._writer(())
        try:
            writer.write([data])
            writer.close(fsync=self._fsync)
            self._rename(writer.path, target)
        except BaseException:
            writer.abort()
            raise
        return sha256

    def _put_file(self, source: Path, expect: str | None) -> str:
        writer = self._copied(source)
        try:
            return self._finish(writer, expect).sha256
        except BaseException:
            writer.abort()
            raise

    def _adopt_file(self, source: Path, expect: str | None) -> str:
        with source.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            verify(sha256, expect)
            if self._fsync:
                os.fsync(file.fileno())
        self._place(source, sha256)
        return sha256

    def _finish(self, writer: FileWriter, expect: str | None) -> Hashes:
        hashes = writer.hashes()
        verify(hashes.sha256, expect)
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
        self._rename(source, target)

    def _rename(self, source: Path, target: Path) -> None:
        os.chmod(source, 0o444)
        try:
            os.rename(source, target)
        except FileNotFoundError:  # the first with these digits
            target.parent.mkdir(exist_ok=True)
            os.rename(source, target)
        if self._fsync:
            _fsync_folder(target.parent)


def _touch(path: Path) -> int | None:
    """Size of the file, marked as used; ``None`` if it is missing (or was lost in a power cut)."""
    try:
        status = path.stat()
        # Only the access time: nodes link these files, and bytecode is checked by mtime.
        os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
    except FileNotFoundError:
        return None
    if status.st_size == 0 and path.name != EMPTY_SHA256:
        return None
    return status.st_size


def _read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _touch_all(paths: dict[str, Path]) -> dict[str, int]:
    found = {sha256: _touch(path) for sha256, path in paths.items()}
    return {sha256: size for sha256, size in found.items() if size is not None}


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
