"""The contents of files: what is stored, signed URLs to send and read it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final, Literal

import msgspec

from homeport.kernel.clock import Clock, SystemClock
from homeport.kernel.errors import InvalidError, NotFoundError
from homeport.kernel.grants import GrantSigner
from homeport.link.volumes import BLOCK_BYTES, FILE, VolumeEntry
from homeport.storage.contents import ContentStore
from homeport.volumes.model import NewFile, hex_hashes

URL_LIFETIME_S: Final = 86400.0
"""Clients get the URLs of a whole batch at once and may use the last one hours later."""
EMPTY: Final = hashlib.sha256().digest()
"""The hash of a block of zeros, whose content lacks all of them: always there."""
EMPTY_HEX: Final = EMPTY.hex()


class BlockGrant(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What a signed URL allows: ``put`` the content of that hash, or ``get`` a part of it.

    A ``get`` answers ``length`` bytes from ``offset`` on, with zeros for what the content lacks
    at its end unless ``stripped``. ``expires_at`` is in Unix seconds.
    """

    action: Literal["put", "get"]
    sha256: str
    expires_at: float
    offset: int = 0
    length: int = 0
    stripped: bool = False


class Blocks:
    """Contents in the file store, shared by all volumes and with mounts and blobs."""

    def __init__(self, files: ContentStore, key: bytes, clock: Clock | None = None) -> None:
        self._files = files
        self._signer = GrantSigner(key, BlockGrant, purpose="volume blocks")
        self._clock = clock or SystemClock()

    # ── what is there ───────────────────────────────────────────────────────────────────────

    async def missing(self, hashes: Iterable[bytes]) -> list[bytes]:
        """Those of ``hashes`` that are not stored; the others are kept for a day from now."""
        wanted = list(dict.fromkeys(hashes))
        stored = await self._files.sizes(sha256.hex() for sha256 in wanted)
        return [sha256 for sha256 in wanted if sha256 != EMPTY and sha256.hex() not in stored]

    async def missing_of(self, files: Sequence[NewFile | VolumeEntry]) -> set[str]:
        """Hashes (hex) of these files' contents that are not stored.

        Raises ``InvalidError`` if a stored content is longer than its place in a file.
        """
        pieces = [
            (file.path, sha256.hex(), length)
            for file in files
            for sha256, _, length in _pieces(file)
        ]
        stored = await self._files.sizes({sha256 for _, sha256, _ in pieces} - {EMPTY_HEX})
        missing: set[str] = set()
        for path, sha256, length in pieces:
            size = stored.get(sha256)
            if sha256 != EMPTY_HEX and size is None:
                missing.add(sha256)
            elif size is not None and size > length:
                raise InvalidError(
                    f"{path}: the content {sha256} has {size} bytes, more than the {length} of "
                    "its place in the file"
                )
        return missing

    # ── URLs ────────────────────────────────────────────────────────────────────────────────

    def put_url(self, base: str, sha256: str) -> str:
        """Where to send the content with that hash."""
        return self._url(base, BlockGrant("put", sha256, self._expiry()))

    def get_urls(
        self, base: str, entry: VolumeEntry, start: int, length: int, *, stripped: bool
    ) -> list[str]:
        """Where to read ``length`` bytes of a file from ``start`` on: one URL for each block."""
        if length <= 0:
            return []
        expiry = self._expiry()
        hashes = hex_hashes(entry.hashes)
        urls: list[str] = []
        position, end = start, start + length
        while position < end:
            index = position // BLOCK_BYTES
            stop = min(end, (index + 1) * BLOCK_BYTES)
            whole = len(hashes) == 1
            sha256 = hashes[0] if whole else hashes[index]
            offset = position if whole else position - index * BLOCK_BYTES
            grant = BlockGrant("get", sha256, expiry, offset, stop - position, stripped)
            urls.append(self._url(base, grant))
            position = stop
        return urls

    def grant(self, token: str, sha256: str, action: str) -> BlockGrant:
        """What the token of a request allows. Raises ``PermissionDeniedError``."""
        grant = self._signer.verify(token, self._clock.now())
        if grant.sha256 != sha256 or grant.action != action:
            raise NotFoundError("this URL is not for this kind of request")
        return grant

    def _url(self, base: str, grant: BlockGrant) -> str:
        return f"{base}/block/{grant.sha256}?t={self._signer.token(grant)}"

    def _expiry(self) -> float:
        return self._clock.now() + URL_LIFETIME_S

    # ── contents ────────────────────────────────────────────────────────────────────────────

    async def put(self, sha256: str, data: bytes) -> None:
        """Store a content. Raises ``ContentMismatchError`` if it has another hash."""
        await self._files.put_bytes(data, expect=sha256)

    async def receive(self, sha256: str, chunks: AsyncIterator[bytes]) -> None:
        """Store a block that comes in pieces.

        Raises ``ContentMismatchError`` if it has another hash, ``InvalidError`` if it is too long.
        """
        await self._files.put_stream(chunks, expect=sha256, size_max=BLOCK_BYTES, md5=False)

    async def read(self, entry: VolumeEntry, start: int, length: int) -> AsyncIterator[bytes]:
        """Bytes of a file in pieces of up to a block. Raises ``NotFoundError`` if one is lost."""
        position, end = start, start + length
        for sha256, offset, size in entry.pieces():
            while position < min(end, offset + size):
                count = min(end, offset + size, position + BLOCK_BYTES) - position
                yield await self.part(sha256.hex(), position - offset, count, stripped=False)
                position += count

    async def part(self, sha256: str, offset: int, length: int, *, stripped: bool) -> bytes:
        """``length`` bytes of a content from ``offset``; zeros behind its end, or not."""
        if sha256 == EMPTY_HEX:
            data = b""
        else:
            data = await self._files.part(sha256, offset, length)
        return data if stripped else data.ljust(length, b"\0")


def _pieces(file: NewFile | VolumeEntry) -> list[tuple[bytes, int, int]]:
    if isinstance(file, VolumeEntry):
        return file.pieces()
    return VolumeEntry(file.path, FILE, file.size, hashes=file.hashes).pieces()
