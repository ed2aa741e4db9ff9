"""The store of contents in a bucket of S3, GCS or Azure.

Contents arrive on this disk, are hashed there, sent to the bucket and recorded in the database, in
this order: what is recorded is whole, and what a crash left unrecorded is found by ``sweep``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import BinaryIO, Final

import structlog

from homeport.kernel.clock import Clock
from homeport.kernel.errors import ConflictError, InternalError
from homeport.storage.bucket import PART_BYTES, Bucket
from homeport.storage.catalogue import Catalogue
from homeport.storage.contents import ContentStore, checked_name, not_stored, verify

log = structlog.get_logger(__name__)

_OWNER: Final = "homeport-installation"
"""The object that says whose bucket it is: another's sweep would remove what is here."""
_PIECE_BYTES: Final = 4 * 1024 * 1024
_SMALL_AT_ONCE: Final = 16
_LARGE_AT_ONCE: Final = 4
"""Uploads at once, so that they take at most 128 MiB of memory each kind."""
_REMOVED_AT_ONCE: Final = 500
_LISTING_S: Final = 86400.0
"""How often the bucket is searched for what nothing knows."""
_MOVED_AT_ONCE: Final = 16


class BucketStore(ContentStore):
    """Contents as objects ``<first two hex digits>/<sha256>`` of a bucket.

    ``owner`` names the installation; a bucket (and prefix) belongs to one.
    """

    def __init__(
        self, scratch: Path, bucket: Bucket, catalogue: Catalogue, clock: Clock, *, owner: str
    ) -> None:
        super().__init__(scratch)
        self._bucket = bucket
        self._catalogue = catalogue
        self._clock = clock
        self._owner = owner
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}
        self._small = asyncio.Semaphore(_SMALL_AT_ONCE)
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._listed_at = 0.0

    async def start(self) -> None:
        """See that the bucket works and is ours; take in what is in files from before."""
        await self._bucket.check()
        owner = await self._bucket.get(_OWNER)
        if owner is None:
            if count := await self._catalogue.count():
                raise ConflictError(
                    f"{self._bucket.url} has none of the {count} contents that this installation "
                    "stored: correct blob_store, or copy the objects there first, with that named "
                    f"{_OWNER}"
                )
            await self._bucket.put(_OWNER, self._owner.encode(), len(self._owner))
        elif owner.decode(errors="replace") != self._owner:
            raise ConflictError(
                f"{self._bucket.url} belongs to another Homeport installation: choose another "
                f"prefix in blob_store (or delete the object {_OWNER} there if that one is gone)"
            )
        await self._take_in()

    async def _take_in(self) -> None:
        """Move contents of the folder, which was the store before, into the bucket."""
        found = await self.run(_files_in, self.scratch)
        if not found:
            return
        log.info("moving contents into the bucket", contents=len(found), bucket=self._bucket.url)
        for start in range(0, len(found), _MOVED_AT_ONCE):
            async with asyncio.TaskGroup() as group:
                for path in found[start : start + _MOVED_AT_ONCE]:
                    group.create_task(self._take_in_file(path))
        log.info("moved contents into the bucket", contents=len(found))

    async def _take_in_file(self, path: Path) -> None:
        digest = await self.run(_digest, path)
        if digest == path.name:
            await self.adopt_file(path)
        else:
            log.error("a content is damaged; it stays where it is", file=str(path))

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    async def sizes(self, hashes: Iterable[str]) -> dict[str, int]:
        return await self._catalogue.sizes({checked_name(sha256) for sha256 in hashes})

    def local(self, sha256: str) -> Path | None:
        checked_name(sha256)
        return None

    async def open(self, sha256: str) -> BinaryIO:
        pieces = self.stream(sha256)
        file = await self.run(_unnamed, self._temporary)
        try:
            async for piece in pieces:
                await self.run(file.write, piece)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    async def read(self, sha256: str) -> bytes:
        return b"".join([piece async for piece in self.stream(sha256)])

    async def part(self, sha256: str, offset: int, length: int) -> bytes:
        size = await self._size(sha256)
        length = min(length, size - offset)
        return await self._range(sha256, offset, length) if length > 0 else b""

    async def stream(self, sha256: str) -> AsyncIterator[bytes]:
        size = await self._size(sha256)
        digest = hashlib.sha256()
        starts = range(0, size, _PIECE_BYTES)
        ahead: asyncio.Task[bytes] | None = None
        try:
            for start in starts:
                length = min(_PIECE_BYTES, size - start)
                piece = await (ahead or self._range(sha256, start, length))
                ahead = None
                following = start + length
                if following < size:
                    length = min(_PIECE_BYTES, size - following)
                    ahead = asyncio.create_task(self._range(sha256, following, length))
                await self.run(digest.update, piece)
                if following >= size and digest.hexdigest() != sha256:
                    raise InternalError(f"the content {sha256} in {self._bucket.url} is damaged")
                yield piece
        finally:
            if ahead is not None:
                ahead.cancel()
                await asyncio.wait([ahead])

    async def _size(self, sha256: str) -> int:
        size = (await self.sizes([sha256])).get(sha256)
        if size is None:
            raise not_stored(sha256)
        return size

    async def _range(self, sha256: str, start: int, length: int) -> bytes:
        try:
            return await self._bucket.get_range(_name(sha256), start, length)
        except FileNotFoundError:
            # Somebody deleted it there. Forgotten here, it is taken when it is sent once more.
            await self._catalogue.forget([sha256])
            log.error("a content is missing in the bucket", sha256=sha256, bucket=self._bucket.url)
            raise not_stored(sha256) from None

    # ── writing ─────────────────────────────────────────────────────────────────────────────

    async def put_bytes(self, data: bytes, *, expect: str | None = None) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        verify(sha256, expect)
        await self._keep(sha256, data, len(data))
        return sha256

    async def put_file(self, source: Path, *, expect: str | None = None) -> str:
        # A copy: the source may change while it is sent.
        writer = await self.run(self._copied, source)
        try:
            hashes = writer.hashes()
            verify(hashes.sha256, expect)
            writer.close(fsync=False)
            await self._keep(hashes.sha256, writer.path, hashes.size)
        finally:
            writer.abort()
        return hashes.sha256

    async def adopt_file(self, source: Path, *, expect: str | None = None) -> str:
        sha256 = await self.run(_digest, source)
        verify(sha256, expect)
        await self._keep(sha256, source, (await self.run(source.stat)).st_size)
        await self.run(source.unlink)
        return sha256

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
            hashes = await self.run(writer.hashes)
            verify(hashes.sha256, expect)
            await self.run(lambda: writer.close(fsync=False))
            await self._keep(hashes.sha256, writer.path, hashes.size)
        finally:
            self._pool.submit(writer.abort)  # after the write that may still be running
        return hashes.sha256, hashes.md5, hashes.size

    async def _keep(self, sha256: str, source: bytes | Path, size: int) -> None:
        async with self._turn(sha256):
            if (await self._catalogue.sizes([sha256])).get(sha256) == size:
                return
            async with self._large if size > PART_BYTES else self._small:
                await self._bucket.put(_name(sha256), source, size)
            await self._catalogue.add(sha256, size)

    @contextlib.asynccontextmanager
    async def _turn(self, sha256: str) -> AsyncGenerator[None]:
        """Storing and removing one content go one after the other."""
        lock, users = self._turns.get(sha256) or (asyncio.Lock(), 0)
        self._turns[sha256] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns.pop(sha256)
            if users > 1:
                self._turns[sha256] = (lock, users - 1)

    # ── collection ──────────────────────────────────────────────────────────────────────────

    async def sweep(self, live: Collection[str], *, grace_s: float = 86400.0) -> int:
        before = self._clock.now() - grace_s
        unused = [sha for sha in await self._catalogue.unused(before) if sha not in live]
        removed = 0
        for start in range(0, len(unused), _REMOVED_AT_ONCE):
            removed += await self._remove(unused[start : start + _REMOVED_AT_ONCE], before)
        if self._clock.now() - self._listed_at >= _LISTING_S:
            removed += await self._remove_unknown(before)
            self._listed_at = self._clock.now()
        return removed

    async def _remove(self, hashes: Collection[str], before: float) -> int:
        async with AsyncExitStack() as turns:
            for sha256 in sorted(hashes):
                await turns.enter_async_context(self._turn(sha256))
            # First the record: an object too many is found later, one that lacks would be a loss.
            gone = await self._catalogue.forget(hashes, unused_since=before)
            if gone:
                await self._bucket.delete([_name(sha256) for sha256 in gone])
        return len(gone)

    async def _remove_unknown(self, before: float) -> int:
        """Remove what crashes left in the bucket: objects without a record."""
        removed = 0
        async for batch in self._bucket.list():
            old = {
                sha256
                for item in batch
                if item.modified_at < before and _name(sha256 := item.name[3:]) == item.name
            }
            unknown = sorted(old - await self._catalogue.known(old))
            for start in range(0, len(unknown), _REMOVED_AT_ONCE):
                part = unknown[start : start + _REMOVED_AT_ONCE]
                async with AsyncExitStack() as turns:
                    for sha256 in part:
                        await turns.enter_async_context(self._turn(sha256))
                    still = sorted({*part} - await self._catalogue.known(part))
                    if still:
                        await self._bucket.delete([_name(sha256) for sha256 in still])
                    removed += len(still)
        return removed


def _name(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unnamed(folder: Path) -> BinaryIO:
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)


def _files_in(root: Path) -> list[Path]:
    found: list[Path] = []
    for folder in root.iterdir() if root.exists() else ():
        if len(folder.name) == 2 and folder.is_dir():
            found.extend(path for path in folder.iterdir() if len(path.name) == 64)
    return found
