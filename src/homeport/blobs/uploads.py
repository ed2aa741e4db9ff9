"""Blobs that arrive in parts: written in place, assembled without copying."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from homeport.blobs.model import Grant
from homeport.kernel.errors import ConflictError, InvalidError
from homeport.storage.contents import ContentStore
from homeport.storage.writer import FileWriter, Hashes

_ABANDONED_S: Final = 2 * 86400.0
_MARK: Final = re.compile(r"^(\d+)-([0-9a-f]{32})$")


class PartialUploads:
    """Uploads in progress: one folder a blob, with the data and a mark for each part received.

    They survive a restart; parts may arrive in any order, at once and repeatedly.
    """

    def __init__(self, files: ContentStore) -> None:
        self._files = files
        self._root = files.scratch / "uploads"

    async def remove_abandoned(self) -> None:
        """Remove uploads whose URLs have expired long ago (at start-up)."""
        await self._files.run(self._remove_older, time.time() - _ABANDONED_S)

    async def receive(self, grant: Grant, chunks: AsyncIterator[bytes]) -> str:
        """Store one part; its MD5 in hex. Raises ``InvalidError`` if its length is wrong."""
        offset = (grant.part - 1) * grant.part_size
        writer = await self._files.run(self._open, grant.blob_id, offset)
        try:
            await self._files.pump(writer, chunks, grant.body_size)
            hashes = await self._files.run(writer.hashes)
            if hashes.size != grant.body_size:
                raise InvalidError(
                    f"part {grant.part} has {hashes.size} bytes instead of {grant.body_size}"
                )
            await self._files.run(self._mark, grant, hashes)
        finally:
            await self._files.run(lambda: writer.close(fsync=False))
        return hashes.md5

    async def complete(self, grant: Grant, etags: Sequence[tuple[int, str]]) -> str:
        """Make the parts one file in the store; the composite ETag ``<md5 of md5s>-<parts>``.

        Raises ``InvalidError`` if ``etags`` (part number, MD5 hex) are not those of the parts
        received, ``ConflictError`` if parts are missing.
        """
        received = await self._files.run(self._received, grant.blob_id)
        wanted = list(range(1, grant.parts + 1))
        if [number for number, _ in etags] != wanted:
            raise InvalidError(f"this blob has parts 1 to {grant.parts}; all must be listed")
        missing = [number for number in wanted if number not in received]
        if missing:
            raise ConflictError(f"part {missing[0]} of this blob has not arrived")
        for number, etag in etags:
            if received[number] != etag:
                raise InvalidError(f"the ETag of part {number} is {received[number]}, not {etag}")
        folder = self._folder(grant.blob_id)
        await self._files.adopt_file(folder / "data", expect=grant.sha256)
        await self._files.run(shutil.rmtree, folder, True)
        return composite_etag([etag for _, etag in etags])

    # ── on the store's threads ──────────────────────────────────────────────────────────────

    def _folder(self, blob_id: str) -> Path:
        return self._root / blob_id

    def _open(self, blob_id: str, offset: int) -> FileWriter:
        folder = self._folder(blob_id)
        folder.mkdir(parents=True, exist_ok=True)
        return FileWriter(folder / "data", ("md5",), offset=offset)

    def _mark(self, grant: Grant, hashes: Hashes) -> None:
        folder = self._folder(grant.blob_id)
        for name in os.listdir(folder):
            match = _MARK.match(name)
            if match and int(match.group(1)) == grant.part:
                (folder / name).unlink(missing_ok=True)
        (folder / f"{grant.part}-{hashes.md5}").touch()

    def _received(self, blob_id: str) -> dict[int, str]:
        try:
            names = os.listdir(self._folder(blob_id))
        except FileNotFoundError:
            return {}
        marks = [match for name in names if (match := _MARK.match(name))]
        return {int(match.group(1)): match.group(2) for match in marks}

    def _remove_older(self, before: float) -> None:
        for folder in self._root.iterdir() if self._root.exists() else ():
            if folder.stat().st_mtime < before:
                shutil.rmtree(folder, ignore_errors=True)


def composite_etag(part_md5s: Sequence[str]) -> str:
    """What S3 calls the ETag of a multipart upload; the client looks for it in the answer."""
    joined = b"".join(bytes.fromhex(md5) for md5 in part_md5s)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(part_md5s)}"
