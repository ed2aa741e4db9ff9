"""Length-prefixed msgpack frames over a byte stream, written in batches.

A frame is a 4-byte big-endian length and that many bytes of msgpack. ``FrameProtocol`` gathers
what is sent within one turn of the event loop into one write: under load many small messages
leave in one system call, and an idle link adds no delay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, cast

import msgspec

from homeport.kernel.decoding import UNREADABLE
from homeport.link.messages import FRAME_BYTES_MAX, Message

M = TypeVar("M")
_HEADER = 4


class LinkClosedError(Exception):
    """The other side is gone; what was not acknowledged is sent again after a reconnect."""


class FrameProtocol(asyncio.Protocol, Generic[M]):
    """One end of a link: ``send`` messages, get each received one through ``on_message``.

    ``on_message`` runs on the event loop and must not block; ``on_close`` is called once.
    ``incoming`` is the union type of what the other side may say.
    """

    def __init__(
        self,
        incoming: type[M] | object,
        on_message: Callable[[M], None],
        on_close: Callable[[Exception | None], None],
    ) -> None:
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(incoming)  # type: ignore[arg-type]
        self._encoder = msgspec.msgpack.Encoder()
        self._on_message = on_message
        self._on_close = on_close
        self._buffer = bytearray()
        self._outgoing: list[bytes] = []
        self._flush_scheduled = False
        self._transport: asyncio.Transport | None = None
        self._closed = False
        self._held: asyncio.Future[None] | None = None
        self._drained = asyncio.Event()
        self._drained.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have asyncio.Transport's methods but are not of its class.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=16 * 1024 * 1024)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._drained.set()
        self._on_close(exc)

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()

    async def drain(self) -> None:
        """Wait until the send buffer has room (senders of bulk data call it)."""
        await self._drained.wait()

    @property
    def is_congested(self) -> bool:
        """Whether the send buffer is full: ``drain`` would wait."""
        return not self._drained.is_set()

    @property
    def is_closed(self) -> bool:
        return self._closed

    def send(self, message: Message) -> None:
        """Queue ``message``; it leaves at the end of this event-loop turn.

        Raises ``LinkClosedError`` when the connection is gone.
        """
        if self._closed or self._transport is None:
            raise LinkClosedError("the link is closed")
        body = self._encoder.encode(message)
        self._outgoing.append(len(body).to_bytes(_HEADER, "big"))
        self._outgoing.append(body)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        transport = self._transport
        # Between its end and connection_lost a transport of uvloop raises on a write.
        if transport is not None and self._outgoing and not transport.is_closing():
            transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        position = 0
        available = len(buffer)
        while available - position >= _HEADER:
            length = int.from_bytes(buffer[position : position + _HEADER], "big")
            if length > FRAME_BYTES_MAX:
                self.close(f"a frame of {length} bytes is over the limit of {FRAME_BYTES_MAX}")
                return
            end = position + _HEADER + length
            if end > available:
                break
            frame = bytes(buffer[position + _HEADER : end])
            position = end
            try:
                message = self._decoder.decode(frame)
            except UNREADABLE as error:
                self.close(f"undecodable link message: {error}")
                return
            self._on_message(message)
        if position:
            del buffer[:position]

    def hold_until(self, room: Awaitable[None]) -> None:
        """Receive nothing more until ``room`` is done: the sender is held back, not buffered."""
        if self._transport is None or self._closed or self._held is not None:
            return
        self._transport.pause_reading()
        self._held = asyncio.ensure_future(room)
        self._held.add_done_callback(self._release)

    def _release(self, _held: asyncio.Future[None]) -> None:
        self._held = None
        if self._transport is not None and not self._closed:
            self._transport.resume_reading()

    def close(self, _reason: str = "") -> None:
        """Flush what is queued and close the connection."""
        if self._transport is not None and not self._closed:
            self._flush()
            self._transport.close()
