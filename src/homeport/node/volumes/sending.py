"""Hashing what changed, sending contents that the server lacks."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from homeport.link.volumes import BLOCK_BYTES, DIRECTORY, FILE, SYMLINK, VolumeEntry
from homeport.node.volumes.upper import Found, Mark, mark_of, opened

PENDING_BYTES_MAX: Final = 64 * 1024 * 1024
"""Contents read and not yet sent, for each commit."""
_SENDERS: Final = 8
_EMPTY: Final = hashlib.sha256().digest()


class Blocks(Protocol):
    """``VolumeSource`` as this module uses it."""

    async def missing(self, hashes: Sequence[bytes]) -> set[bytes]: ...

    async def put_block(self, sha256: bytes, data: bytes) -> None: ...


class Sender:
    """Turns what was found into entries whose contents the server has."""

    def __init__(self, upper: Path, blocks: Blocks) -> None:
        self._upper = upper
        self._blocks = blocks
        self._pending: dict[bytes, bytes] = {}
        self._pending_bytes = 0
        self.unsettled: set[str] = set()
        """Files that changed or went while they were read: the next commit looks at them again."""

    async def send(self, found: Sequence[Found], marks: dict[str, Mark]) -> list[VolumeEntry]:
        """The entries; those of files that went away meanwhile are left out.

        Raises ``HomeportError`` if the server does not take them.
        """
        entries: list[VolumeEntry] = []
        for item in found:
            if item.kind == FILE:
                entry = await self._file(item, marks)
                if entry is not None:
                    entries.append(entry)
            elif item.kind == SYMLINK:
                entries.append(
                    VolumeEntry(item.path, SYMLINK, 0, item.mode, item.mtime, target=item.target)
                )
            else:
                entries.append(VolumeEntry(item.path, DIRECTORY, 0, item.mode, item.mtime))
        await self._flush()
        return entries

    async def _file(self, item: Found, marks: dict[str, Mark]) -> VolumeEntry | None:
        hashes: list[bytes] = []
        size = 0
        try:
            with opened(self._upper, item) as descriptor:
                while block := await asyncio.to_thread(_read_block, descriptor, size):
                    size += block.size
                    hashes.append(block.sha256)
                    self._keep(block)
                    if block.size < BLOCK_BYTES:
                        break  # the end as of now: what somebody adds meanwhile is no new block
                    if self._pending_bytes >= PENDING_BYTES_MAX:
                        await self._flush()
                if mark_of(os.fstat(descriptor), FILE) != marks.get(item.path):
                    self.unsettled.add(item.path)
        except OSError:
            self.unsettled.add(item.path)
            return None
        return VolumeEntry(item.path, FILE, size, item.mode, item.mtime, b"".join(hashes))

    def _keep(self, block: _Block) -> None:
        if block.sha256 != _EMPTY and block.sha256 not in self._pending:
            self._pending[block.sha256] = block.data
            self._pending_bytes += len(block.data)

    async def _flush(self) -> None:
        pending, self._pending, self._pending_bytes = self._pending, {}, 0
        if not pending:
            return
        missing = await self._blocks.missing(list(pending))
        limit = asyncio.Semaphore(_SENDERS)

        async def one(sha256: bytes) -> None:
            async with limit:
                await self._blocks.put_block(sha256, pending[sha256])

        await asyncio.gather(*(one(sha256) for sha256 in missing))


class _Block:
    """A block of a file: its length there, its content without zeros at the end, and their hash."""

    __slots__ = ("data", "sha256", "size")

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self.data = data.rstrip(b"\0")
        self.sha256 = hashlib.sha256(self.data).digest()


def _read_block(descriptor: int, offset: int) -> _Block | None:
    pieces: list[bytes] = []
    wanted = BLOCK_BYTES
    while wanted and (piece := os.pread(descriptor, wanted, offset)):
        pieces.append(piece)
        offset += len(piece)
        wanted -= len(piece)
    return _Block(b"".join(pieces)) if pieces else None
