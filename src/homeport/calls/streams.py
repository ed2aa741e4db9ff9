"""Data channels of calls: what generators yield on its way to the caller.

A channel is a sequence of chunks numbered from 1. It lives in memory only: if the server dies,
the input runs again and the chunks come again under the same numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

READ_OUT_MAX_S = 2.0
"""How long a failure waits for a reader to take what was yielded before it."""
CHANNEL_BYTES_MAX = 256 * 1024 * 1024
"""Unread bytes in one channel before its writer has to wait."""


@dataclass(slots=True, frozen=True)
class Chunk:
    """One piece: ``data`` inline or the name of a blob."""

    index: int
    data_format: int
    data: bytes
    blob_id: str = ""


@dataclass(slots=True)
class _Channel:
    chunks: dict[int, Chunk] = field(default_factory=dict[int, Chunk])
    size: int = 0
    last: int = 0
    """The highest index there is."""
    read_to: int = 0
    dropped: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class DataStreams:
    """The open channels, by call id."""

    def __init__(self) -> None:
        self._channels: dict[str, _Channel] = {}

    def _channel(self, call_id: str) -> _Channel:
        return self._channels.setdefault(call_id, _Channel())

    async def put(self, call_id: str, chunks: list[Chunk]) -> None:
        """Add chunks; a repeated index replaces what was there (an attempt that runs again).

        Waits while the channel is full of unread data.
        """
        channel = self._channel(call_id)
        while channel.size > CHANNEL_BYTES_MAX and not channel.dropped:
            await channel.changed.wait()
        for chunk in chunks:
            old = channel.chunks.get(chunk.index)
            channel.size += len(chunk.data) - (len(old.data) if old else 0)
            channel.chunks[chunk.index] = chunk
            channel.last = max(channel.last, chunk.index)
        channel.wake()

    async def read_out(self, call_id: str) -> None:
        """Wait for a reader to be given everything there is, at most ``READ_OUT_MAX_S``.

        A client that learns of a failure raises it at once, before the values that it has not
        received by then.
        """
        channel = self._channels.get(call_id)
        if channel is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READ_OUT_MAX_S):
                while channel.read_to < channel.last and not channel.dropped:
                    await channel.changed.wait()

    async def follow(self, call_id: str, last_index: int) -> AsyncIterator[Chunk]:
        """Chunks after ``last_index`` in order, without gaps, for as long as the reader likes."""
        channel = self._channel(call_id)
        index = last_index + 1
        while True:
            changed = channel.changed
            chunk = channel.chunks.get(index)
            if chunk is None:
                await changed.wait()
                continue
            yield chunk
            self._read(channel, index)
            index += 1

    def _read(self, channel: _Channel, index: int) -> None:
        """Free what was read, but for a tail that a reconnecting reader may ask for again."""
        channel.read_to = max(channel.read_to, index)
        was_full = channel.size > CHANNEL_BYTES_MAX
        if was_full:
            for old in [key for key in channel.chunks if key < channel.read_to - 64]:
                channel.size -= len(channel.chunks.pop(old).data)
        if was_full or channel.read_to == channel.last:
            channel.wake()

    def drop(self, call_id: str) -> None:
        """The call is over and read."""
        channel = self._channels.pop(call_id, None)
        if channel is not None:
            channel.dropped = True
            channel.wake()
