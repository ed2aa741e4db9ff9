"""What passes between a connection and the container that answers it, while it lives.

A web request is an input that is bound to its connection: nothing of it is recorded, and both its
channels are small buffers. Who writes faster than the other side reads has to wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from homeport.calls.streams import Chunk
from homeport.kernel.errors import NotFoundError

if TYPE_CHECKING:
    from homeport.calls.model import Output

IN_BYTES_MAX: Final = 2 * 1024 * 1024
"""Bytes on their way to the container before the sender has to wait."""
OUT_BYTES_MAX: Final = 4 * 1024 * 1024
"""Bytes from the container that the connection has not taken, before the container has to wait."""
REPLAY_BYTES_MAX: Final = 1024 * 1024
"""What was sent to a container is kept up to this size: with more, it cannot be sent again."""
DATA_FORMAT_ASGI: Final = 2
"""The protocol's ``DataFormat`` of messages between web server and application."""
_CHUNK_COST: Final = 128


class Exchange:
    """The two channels of one input. Messages are bytes: what they mean is their ends' business.

    ``announced`` tells the input's container something before the connection says anything, when
    that takes too long.
    """

    def __init__(self, announced: bytes = b"", announce_after_s: float = 0.0) -> None:
        self._announced = announced
        self._announce_after_s = announce_after_s
        self._in: deque[tuple[int, bytes]] = deque()
        self._in_last = 0
        self._in_read = 0
        self._in_unread = 0
        self._in_kept = 0
        self._in_lost = 0
        """The highest index that is no longer kept."""
        self._out: deque[Chunk] = deque()
        self._out_last = 0
        self._out_size = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._closed = False
        self.output: Output | None = None
        """How the input ended."""

    # ── the connection's side ───────────────────────────────────────────────────────────────

    def push(self, message: bytes) -> None:
        """Send ``message`` to the container."""
        self._in_last += 1
        self._in.append((self._in_last, message))
        size = len(message) + _CHUNK_COST
        self._in_unread += size
        self._in_kept += size
        self._wake()

    async def room(self) -> None:
        """Wait until the container has taken most of what was sent, or nobody reads any more."""
        while self._in_unread > IN_BYTES_MAX and self.output is None and not self._closed:
            self._room.clear()
            await self._room.wait()

    @property
    def has_news(self) -> bool:
        """Whether ``pull`` would answer at once."""
        return bool(self._out) or self.output is not None or self._closed

    async def news(self) -> None:
        """Wait until ``pull`` would answer at once."""
        while not self.has_news:
            self._changed.clear()
            await self._changed.wait()

    async def pull(self) -> Chunk | None:
        """The next chunk of the container's answer; ``None`` once the input has ended, or ``close``."""
        while not self._out:
            if self.output is not None or self._closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        chunk = self._out.popleft()
        self._out_size -= chunk.size
        self._room.set()
        return chunk

    def close(self) -> None:
        """The connection is gone: what the container still says is dropped."""
        self._closed = True
        self._out.clear()
        self._out_size = 0
        self._wake()
        self._room.set()

    # ── the container's side ────────────────────────────────────────────────────────────────

    async def messages(self, last_index: int) -> AsyncIterator[Chunk]:
        """What the connection sends, from after ``last_index`` on (RPC ``FunctionCallGetDataIn``).

        Goes on until the reader has enough. Raises ``NotFoundError`` if it asks for what is no
        longer kept.
        """
        index = last_index
        if index < self._in_lost:
            raise NotFoundError(f"message {index + 1} of this request is no longer kept")
        if not self._in and self._announced:
            await self._patience()
        while True:
            found = [entry for entry in self._in if entry[0] > index]
            for index, message in found:
                yield Chunk(index, DATA_FORMAT_ASGI, message)
                self._taken(index, message)
            if not found:
                self._changed.clear()
                await self._changed.wait()

    async def _patience(self) -> None:
        try:
            async with asyncio.timeout(self._announce_after_s):
                while not self._in:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self.push(self._announced)

    def _taken(self, index: int, message: bytes) -> None:
        if index <= self._in_read:
            return
        self._in_read = index
        self._in_unread -= len(message) + _CHUNK_COST
        if self._in_kept > REPLAY_BYTES_MAX:
            while self._in and self._in[0][0] <= self._in_read:
                self._in_lost, dropped = self._in.popleft()
                self._in_kept -= len(dropped) + _CHUNK_COST
        self._room.set()

    async def put(self, chunks: list[Chunk]) -> None:
        """Take a part of the answer (RPC ``FunctionCallPutDataOut``); waits while it is not read."""
        while self._out_size > OUT_BYTES_MAX and not self._closed:
            self._room.clear()
            await self._room.wait()
        for chunk in chunks:
            if chunk.index > self._out_last:  # a repeated one came in an earlier try
                self._out_last = chunk.index
                if not self._closed:
                    self._out.append(chunk)
                    self._out_size += chunk.size
        self._wake()

    # ── the platform's side ─────────────────────────────────────────────────────────────────

    def finish(self, output: Output) -> None:
        """The input has ended."""
        self.output = output
        self._wake()
        self._room.set()

    def rewind(self) -> bool:
        """Begin anew with another container, if nothing of an answer came and all can be resent."""
        if self._out_last or self._in_lost or self._closed:
            return False
        self._in_read = 0
        self._in_unread = self._in_kept
        return True

    @property
    def is_closed(self) -> bool:
        """Whether the connection is gone."""
        return self._closed

    @property
    def received(self) -> int:
        """How many chunks of an answer came."""
        return self._out_last

    def _wake(self) -> None:
        self._changed.set()
