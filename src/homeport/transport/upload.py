"""RPCs whose request is a stream of messages: how these come in, and how fast."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from homeport.transport.dispatch import (
    INVALID_ARGUMENT,
    UNIMPLEMENTED,
    IncomingCall,
    StatusError,
)

_PREFIX = 5


class Uploads(Protocol):
    """Answers such RPCs. The task is cancelled as that of any other RPC."""

    def takes(self, path: str) -> bool:
        """Whether the request of ``path`` is a stream."""
        ...

    async def upload(self, call: IncomingCall, messages: AsyncIterator[bytes]) -> bytes:
        """The one response message. Raises ``StatusError``."""
        ...


class Incoming:
    """The messages of one request, in order; iterating takes them.

    ``consumed`` is told how many bytes of the stream have been taken: what was not is what the
    client's flow-control window lacks, so that an unread request stops its sender.
    """

    def __init__(self, message_bytes_max: int, consumed: Callable[[int], None]) -> None:
        self._message_bytes_max = message_bytes_max
        self._consumed = consumed
        self._buffer = bytearray()
        self._messages: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._held = 0
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Take a piece of the request body. Raises ``StatusError`` if it cannot be accepted."""
        self._held += len(data)
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _PREFIX:
            if buffer[start]:
                raise StatusError(UNIMPLEMENTED, "compressed messages are not accepted here")
            length = int.from_bytes(buffer[start + 1 : start + _PREFIX], "big")
            if length > self._message_bytes_max:
                raise StatusError(
                    INVALID_ARGUMENT,
                    f"a message of {length} bytes is over the limit of {self._message_bytes_max}",
                )
            end = start + _PREFIX + length
            if len(buffer) < end:
                break
            self._messages.append(bytes(buffer[start + _PREFIX : end]))
            start = end
        if start:
            del buffer[:start]
            self._wake.set()

    def end(self) -> None:
        """The client has said all."""
        self._ended = True
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._messages:
            if self._ended:
                if self._buffer:
                    raise StatusError(
                        INVALID_ARGUMENT, "the last message of the request is cut off"
                    )
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        message = self._messages.popleft()
        self._release(len(message) + _PREFIX)
        return message

    def drop(self) -> None:
        """Forget what was not taken."""
        self._messages.clear()
        self._buffer.clear()
        self._release(self._held)

    def _release(self, size: int) -> None:
        if size:
            self._held -= size
            self._consumed(size)
