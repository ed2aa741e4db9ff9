"""Connections to containers whose web server speaks HTTP/2: one for each, with all its requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Any, Final, cast

import structlog
from ngh2 import (
    Configuration,
    Connection,
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    Event,
    GoAwayReceived,
    NGH2Error,
    ResponseReceived,
    Role,
    Setting,
    StreamClosed,
    StreamReset,
    TrailersReceived,
)

from homeport.web.requests import Message, Receive

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Headers = list[tuple[bytes, bytes]]
Part = ResponseReceived | DataReceived | TrailersReceived
"""Of an answer."""

UNSENT_MAX: Final = 256 * 1024
"""Bytes of a request that wait for its container before its client is not read any more."""
STREAM_WINDOW: Final = 1024 * 1024
"""Bytes of an answer that a container may send ahead of its client."""
CONNECTION_WINDOW: Final = 64 * 1024 * 1024
_CONFIGURATION: Final = Configuration(auto_window_update=False)


class GoneError(Exception):
    """There will be no (more) answer; if ``untouched``, the container has not begun with it."""

    def __init__(self, text: str, *, untouched: bool) -> None:
        super().__init__(text)
        self.untouched = untouched


class Http2Upstreams:
    """The connections, by container."""

    def __init__(self) -> None:
        self._open: dict[str, asyncio.Task[Http2Upstream]] = {}

    async def connect(self, task_id: str, address: str, port: int) -> Http2Upstream:
        """The connection to that container. Raises ``OSError`` if nothing listens."""
        opening = self._open.get(task_id)
        if opening is None or (opening.done() and not _is_good(opening)):
            opening = asyncio.get_running_loop().create_task(self._connect(address, port))
            opening.add_done_callback(lambda _: self._forget_if_bad(task_id))
            self._open[task_id] = opening
        return await asyncio.shield(opening)

    async def _connect(self, address: str, port: int) -> Http2Upstream:
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(Http2Upstream, address, port)
        return upstream

    def _forget_if_bad(self, task_id: str) -> None:
        opening = self._open.get(task_id)
        if opening is not None and opening.done() and not _is_good(opening):
            del self._open[task_id]
        elif opening is not None and opening.done():
            opening.result().on_close = lambda: self._forget_if_bad(task_id)

    def close(self) -> None:
        """Close all."""
        for opening in list(self._open.values()):
            if opening.done() and _is_good(opening):
                opening.result().close()
            opening.cancel()
        self._open.clear()


def _is_good(opening: asyncio.Task[Http2Upstream]) -> bool:
    return (
        not opening.cancelled()
        and opening.exception() is None
        and opening.result().can_send_request
    )


class Exchange:
    """One request and its answer. Parts of the answer that are not taken hold the container back."""

    def __init__(self, connection: Http2Upstream, stream_id: int) -> None:
        self._connection = connection
        self.stream_id = stream_id
        self._events: deque[Part] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._failure: GoneError | None = None
        self.ended = False
        """The answer is complete."""

    def add(self, event: Part) -> None:
        self._events.append(event)
        self._changed.set()

    def fail(self, text: str, *, untouched: bool = False) -> None:
        """Nothing more will come."""
        self._failure = self._failure or GoneError(text, untouched=untouched)
        self._changed.set()
        self._room.set()

    def wake(self) -> None:
        """Something was sent."""
        self._room.set()

    async def next(self) -> Part:
        """The next part of the answer. Raises ``GoneError``."""
        while not self._events:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        return self._events.popleft()

    def taken(self, size: int) -> None:
        """So many bytes of the answer are out of the way."""
        self._connection.acknowledge(self.stream_id, size)

    async def upload(self, receive: Receive, *, has_body: bool) -> None:
        """Pass on what the client sends, until it leaves."""
        while True:
            message: Message = await receive()
            if message["type"] != "http.request":
                self._connection.reset(self.stream_id)
                self.fail("the client went away")
                return
            if not has_body:
                continue
            last = not message.get("more_body")
            has_body = not last
            self._connection.send(self.stream_id, message.get("body", b""), last=last)
            while self._connection.unsent(self.stream_id) > UNSENT_MAX and not self._failure:
                self._room.clear()
                await self._room.wait()

    def leave(self) -> None:
        """The request is over, complete or not."""
        if not self.ended and self._failure is None:
            self._connection.reset(self.stream_id)
        for event in self._events:
            if isinstance(event, DataReceived):
                self.taken(len(event.data))
        self._events.clear()
        self._connection.forget(self.stream_id)


class Http2Upstream(asyncio.Protocol):
    """A connection to a container's port."""

    def __init__(self) -> None:
        self._http2 = Connection(Role.CLIENT, _CONFIGURATION)
        self._exchanges: dict[int, Exchange] = {}
        self._flush_scheduled = False
        self._paused = False
        self._closed = False
        self.on_close: Any = None

    @property
    def can_send_request(self) -> bool:
        """Whether it takes a further request."""
        return not self._closed and self._http2.can_send_request

    def request(self, headers: Headers, *, has_body: bool) -> Exchange:
        """Send a request. Raises ``GoneError`` if the connection takes none any more."""
        try:
            if self._closed:
                raise GoneError("its web server closed the connection", untouched=True)
            stream_id = self._http2.send_request(headers, end_stream=not has_body)
        except NGH2Error as error:
            raise GoneError(f"no request can be sent to it ({error})", untouched=True) from None
        exchange = self._exchanges[stream_id] = Exchange(self, stream_id)
        self._flush_soon()
        return exchange

    # ── for exchanges ───────────────────────────────────────────────────────────────────────

    def send(self, stream_id: int, data: bytes, *, last: bool) -> None:
        if data or last:
            with contextlib.suppress(NGH2Error):  # the stream may be closed
                self._http2.send_data(stream_id, data, end_stream=last)
            self._flush_soon()

    def unsent(self, stream_id: int) -> int:
        return self._http2.queued_body_size(stream_id)

    def acknowledge(self, stream_id: int, size: int) -> None:
        with contextlib.suppress(NGH2Error):
            self._http2.acknowledge_received_data(size, stream_id)
        self._flush_soon()

    def reset(self, stream_id: int) -> None:
        with contextlib.suppress(NGH2Error):
            self._http2.reset_stream(stream_id, ErrorCode.CANCEL)
        self._flush_soon()

    def forget(self, stream_id: int) -> None:
        self._exchanges.pop(stream_id, None)

    def close(self) -> None:
        if not self._closed:
            self._transport.close()

    # ── asyncio.Protocol ────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        self._http2.initiate_connection(
            {Setting.ENABLE_PUSH: 0, Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW}
        )
        self._http2.set_local_window_size(CONNECTION_WINDOW)
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            self._http2.receive_data(data)
            self._handle(self._http2.events())
        except NGH2Error as error:
            log.warning("a web server in a container spoke no HTTP/2", error=str(error))
            self._lost("its web server does not speak HTTP/2")
            self._transport.abort()
            return
        self._flush_soon()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost("its web server closed the connection")

    def _lost(self, text: str) -> None:
        self._closed = True
        for exchange in list(self._exchanges.values()):
            exchange.fail(text)
        if self.on_close is not None:
            self.on_close()

    # ── HTTP/2 ──────────────────────────────────────────────────────────────────────────────

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, GoAwayReceived):
                for stream_id, exchange in list(self._exchanges.items()):
                    if stream_id > event.last_stream_id:
                        exchange.fail("its web server is stopping", untouched=True)
            elif isinstance(event, ConnectionClosed):
                self._loop.call_soon(self._transport.close)
            elif isinstance(event, StreamReset | StreamClosed):
                self._on_end(event)
            elif isinstance(event, ResponseReceived | DataReceived | TrailersReceived):
                exchange = self._exchanges.get(event.stream_id)
                if exchange is None:
                    if isinstance(event, DataReceived):
                        self.acknowledge(event.stream_id, len(event.data))
                    continue
                if isinstance(event, TrailersReceived) or event.end_stream:
                    exchange.ended = True
                exchange.add(event)

    def _on_end(self, event: StreamReset | StreamClosed) -> None:
        exchange = self._exchanges.get(event.stream_id)
        if exchange is not None and not exchange.ended:
            refused = event.error_code == ErrorCode.REFUSED_STREAM
            exchange.fail("its web server gave the request up", untouched=refused)
        elif exchange is not None:
            exchange.wake()

    def _flush_soon(self) -> None:
        if not self._flush_scheduled and not self._closed:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        while not (self._paused or self._closed or self._transport.is_closing()):
            try:
                data = self._http2.data_to_send(UNSENT_MAX)
                events = self._http2.events()
            except NGH2Error as error:
                self._lost(f"its web server does not speak HTTP/2 ({error})")
                self._transport.abort()
                return
            if data:
                self._transport.write(data)
            if events:
                self._handle(events)
            if len(data) < UNSENT_MAX:
                break
        for exchange in list(self._exchanges.values()):
            exchange.wake()
