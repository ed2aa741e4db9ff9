"""One HTTP/2 connection that carries gRPC calls."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import structlog
from ngh2 import (
    Configuration,
    Connection,
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    Event,
    NGH2Error,
    RequestReceived,
    Role,
    Setting,
    StreamClosed,
    StreamReset,
    TrailersReceived,
)

from homeport.transport.dispatch import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    INTERNAL,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    Dispatcher,
    IncomingCall,
    StatusError,
    Trailers,
)
from homeport.transport.headers import (
    RESPONSE_HEADERS,
    STATUS_OK,
    decode_headers,
    encode_trailers,
    parse_timeout,
    status_trailers,
)
from homeport.transport.rpc_stream import PREFIX, RpcStream, mib

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_MIB = 1024 * 1024
CONNECTION_WINDOW = 64 * _MIB
STREAM_WINDOW = 16 * _MIB
FRAME_BYTES = 256 * 1024
"""Largest DATA frame accepted: fewer, larger frames cost Python less per byte."""
WRITE_BYTES = 1 * _MIB
"""Most bytes framed at a time; also the transport's buffer above which framing pauses."""
STREAM_UNSENT_MAX = 2 * _MIB
"""A streaming answer is not pulled further while more than this of it is unsent …"""
CONNECTION_UNSENT_MAX = 64 * _MIB
"""… or anything of it, while the whole connection has more than this unsent."""
_JOIN_MAX = 64 * 1024
_TIMEOUT_MAX_S = 10 * 365 * 86400.0
_CONFIGURATION = Configuration(
    # Clients that end thousands of waiting calls at once are normal here.
    stream_reset_rate_limit=(50_000, 5_000),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a server, see ``GrpcServer``."""

    message_bytes_max: int
    streams_max: int
    inbound_bytes_max: int
    outbound_bytes_max: int


@dataclass(slots=True)
class Shared:
    """What the connections of one server have in common."""

    dispatcher: Dispatcher
    limits: Limits
    connections: set[GrpcProtocol] = field(default_factory=lambda: set[GrpcProtocol]())
    tasks: set[asyncio.Task[None]] = field(default_factory=lambda: set[asyncio.Task[None]]())
    stopping: str = ""
    """The sentence for new calls once the server stops."""
    closed: asyncio.Event | None = None

    async def wait_closed(self, timeout_s: float) -> None:
        """Until there is no connection, or ``timeout_s`` has passed."""
        if not self.connections:
            return
        self.closed = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.closed.wait(), timeout_s)

    def forget(self, connection: GrpcProtocol) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        if not self.connections and self.closed is not None:
            self.closed.set()


class GrpcProtocol(asyncio.Protocol):
    """The server's side of one connection; made by ``GrpcServer.protocol_factory``.

    Everything said within one turn of the event loop leaves in one write.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._dispatcher = shared.dispatcher
        self._limits = shared.limits
        self._http2 = Connection(Role.SERVER, _CONFIGURATION)
        self._streams: dict[int, RpcStream] = {}
        self._blocked: set[RpcStream] = set()
        self._inbound = 0
        self._peer = ""
        self._flush_scheduled = False
        self._paused = False
        self._closed = False

    # ── the transport's calls ─────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have asyncio.Transport's methods but are not of its class.
        transport = cast(asyncio.Transport, transport)
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._peer = prepare_socket(transport)
        transport.set_write_buffer_limits(high=WRITE_BYTES)
        self._http2.initiate_connection(
            {
                Setting.MAX_CONCURRENT_STREAMS: self._limits.streams_max,
                Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                Setting.MAX_FRAME_SIZE: FRAME_BYTES,
            }
        )
        self._http2.set_local_window_size(CONNECTION_WINDOW)
        self._shared.connections.add(self)
        self._schedule_flush()

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        try:
            self._http2.receive_data(data)
            self._handle(self._http2.events())
        except NGH2Error as error:
            log.info("connection ended: not valid HTTP/2", peer=self._peer, error=str(error))
            self.abort()
            return
        self._schedule_flush()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._schedule_flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            self._drop(stream)
        self._shared.forget(self)

    # ── stopping ──────────────────────────────────────────────────────────────────────────────

    def begin_stop(self) -> None:
        """End what only waits; close as soon as nothing runs any more."""
        for stream in list(self._streams.values()):
            if stream.is_stream or stream.call.interruptible or not stream.ended:
                self._end(stream, UNAVAILABLE, self._shared.stopping)
        self._close_if_done()

    def end_calls(self, status: int, sentence: str) -> None:
        """Answer every running RPC with ``status`` and cancel its task."""
        for stream in list(self._streams.values()):
            self._end(stream, status, sentence)

    def shut(self) -> None:
        """Say GOAWAY and close, after what is buffered."""
        if self._closed:
            return
        with contextlib.suppress(NGH2Error):
            self._flush()
            self._http2.send_goaway(ErrorCode.NO_ERROR)
        self._flush()
        self._closed = True
        self._transport.close()

    def abort(self) -> None:
        """Close at once; RPCs that run are cancelled."""
        self._closed = True
        self._transport.abort()

    def _close_if_done(self) -> None:
        if self._shared.stopping and not self._streams and not self._closed:
            self._loop.call_soon(self._shut_if_done)

    def _shut_if_done(self) -> None:
        if not self._streams:
            self.shut()

    # ── HTTP/2 events ─────────────────────────────────────────────────────────────────────────

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            kind = type(event)
            if kind is DataReceived:
                self._on_data(event)  # type: ignore[arg-type]
            elif kind is RequestReceived:
                self._on_request(event)  # type: ignore[arg-type]
            elif kind is StreamClosed or kind is StreamReset:
                stream = self._streams.pop(event.stream_id, None)  # type: ignore[attr-defined]
                if stream is not None:
                    self._drop(stream)
                    self._close_if_done()
            elif kind is TrailersReceived:
                stream = self._streams.get(event.stream_id)  # type: ignore[attr-defined]
                if stream is not None:
                    self._on_request_end(stream)
            elif kind is ConnectionClosed:
                self._loop.call_soon(self._close_after_goaway)

    def _close_after_goaway(self) -> None:
        if not self._closed:
            self._flush()
            self._closed = True
            self._transport.close()

    def _on_request(self, event: RequestReceived) -> None:
        metadata = decode_headers(event.headers)
        stream_id = event.stream_id
        path = metadata.pop(":path", "")
        metadata.pop(":scheme", None)
        method = metadata.pop(":method", "")
        if method != "POST" or not metadata.get("content-type", "").startswith("application/grpc"):
            self._refuse(stream_id, b"415" if method == "POST" else b"405")
            return
        if ":authority" not in metadata and "host" in metadata:
            metadata[":authority"] = metadata["host"]
        call = IncomingCall(path, metadata, None, self._peer)
        is_stream = self._dispatcher.is_stream(path)
        stream = RpcStream(stream_id, call, bool(is_stream))
        self._streams[stream_id] = stream
        try:
            self._admit(stream, is_stream)
        except StatusError as error:
            self._end(stream, error.status, error.message)
        if event.end_stream:
            self._on_request_end(stream)

    def _refuse(self, stream_id: int, status: bytes) -> None:
        """Answer something that is no gRPC request."""
        with contextlib.suppress(NGH2Error):  # it may be reset already
            self._http2.send_response(stream_id, [(b":status", status)], end_stream=True)

    def _admit(self, stream: RpcStream, is_stream: bool | None) -> None:
        call = stream.call
        if self._shared.stopping:
            raise StatusError(UNAVAILABLE, self._shared.stopping)
        if is_stream is None:
            raise StatusError(UNIMPLEMENTED, f"there is no method {call.path} here")
        unsent = self._http2.queued_body_size()
        if unsent > self._limits.outbound_bytes_max:
            raise StatusError(
                RESOURCE_EXHAUSTED,
                f"{mib(unsent)} of answers wait to be read on this connection, over the limit of "
                f"{mib(self._limits.outbound_bytes_max)}; read them first",
            )
        timeout = call.metadata.get("grpc-timeout")
        if timeout is not None:
            try:
                call.timeout_s = parse_timeout(timeout)
            except ValueError as error:
                raise StatusError(INVALID_ARGUMENT, str(error)) from None
            stream.timer = self._loop.call_later(
                min(call.timeout_s, _TIMEOUT_MAX_S), self._expire, stream
            )

    def _on_data(self, event: DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        data = event.data
        if stream.answered:
            self._discard(stream, len(data))
        else:
            try:
                before = stream.received
                stream.feed(data, self._limits.message_bytes_max)
                self._inbound += stream.received - before
                if self._inbound > self._limits.inbound_bytes_max:
                    raise StatusError(
                        RESOURCE_EXHAUSTED,
                        f"the unfinished requests of this connection are over the limit of "
                        f"{mib(self._limits.inbound_bytes_max)}; send fewer at a time",
                    )
            except StatusError as error:
                self._end(stream, error.status, error.message)
        if event.end_stream:
            self._on_request_end(stream)

    def _discard(self, stream: RpcStream, size: int) -> None:
        # The rest of a refused request is read and thrown away: a client that is still sending
        # sees the status only if its stream is left to end by itself.
        stream.discarded += size
        if stream.discarded > 2 * self._limits.message_bytes_max:
            with contextlib.suppress(NGH2Error):
                self._http2.reset_stream(stream.stream_id, ErrorCode.NO_ERROR)

    def _on_request_end(self, stream: RpcStream) -> None:
        stream.ended = True
        if stream.answered:
            return
        self._inbound -= stream.received
        try:
            body = stream.take_body()
        except StatusError as error:
            stream.received = 0
            self._end(stream, error.status, error.message)
            return
        stream.received = 0
        run = self._run_stream if stream.is_stream else self._run_unary
        task = self._loop.create_task(run(stream, body))
        stream.task = task
        tasks = self._shared.tasks
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _drop(self, stream: RpcStream) -> None:
        """The stream is closed, by either side: nobody waits for the rest."""
        stream.answered = True
        self._release(stream)

    def _release(self, stream: RpcStream) -> None:
        """Give up what a stream holds; its task is cancelled if it still runs."""
        self._inbound -= stream.received
        stream.received = 0
        stream.drop_body()
        self._blocked.discard(stream)
        timer, stream.timer = stream.timer, None
        if timer is not None:
            timer.cancel()
        task, stream.task = stream.task, None
        if task is not None and not task.done():
            task.cancel()

    def _expire(self, stream: RpcStream) -> None:
        stream.timer = None
        self._end(
            stream,
            DEADLINE_EXCEEDED,
            f"{stream.call.path} did not finish within its deadline of {stream.call.timeout_s:g} s",
        )

    # ── running RPCs ──────────────────────────────────────────────────────────────────────────

    async def _run_unary(self, stream: RpcStream, body: bytes) -> None:
        try:
            reply = await self._dispatcher.unary(stream.call, body)
        except StatusError as error:
            self._finish(stream, error.status, error.message, error.trailers)
        except asyncio.CancelledError:
            self._finish(stream, CANCELLED, f"{stream.call.path} was cancelled in the server")
            raise
        except Exception as error:
            self._finish_broken(stream, error)
        else:
            if not stream.answered:
                self._send_message(stream, reply)
                self._finish(stream, 0, "", stream.call.trailers)

    async def _run_stream(self, stream: RpcStream, body: bytes) -> None:
        messages: AsyncIterator[bytes] | None = None
        try:
            messages = self._dispatcher.stream(stream.call, body)
            async for message in messages:
                if stream.answered:
                    return
                self._send_message(stream, message)
                await self._wait_for_room(stream)
        except StatusError as error:
            self._finish(stream, error.status, error.message, error.trailers)
        except asyncio.CancelledError:
            self._finish(stream, CANCELLED, f"{stream.call.path} was cancelled in the server")
            raise
        except Exception as error:
            self._finish_broken(stream, error)
        else:
            self._finish(stream, 0, "", stream.call.trailers)
        finally:
            await _close_iterator(messages, stream.call.path)

    async def _wait_for_room(self, stream: RpcStream) -> None:
        while not stream.answered and not self._has_room(stream):
            stream.room = self._loop.create_future()
            self._blocked.add(stream)
            await stream.room

    def _has_room(self, stream: RpcStream) -> bool:
        unsent = self._http2.queued_body_size(stream.stream_id)
        return unsent == 0 or (
            unsent <= STREAM_UNSENT_MAX and self._http2.queued_body_size() <= CONNECTION_UNSENT_MAX
        )

    def _finish_broken(self, stream: RpcStream, error: Exception) -> None:
        log.error("rpc failed", path=stream.call.path, peer=self._peer, exc_info=error)
        self._finish(
            stream,
            INTERNAL,
            f"{stream.call.path} failed in the server ({type(error).__name__}); its log has the details",
        )

    def _end(self, stream: RpcStream, status: int, message: str) -> None:
        """Answer now and cancel the task."""
        self._finish(stream, status, message)
        self._release(stream)

    # ── answers ───────────────────────────────────────────────────────────────────────────────

    def _send_message(self, stream: RpcStream, message: bytes) -> None:
        prefix = len(message).to_bytes(PREFIX, "big")
        http2 = self._http2
        stream_id = stream.stream_id
        try:
            if not stream.begun:
                stream.begun = True
                http2.send_response(stream_id, RESPONSE_HEADERS)
            if len(message) <= _JOIN_MAX:
                http2.send_data(stream_id, prefix + message)
            else:
                http2.send_data(stream_id, prefix)
                http2.send_data(stream_id, message)
        except NGH2Error:
            # Stream or connection is gone; the event that says so is on its way.
            stream.answered = True
        self._schedule_flush()

    def _finish(
        self, stream: RpcStream, status: int, message: str, extra: Trailers | None = None
    ) -> None:
        """Send the status, once."""
        if stream.answered:
            return
        stream.answered = True
        timer, stream.timer = stream.timer, None
        if timer is not None:
            timer.cancel()
        trailers = status_trailers(status, message) if status else STATUS_OK
        if extra:
            encoded, dropped = encode_trailers(extra)
            trailers = trailers + encoded
            if dropped:
                log.warning("trailers left out", path=stream.call.path, names=dropped)
        with contextlib.suppress(NGH2Error):  # as above
            if stream.begun:
                self._http2.send_trailers(stream.stream_id, trailers)
            else:
                headers = RESPONSE_HEADERS + trailers
                self._http2.send_response(stream.stream_id, headers, end_stream=True)
        self._schedule_flush()

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        http2 = self._http2
        while not self._paused and not self._closed:
            try:
                data = http2.data_to_send(WRITE_BYTES)
                events = http2.events()
            except NGH2Error as error:
                log.info("connection ended", peer=self._peer, error=str(error))
                self.abort()
                return
            if data:
                self._transport.write(data)
            if events:
                self._handle(events)
            if len(data) < WRITE_BYTES:
                break
        if self._blocked:
            self._wake_blocked()

    def _wake_blocked(self) -> None:
        for stream in [stream for stream in self._blocked if self._has_room(stream)]:
            self._blocked.discard(stream)
            stream.wake()


async def _close_iterator(messages: AsyncIterator[bytes] | None, path: str) -> None:
    close = getattr(messages, "aclose", None)
    if close is None:
        return
    try:
        await close()
    except Exception as error:
        log.error("a stream did not close cleanly", path=path, exc_info=error)


def prepare_socket(transport: asyncio.Transport) -> str:
    """Set a TCP socket up for RPCs (no delay; a vanished peer is noticed); returns the peer's name."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return "unix"
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    peer = transport.get_extra_info("peername")
    return f"{peer[0]}:{peer[1]}" if peer else "tcp"
