"""Data channels of calls: what generators yield on its way to the caller.

A channel is a sequence of chunks numbered from 1. It lives in memory only: if the server dies,
the input runs again and the chunks come again under the same numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from homeport.kernel.errors import NotFoundError

READ_OUT_MAX_S = 2.0
"""How long a failure waits for a reader to take what was yielded before it."""
LINGER_S = 0.1
"""How much longer, for the reader to do something with the last of it."""
CHANNEL_BYTES_MAX = 256 * 1024 * 1024
"""Bytes in one channel before its writer has to wait for the reader."""
TAIL_BYTES = 16 * 1024 * 1024
"""So much of what was read is kept for a reader whose connection broke."""
_CHUNK_COST = 256
"""Bytes that a chunk counts beyond its data."""


@dataclass(slots=True, frozen=True)
class Chunk:
    """One piece: ``data`` inline or the name of a blob."""

    index: int
    data_format: int
    data: bytes
    blob_id: str = ""

    @property
    def size(self) -> int:
        return len(self.data) + _CHUNK_COST


@dataclass(slots=True)
class _Channel:
    chunks: dict[int, Chunk] = field(default_factory=dict[int, Chunk])
    first: int = 1
    """The lowest index that is kept."""
    last: int = 0
    """The highest index there is."""
    read_to: int = 0
    """The highest index that was given to a reader …"""
    read_at: float = -math.inf
    """… and when, in seconds of the event loop's clock."""
    size: int = 0
    read_size: int = 0
    """The part of ``size`` that was read."""
    is_finished: bool = False
    """The caller has the result: what was read is hardly needed again."""
    is_dropped: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_full(self) -> bool:
        return self.size > CHANNEL_BYTES_MAX

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def add(self, chunk: Chunk) -> None:
        """Keep a chunk; a repeated index replaces what was there (an attempt that runs again)."""
        if chunk.index < self.first:
            return
        old = self.chunks.get(chunk.index)
        growth = chunk.size - (old.size if old else 0)
        self.chunks[chunk.index] = chunk
        self.last = max(self.last, chunk.index)
        self.size += growth
        if chunk.index <= self.read_to:
            self.read_size += growth

    def read(self, chunk: Chunk) -> None:
        """A reader was given the chunk."""
        if chunk.index > self.read_to:
            self.read_to = chunk.index
            self.read_at = asyncio.get_running_loop().time()
            self.read_size += chunk.size
        was_full = self.is_full
        if was_full or self.is_finished:
            self.trim()
        if was_full or self.read_to == self.last:
            self.wake()

    def trim(self) -> None:
        """Free what was read, but for the tail."""
        while self.first <= self.read_to and self.read_size > TAIL_BYTES:
            freed = self.chunks.pop(self.first).size
            self.first += 1
            self.size -= freed
            self.read_size -= freed


class DataStreams:
    """The open channels, by call id."""

    def __init__(self) -> None:
        self._channels: dict[str, _Channel] = {}

    def _channel(self, call_id: str) -> _Channel:
        return self._channels.setdefault(call_id, _Channel())

    async def put(self, call_id: str, chunks: list[Chunk]) -> None:
        """Add chunks. Waits while the channel is full of unread data."""
        channel = self._channel(call_id)
        while channel.is_full and not channel.is_dropped:
            await channel.changed.wait()
        for chunk in chunks:
            channel.add(chunk)
        channel.wake()

    async def follow(self, call_id: str, last_index: int) -> AsyncIterator[Chunk]:
        """Chunks after ``last_index`` in order, without gaps, for as long as the reader likes.

        Raises ``NotFoundError`` when the next one is no longer kept.
        """
        channel = self._channel(call_id)
        index = last_index + 1
        while True:
            changed = channel.changed
            chunk = channel.chunks.get(index)
            if chunk is not None:
                yield chunk
                channel.read(chunk)
                index += 1
            elif index < channel.first:
                raise NotFoundError(
                    f"Value {index} of {call_id} was sent before and is no longer kept; "
                    f"the next one that is has number {channel.first}"
                )
            else:
                await changed.wait()

    async def read_out(self, call_id: str) -> None:
        """Wait for a reader to be given everything there is, at most ``READ_OUT_MAX_S``.

        A client that learns of a failure raises it at once, before the values that it has not
        received by then; if both come to it in one piece, before those too.
        """
        channel = self._channels.get(call_id)
        if channel is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_OUT_MAX_S):
                while channel.read_to < channel.last and not channel.is_dropped:
                    await channel.changed.wait()
                since = asyncio.get_running_loop().time() - channel.read_at
                if since < LINGER_S:
                    await asyncio.sleep(LINGER_S - since)

    def finish(self, call_id: str) -> None:
        """The caller has the result of the call; it may still be reading, or about to begin."""
        channel = self._channels.get(call_id)
        if channel is not None:
            channel.is_finished = True
            channel.trim()

    def drop(self, call_id: str) -> None:
        """The call is forgotten."""
        channel = self._channels.pop(call_id, None)
        if channel is not None:
            channel.is_dropped = True
            channel.wake()
