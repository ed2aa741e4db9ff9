"""Use cases of blobs: announce, receive, read."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Final

from homeport.blobs.model import (
    BLOB_BYTES_MAX,
    SINGLE_BYTES_MAX,
    URL_LIFETIME_S,
    Blob,
    Grant,
    Upload,
    is_placeholder_md5,
    part_size,
)
from homeport.blobs.signing import UrlSigner
from homeport.blobs.store import BlobStore
from homeport.blobs.uploads import PartialUploads, composite_etag
from homeport.kernel import ids
from homeport.kernel.clock import Clock, SystemClock
from homeport.kernel.errors import ExhaustedError, InvalidError, NotFoundError
from homeport.storage.contents import ContentMismatchError, ContentStore

_DISK_RESERVE_BYTES: Final = 256 * 1024 * 1024
_CHECK_DISK_BYTES: Final = 16 * 1024 * 1024
_PRUNE_ROWS: Final = 5_000


def _missing(blob_id: str) -> NotFoundError:
    return NotFoundError(f"blob {blob_id} does not exist, or was not uploaded completely")


class BlobService:
    """Payloads by id, kept for ``retention_s`` seconds after they arrived."""

    def __init__(
        self,
        store: BlobStore,
        files: ContentStore,
        signer: UrlSigner,
        *,
        retention_s: float = 7 * 86400.0,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._files = files
        self._signer = signer
        self._uploads = PartialUploads(files)
        self._retention_s = retention_s
        self._clock = clock or SystemClock()

    async def start(self) -> None:
        """Remove what abandoned uploads left behind."""
        await self._uploads.remove_abandoned()

    # ── for other features ──────────────────────────────────────────────────────────────────

    async def write(self, data: bytes) -> str:
        """Store ``data`` as a new blob; its id, once durable."""
        sha256 = await self._files.put_bytes(data)
        blob_id = ids.new(ids.BLOB)
        await self._record(blob_id, sha256, len(data))
        return blob_id

    async def adopt(self, sha256: str, size: int) -> str:
        """A new blob with a content that the file store has; its id, once durable."""
        blob_id = ids.new(ids.BLOB)
        await self._record(blob_id, sha256, size)
        return blob_id

    async def read(self, blob_id: str) -> bytes:
        """The blob's bytes. Raises ``NotFoundError``."""
        blob = await self.get(blob_id)
        return await self._files.read(blob.sha256)

    async def get(self, blob_id: str) -> Blob:
        """The record of a complete blob. Raises ``NotFoundError``."""
        blob = await self._store.find(blob_id)
        if blob is None:
            raise _missing(blob_id)
        return blob

    async def require(self, blob_ids: Collection[str]) -> None:
        """Raise ``NotFoundError`` unless all these blobs are complete."""
        if blob_ids and (missing := {*blob_ids} - await self._store.known(blob_ids)):
            raise _missing(min(missing))

    async def prune(self) -> int:
        """Forget expired blobs; how many. Their contents go with the file store's ``sweep``."""
        total = 0
        while count := await self._store.delete_expired(self._clock.now(), _PRUNE_ROWS):
            total += count
        return total

    async def contents(self) -> set[str]:
        """Hashes of the contents in use by blobs (for the file store's ``sweep``)."""
        return await self._store.contents()

    # ── for clients ─────────────────────────────────────────────────────────────────────────

    async def create_upload(
        self, base: str, *, size: int, sha256: str, md5: str, single_part: bool
    ) -> Upload:
        """Where below the URL ``base`` a client may send ``size`` bytes (hashes in hex).

        Raises ``InvalidError`` or ``ExhaustedError`` if they cannot be taken.
        """
        await self._check_room(size)
        blob_id = ids.new(ids.BLOB)
        expires_at = self._clock.now() + URL_LIFETIME_S
        if single_part and size <= SINGLE_BYTES_MAX and not is_placeholder_md5(md5):
            grant = Grant("put", blob_id, expires_at, size, sha256, md5)
            return Upload(blob_id, url=self._signer.url(base, grant))
        length = part_size(size)
        parts = [
            Grant("part", blob_id, expires_at, size, sha256, part=number, part_size=length)
            for number in range(1, max(1, -(-size // length)) + 1)
        ]
        complete = Grant("complete", blob_id, expires_at, size, sha256, part_size=length)
        return Upload(
            blob_id,
            part_size=length,
            part_urls=[self._signer.url(base, part) for part in parts],
            completion_url=self._signer.url(base, complete),
        )

    async def download_url(self, base: str, blob_id: str) -> str:
        """A URL below ``base`` that reads the blob. Raises ``NotFoundError``."""
        await self.get(blob_id)
        grant = Grant("get", blob_id, self._clock.now() + URL_LIFETIME_S)
        return self._signer.url(base, grant)

    async def _check_room(self, size: int) -> None:
        if not 0 <= size <= BLOB_BYTES_MAX:
            raise InvalidError(f"a blob has 0 to {BLOB_BYTES_MAX} bytes, not {size}")
        if size >= _CHECK_DISK_BYTES:
            free = (await self._files.run(shutil.disk_usage, self._files.scratch)).free
            if size + _DISK_RESERVE_BYTES > free:
                raise ExhaustedError(
                    f"the server's disk has {free >> 20} MiB left, too little for {size >> 20} MiB"
                )

    # ── for the gateway ─────────────────────────────────────────────────────────────────────

    def grant(self, token: str, blob_id: str, *actions: str) -> Grant:
        """What the token of a request allows. Raises ``PermissionDeniedError``."""
        grant = self._signer.verify(token, self._clock.now())
        if grant.blob_id != blob_id or grant.action not in actions:
            raise NotFoundError("this URL is not for this kind of request")
        return grant

    async def receive(self, grant: Grant, chunks: AsyncIterator[bytes]) -> str:
        """Take the body of a ``put`` or ``part`` request; its MD5 in hex.

        Raises ``InvalidError`` if it is not what was announced; then nothing is kept.
        """
        if grant.action == "part" and grant.parts > 1:
            return await self._uploads.receive(grant, chunks)
        _, md5, size = await self._files.put_stream(
            chunks, expect=grant.sha256, size_max=grant.size
        )
        if size != grant.size or (grant.md5 and md5 != grant.md5):
            raise ContentMismatchError(
                f"{size} bytes with MD5 {md5} arrived; announced were {grant.size} with {grant.md5}"
            )
        await self._record(grant.blob_id, grant.sha256, grant.size)
        return md5

    async def complete(self, grant: Grant, etags: Sequence[tuple[int, str]]) -> str:
        """End a multipart upload with the listed parts (number, MD5 hex); the composite ETag."""
        if await self._store.find(grant.blob_id) is not None:  # one part, or asked again
            return composite_etag([etag for _, etag in etags])
        etag = await self._uploads.complete(grant, etags)
        await self._record(grant.blob_id, grant.sha256, grant.size)
        return etag

    async def _record(self, blob_id: str, sha256: str, size: int) -> None:
        now = self._clock.now()
        await self._store.add(Blob(blob_id, sha256, size, now, now + self._retention_s))
