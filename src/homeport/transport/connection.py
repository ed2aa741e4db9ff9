"""One HTTP/2 connection that carries gRPC calls."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Coroutine
from typing import Any, cast

import structlog
from ngh2 import (
    Configuration,
    Connection,
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    Event,
    NGH2Error,
    PingAcknowledged,
    RequestReceived,
    Role,
    Setting,
    StreamClosed,
    StreamReset,
    TrailersReceived,
)

from homeport.transport.asgi_stream import Application, AsgiStream
from homeport.transport.dispatch import (
    DEADLINE_EXCEEDED,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    IncomingCall,
    StatusError,
)
from homeport.transport.headers import decode_headers, parse_timeout
from homeport.transport.replies import Replies
from homeport.transport.rpc_stream import RpcStream, mib
from homeport.transport.shared import Shared, prepare_socket
from homeport.transport.upload import Incoming, Uploads

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_MIB = 1024 * 1024
CONNECTION_WINDOW = 64 * _MIB
STREAM_WINDOW = 16 * _MIB
FRAME_BYTES = 256 * 1024
"""Largest DATA frame accepted: fewer, larger frames cost Python less per byte."""
WRITE_BYTES = 1 * _MIB
"""Most bytes framed at a time; also the transport's buffer above which framing pauses."""
UPLOAD_MESSAGE_MAX = 8 * _MIB
"""Largest message of a stream of requests; it has to fit the stream's window."""
DISCARD_BYTES_MAX = 2**32 + 1024
"""The largest message that gRPC can express: no honest client has more to say."""
PARTING_S = 1.0
"""How long a stopping server waits for a peer to say that it has read its last answer."""
_TIMEOUT_MAX_S = 10 * 365 * 86400.0
HEADER_LIST_BYTES_MAX = 64 * 1024
"""Of a request, counted as HTTP/2 counts it. Over that it is refused; over ``_HEADERS_READ_MAX`` it ends
the connection, and with that what others who share it have asked."""
_HEADERS_READ_MAX = 4 * HEADER_LIST_BYTES_MAX
_FIELD_BYTES = 32
# Clients that end thousands of waiting calls at once are normal here.
_RESET_RATE = (50_000, 5_000)
_CONFIGURATION = Configuration(
    stream_reset_rate_limit=_RESET_RATE, max_inbound_header_list_size=_HEADERS_READ_MAX
)
_MANUAL_WINDOWS = dataclasses.replace(_CONFIGURATION, auto_window_update=False)
"""With uploads or an application: what they have not read yet holds back their senders."""


class GrpcProtocol(asyncio.Protocol):
    """The server's side of one connection; made by ``GrpcServer.protocol_factory``.

    Everything said within one turn of the event loop leaves in one write.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._dispatcher = shared.dispatcher
        self._limits = shared.limits
        self._uploads = shared.uploads
        self._manual = shared.uploads is not None or shared.application is not None
        configuration = _MANUAL_WINDOWS if self._manual else _CONFIGURATION
        self._http2 = Connection(Role.SERVER, configuration)
        self._streams: dict[int, RpcStream] = {}
        self._requests: dict[int, AsgiStream] = {}
        self._replies = Replies(shared.dispatcher, self._http2, self._flush_soon)
        self._inbound = 0
        self._peer = ""
        self._flush_scheduled = False
        self._paused = False
        self._closed = False
        self._terminating = False
        self._parting: asyncio.TimerHandle | None = None

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
                Setting.MAX_HEADER_LIST_SIZE: HEADER_LIST_BYTES_MAX,
            }
        )
        self._http2.set_local_window_size(CONNECTION_WINDOW)
        self._shared.connections.add(self)
        self._flush_soon()

    def data_received(self, data: bytes) -> None:
        if self._closed or self._terminating:
            return
        try:
            self._http2.receive_data(data)
            self._handle(self._http2.events())
        except NGH2Error as error:
            log.info("connection ended: not valid HTTP/2", peer=self._peer, error=str(error))
            self.abort()
            return
        self._flush_soon()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        if self._parting is not None:
            self._parting.cancel()
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            self._drop(stream)
        requests = list(self._requests.values())
        self._requests.clear()
        for request in requests:
            request.drop()
        self._shared.forget(self)

    # ── stopping ──────────────────────────────────────────────────────────────────────────────

    def begin_stop(self) -> None:
        """End what only waits; close as soon as nothing runs any more."""
        for stream in list(self._streams.values()):
            if stream.is_stream or stream.call.interruptible or not stream.ended:
                self._end(stream, UNAVAILABLE, self._shared.stopping)
        self._part_if_done()

    def end_calls(self, status: int, sentence: str) -> None:
        """Answer every running RPC with ``status`` and cancel its task."""
        for stream in list(self._streams.values()):
            self._end(stream, status, sentence)
        for request in list(self._requests.values()):
            request.abort()

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

    def _part_if_done(self) -> None:
        """With nothing left to answer, ask by a ping whether the peer has read all of it."""
        if (
            not self._shared.stopping
            or self._streams
            or self._requests
            or self._closed
            or self._parting is not None
        ):
            return
        self._parting = self._loop.call_later(PARTING_S, self._on_parted)
        with contextlib.suppress(NGH2Error):
            self._http2.ping()
        self._flush_soon()

    def _on_parted(self) -> None:
        # A peer that reads its answer and the GOAWAY in one go (grpclib) drops the answer. It has
        # seen the answer before it acknowledged the ping.
        if self._parting is not None:
            self._parting.cancel()
            self._parting = None
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
                stream_id = cast(int, event.stream_id)  # type: ignore[attr-defined]
                stream = self._streams.pop(stream_id, None)
                if stream is not None:
                    self._drop(stream)
                    self._part_if_done()
                elif (request := self._requests.pop(stream_id, None)) is not None:
                    request.drop()
                    self._part_if_done()
            elif kind is TrailersReceived:
                stream_id = cast(int, event.stream_id)  # type: ignore[attr-defined]
                stream = self._streams.get(stream_id)
                if stream is not None:
                    self._on_request_end(stream)
                elif stream_id in self._requests:
                    self._requests[stream_id].end()
            elif kind is PingAcknowledged:
                self._loop.call_soon(self._on_parted)
            elif kind is ConnectionClosed:
                self._terminating = True
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
        size = sum(len(name) + len(value) + _FIELD_BYTES for name, value in event.headers)
        if size > HEADER_LIST_BYTES_MAX or method == "CONNECT":
            is_long = len(path) + _FIELD_BYTES > HEADER_LIST_BYTES_MAX
            self._refuse(
                stream_id, b"405" if method == "CONNECT" else b"414" if is_long else b"431"
            )
            return
        is_rpc = method == "POST" and metadata.get("content-type", "").startswith(
            "application/grpc"
        )
        if not is_rpc or self._shared.is_elsewhere(metadata.get(":authority", "")):
            if self._shared.application is not None and not self._shared.stopping:
                self._begin_request(event, self._shared.application)
                return
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
            if self._uploads is not None and self._uploads.takes(path):
                self._begin_upload(stream, self._uploads)
        except StatusError as error:
            self._end(stream, error.status, error.message)
        if event.end_stream:
            self._on_request_end(stream)

    def _begin_request(self, event: RequestReceived, application: Application) -> None:
        """A request that is no RPC."""
        request = AsgiStream(
            event.stream_id,
            self._http2,
            self._flush_soon,
            event.headers,
            self._peer,
            has_body=not event.end_stream,
        )
        self._requests[event.stream_id] = request
        if event.end_stream:
            request.end()
        task = request.task = self._loop.create_task(request.run(application))
        tasks = self._shared.tasks
        tasks.add(task)
        task.add_done_callback(tasks.discard)

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
        request = self._requests.get(event.stream_id)
        if request is not None:
            request.feed(event.data)
            if event.end_stream:
                request.end()
            return
        stream = self._streams.get(event.stream_id)
        data = event.data
        if self._manual and (stream is None or stream.upload is None or stream.answered):
            self._acknowledge(event.stream_id, len(data))
        if stream is None:
            return
        if stream.answered:
            self._discard(stream, len(data))
        elif stream.upload is not None:
            try:
                stream.upload.feed(data)
            except StatusError as error:
                self._end(stream, error.status, error.message)
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
        # (grpclib) learns the status only if its stream is not reset.
        stream.discarded += size
        if stream.discarded > DISCARD_BYTES_MAX:
            with contextlib.suppress(NGH2Error):
                self._http2.reset_stream(stream.stream_id, ErrorCode.NO_ERROR)

    def _on_request_end(self, stream: RpcStream) -> None:
        stream.ended = True
        if stream.answered:
            return
        if stream.upload is not None:
            stream.upload.end()
            return
        self._inbound -= stream.received
        try:
            body = stream.take_body()
        except StatusError as error:
            stream.received = 0
            self._end(stream, error.status, error.message)
            return
        stream.received = 0
        run = self._replies.run_stream if stream.is_stream else self._replies.run_unary
        self._run(stream, run(stream, body))

    def _run(self, stream: RpcStream, work: Coroutine[Any, Any, None]) -> None:
        stream.task = task = self._loop.create_task(work)
        tasks = self._shared.tasks
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def _begin_upload(self, stream: RpcStream, uploads: Uploads) -> None:
        stream_id = stream.stream_id
        limit = min(self._limits.message_bytes_max, UPLOAD_MESSAGE_MAX)
        stream.upload = Incoming(limit, lambda size: self._acknowledge(stream_id, size))
        self._run(stream, self._replies.run_upload(stream, uploads, stream.upload))

    def _acknowledge(self, stream_id: int, size: int) -> None:
        """Bytes of a request are out of the way: the peer may send as many more."""
        with contextlib.suppress(NGH2Error):  # the stream may be gone
            self._http2.acknowledge_received_data(size, stream_id)
        self._flush_soon()

    def _drop(self, stream: RpcStream) -> None:
        """The stream is closed, by either side: nobody waits for the rest."""
        stream.answered = True
        self._release(stream)

    def _release(self, stream: RpcStream) -> None:
        """Give up what a stream holds; its task is cancelled if it still runs."""
        self._inbound -= stream.received
        stream.received = 0
        stream.drop_body()
        if stream.upload is not None:
            stream.upload.drop()
        self._replies.forget(stream)
        stream.cancel_timer()
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

    def _end(self, stream: RpcStream, status: int, message: str) -> None:
        """Answer now and cancel the task."""
        self._replies.finish(stream, status, message)
        self._release(stream)

    # ── sending ───────────────────────────────────────────────────────────────────────────────

    def _flush_soon(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        http2 = self._http2
        # Between its end and connection_lost a transport of uvloop raises on a write.
        while not self._paused and not self._closed and not self._transport.is_closing():
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
        self._replies.wake()
        for request in list(self._requests.values()):
            request.wake()
