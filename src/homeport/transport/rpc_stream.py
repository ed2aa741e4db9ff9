"""One RPC on one HTTP/2 stream: the request message as it comes in, and how far the answer is."""

from __future__ import annotations

import asyncio

from homeport.transport.dispatch import (
    INVALID_ARGUMENT,
    UNIMPLEMENTED,
    IncomingCall,
    StatusError,
)
from homeport.transport.upload import Incoming

PREFIX = 5
"""A gRPC message is preceded by one byte of flags and four of length."""
_SMALL_PART = 4096


def mib(count: int) -> str:
    """A byte count for a sentence."""
    return f"{count / (1024 * 1024):g} MiB" if count >= 1024 * 1024 else f"{count} bytes"


class RpcStream:
    """State of one RPC, owned by its connection."""

    __slots__ = (
        "_head",
        "_length",
        "_parts",
        "answered",
        "begun",
        "call",
        "discarded",
        "ended",
        "is_stream",
        "received",
        "room",
        "stream_id",
        "task",
        "timer",
        "upload",
    )

    def __init__(self, stream_id: int, call: IncomingCall, is_stream: bool) -> None:
        self.stream_id = stream_id
        self.call = call
        self.is_stream = is_stream
        self.received = 0
        """Bytes of the request message that are held."""
        self.ended = False
        """The client has said all it had to say."""
        self.begun = False
        """The response headers are out."""
        self.answered = False
        """The status is out: nothing more may be sent."""
        self.discarded = 0
        """Bytes that came in after the answer."""
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.room: asyncio.Future[None] | None = None
        """What a streaming answer waits for while too much of it is unsent."""
        self.upload: Incoming | None = None
        """The request, if it is a stream of messages."""
        self._head: bytes = b""
        self._length = -1
        self._parts: list[bytes] = []

    def feed(self, data: bytes, message_bytes_max: int) -> None:
        """Take a piece of the request body. Raises ``StatusError`` if it cannot be accepted."""
        if self._length < 0:
            if self._head:
                data = self._head + data
            if len(data) < PREFIX:
                self._head = data
                return
            self._check_prefix(data, message_bytes_max)
            data = data[PREFIX:]
            self._head = b""
        if not data:
            return
        if self.received + len(data) > self._length:
            raise StatusError(
                UNIMPLEMENTED,
                f"{self.call.path} takes one request message; a stream of requests is not implemented",
            )
        self.received += len(data)
        parts = self._parts
        if parts and len(parts[-1]) < _SMALL_PART:
            parts[-1] += data  # many tiny frames must not cost an object each
        else:
            parts.append(data)

    def _check_prefix(self, data: bytes, message_bytes_max: int) -> None:
        if data[0]:
            encoding = self.call.metadata.get("grpc-encoding", "unnamed")
            raise StatusError(
                UNIMPLEMENTED,
                f"the request message is compressed (grpc-encoding: {encoding}); only uncompressed messages (identity) are accepted",
            )
        length = int.from_bytes(data[1:PREFIX], "big")
        if length > message_bytes_max:
            # Not RESOURCE_EXHAUSTED, as gRPC libraries would say: clients take that for "full, try
            # again", and would send the message for ever. They look for the 413 in the sentence.
            raise StatusError(
                INVALID_ARGUMENT,
                f"the request message of {length} bytes is over the limit of {message_bytes_max} bytes ({mib(message_bytes_max)}; status = '413'): send large data as arguments of a function or in files, or raise the setting message_bytes_max",
            )
        self._length = length

    def take_body(self) -> bytes:
        """The whole message after the end of the request. Raises ``StatusError`` if it is not whole."""
        if self._length < 0:
            what = "is cut off" if self._head else "has no message"
            raise StatusError(INVALID_ARGUMENT, f"the request to {self.call.path} {what}")
        if self.received < self._length:
            raise StatusError(
                INVALID_ARGUMENT,
                f"the request to {self.call.path} ended after {self.received} of {self._length} bytes of its message",
            )
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def drop_body(self) -> None:
        """Forget what came in."""
        self._parts = []
        self._head = b""

    def cancel_timer(self) -> None:
        """The deadline no longer matters."""
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()

    def wake(self) -> None:
        """Let a waiting streaming answer go on."""
        room, self.room = self.room, None
        if room is not None and not room.done():
            room.set_result(None)
