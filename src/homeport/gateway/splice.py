"""The short way to web servers in containers: requests and answers passed on as bytes.

A connection of a client is parsed just enough to know whom each request is for and where it ends;
answers are passed on as they come and parsed only for their end. A request takes a place in a
container (a lease), so that concurrency limits and autoscaling hold as for any other input.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

import httptools
import structlog

from homeport.calls.lease import Lease, Place
from homeport.gateway import offers
from homeport.gateway.doorman import Doorman, Headers, Refusal
from homeport.gateway.errors import error_body
from homeport.gateway.head import HeadGuard
from homeport.gateway.linger import Linger
from homeport.gateway.upstream import BUFFER_BYTES, FULL, Upstream, Upstreams
from homeport.web.service import Target

log = structlog.get_logger(__name__)

ProtocolFactory = Callable[[], asyncio.Protocol]

REPLAY_BYTES_MAX: Final = 64 * 1024
"""A request up to that size is sent again if its connection to the container was stale."""
KEEP_ALIVE_S: Final = 75.0
"""A client's connection without a request is closed after that time."""
ATTEMPTS_MAX: Final = 8
RETRY_S: Final = (0.05, 1.0)
"""Before a request is sent again: first, and at most; doubled in between. That a container is gone is
known a little after its connections are."""
_BODY: Final = "no container yet for so much of a body"
_QUEUE: Final = "an earlier request has no answer yet"
_LAST: Final = "what came is no request"
_REPEATABLE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})
_OWN: Final = frozenset({b"modal-key", b"modal-secret", b"modal-authorization", b"connection"})
"""Headers that are not passed on as they are."""


@dataclass(slots=True)
class _Request:
    """One request of a client, as far as it came."""

    url: bytes = b""
    headers: Headers = field(default_factory=Headers)
    method: bytes = b""
    version: str = "1.1"
    keep_alive: bool = True
    is_upgrade: bool = False
    is_chunked: bool = False
    is_whole: bool = False
    waiting: list[bytes] = field(default_factory=list[bytes])
    """What is to be sent once there is a connection to the container."""
    waiting_size: int = 0
    sent: list[bytes] | None = field(default_factory=list[bytes])
    """What was sent, as long as it is small enough to be sent again."""
    sent_size: int = 0
    answered: bool = False
    """A part of the answer is on its way to the client."""
    attempts: int = 0
    arrived_at: float = 0.0
    """Unix seconds; 0 as long as it is for no container, and once it is told to be over."""
    task_id: str = ""
    """The container that has it."""


class Connections:
    """The open connections of clients."""

    def __init__(self) -> None:
        self._open: set[SpliceProtocol] = set()
        self._emptied = asyncio.Event()

    def add(self, connection: SpliceProtocol) -> None:
        self._open.add(connection)

    def discard(self, connection: SpliceProtocol) -> None:
        self._open.discard(connection)
        if not self._open:
            self._emptied.set()

    def all(self) -> list[SpliceProtocol]:
        return list(self._open)

    async def ended(self, timeout_s: float) -> None:
        """Until there is none, or ``timeout_s`` has passed."""
        self._emptied.clear()
        if self._open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._emptied.wait()


class SpliceProtocol(asyncio.Protocol):
    """A client's connection to web servers in containers."""

    def __init__(
        self,
        doorman: Doorman,
        pool: Upstreams,
        connections: Connections,
        others: Callable[[str], ProtocolFactory],
    ) -> None:
        self._doorman = doorman
        self._pool = pool
        self._others = others
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._incoming = _Request()
        self._requests: deque[_Request] = deque()
        """The one that is served, and those that came before its answer was out."""
        self._target: Target | None = None
        self._lease: Lease | None = None
        self._upstream: Upstream | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._tunnel = False
        self._upgraded = False
        self._closed = False
        self._held: set[str] = set()
        self._is_slow = False
        """The client has not taken what it was sent."""
        self._stopping = False
        self._idle: asyncio.TimerHandle | None = None
        self._is_between = True
        """No request is under way."""
        self._head = HeadGuard(self._end_with)
        self._last_word: Refusal | None = None
        """What is said once the requests before it are answered."""
        self._lingering: Linger | None = None
        """Set once everything is said: what still comes is not read but thrown away."""
        self._chunk: bytes | None = None
        """What is being parsed, if the request that is being read began with it."""
        self._successor: ProtocolFactory | None = None
        self._is_cut = False
        """The parser leaves out a body that is there: see ``offers``."""
        self._begun_with = b""
        """What its first request began with."""
        self._peer = b""
        self._scheme = b"http"

    # ── asyncio.Protocol ────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=BUFFER_BYTES)
        self._loop = asyncio.get_running_loop()
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]).encode() if peer else b"unknown"
        self._scheme = b"https" if transport.get_extra_info("sslcontext") else b"http"
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._tunnel:
            if self._upstream is not None:
                self._upstream.write(data)
            return
        if self._lingering is not None:
            self._lingering.heard()
            return
        if self._upgraded:  # and whether the container agrees is not known yet
            self._send_body(data)
            return
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        size = len(data)
        while data and not self._upgraded and self._successor is None:
            data = self._parse(data)
        self._chunk = None
        if self._successor is not None:
            self._hand_over(self._successor, self._begun_with)
        elif self._upgraded and data:
            self._send_body(data)
        elif (refusal := self._head.received(size, self._incoming.url)) is not None:
            self._end_with(refusal)

    def _parse(self, data: bytes) -> bytes:
        """Take requests from ``data``; what is left of it is to be looked at anew."""
        self._chunk = data if self._is_between and not self._requests else None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgraded = self._incoming.is_upgrade
            if self._is_cut:
                self._parser = offers.parser_of_body(self, self._incoming.headers)
                self._is_cut = False
            return data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            self._end_with(Refusal(400, f"This is not a valid HTTP request: {error}"))
        return b""

    def _hand_over(self, successor: ProtocolFactory, data: bytes) -> None:
        """From this request on the connection is another protocol's."""
        self._closed = True
        self._head.stop()
        self._connections.discard(self)
        if self._transport.is_closing():
            return
        protocol = successor()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(data)

    def pause_writing(self) -> None:
        self._is_slow = True
        if self._upstream is not None:
            self._upstream.pause()

    def resume_writing(self) -> None:
        self._is_slow = False
        if self._upstream is not None:
            self._upstream.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._connections.discard(self)
        self._head.stop()
        if self._lingering is not None:
            self._lingering.stop()
        if self._idle is not None:
            self._idle.cancel()
        if self._requests:
            self._is_over(self._requests[0])
        self._let_go(reusable=False)

    def abort(self) -> None:
        """End it in the middle of what it does."""
        self._transport.abort()

    def shutdown(self) -> None:
        """No further request; an idle connection is closed now."""
        self._stopping = True
        if not self._requests and not self._tunnel:
            self._transport.close()

    # ── the request, as it comes (httptools) ────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        if self._is_cut:
            return
        self._is_between = False
        self._incoming = _Request()
        self._head.begin()

    def on_url(self, url: bytes) -> None:
        if self._is_cut:
            return
        self._incoming.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_cut:
            return
        self._incoming.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._is_cut:
            return
        request = self._incoming
        too_long = self._head.complete(request.url, request.headers)
        if self._transport.is_closing() or self._successor is not None or self._is_done:
            return
        request.method = self._parser.get_method()
        request.version = self._parser.get_http_version()
        request.keep_alive = self._parser.should_keep_alive()
        request.is_upgrade = self._parser.should_upgrade()
        request.is_whole = not offers.has_body(request.headers)
        if request.is_upgrade and offers.has_offer(request.headers):
            request.is_upgrade = False
            request.headers = offers.without_offer(request.headers)
            self._is_cut = not request.is_whole
        request.is_chunked = any(
            name.lower() == b"transfer-encoding" and b"chunked" in value.lower()
            for name, value in request.headers
        )
        if too_long is not None:
            self._end_with(too_long)
            return
        self._requests.append(request)
        if len(self._requests) == 1:
            self._begin()
        else:
            self.hold(_QUEUE)

    def on_body(self, body: bytes) -> None:
        if self._successor is not None or self._is_done:
            return
        if self._incoming.is_chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body)
        self._send_body(body)

    def on_message_complete(self) -> None:
        if self._is_cut:
            return
        self._is_between = True
        self._chunk = None
        request = self._incoming
        request.is_whole = True
        if request.is_chunked and self._successor is None and not self._is_done:
            self._send_body(b"0\r\n\r\n")

    def _send_body(self, data: bytes) -> None:
        request = self._incoming
        if self._upstream is not None and self._requests and self._requests[0] is request:
            self._remember(request, data)
            self._upstream.write(data)
        else:
            request.waiting.append(data)
            request.waiting_size += len(data)
            if request.waiting_size > BUFFER_BYTES:
                self.hold(_BODY)

    # ── serving the first of the requests ───────────────────────────────────────────────────

    def _begin(self) -> None:
        request = self._requests[0]
        admitted = self._doorman.admit(request.headers)
        if isinstance(admitted, Refusal):
            if admitted.status == 421 and self._chunk is not None:
                self._requests.clear()
                self._successor = self._others(_host(request.headers))
                self._begun_with = self._chunk
            else:
                self._refuse(admitted)
            return
        self._target = admitted
        path = request.url.partition(b"?")[0]
        if self._doorman.control(admitted, path, request.headers, self._refuse_open):
            return
        request.arrived_at = time.time()
        request.waiting.insert(0, _head(request, self._peer, self._scheme))
        self._ask_for_place()

    def _ask_for_place(self) -> None:
        assert self._target is not None
        request = self._requests[0]
        request.attempts += 1
        opened = self._doorman.open(self._target, request.headers)
        if isinstance(opened, Refusal):
            self._refuse(opened)
            return
        self._lease = opened
        opened.on_change = self._lease_changed
        self._lease_changed()

    def _lease_changed(self) -> None:
        lease = self._lease
        if lease is None or self._target is None:
            return
        if lease.output is not None:
            if self._upstream is None and self._connecting is None:
                status = 503 if lease.output.result.status == 3 else 500
                self._give_up(status, lease.output.result.exception)
            # else: the connection to the container tells what became of the answer
        elif lease.place is not None and self._upstream is None and self._connecting is None:
            self._connect(lease.place)

    def _connect(self, place: Place) -> None:
        upstream = self._pool.take(place.task_id)
        if upstream is not None:
            self._use(upstream)
        else:
            self._connecting = self._loop.create_task(self._open(place))

    async def _open(self, place: Place) -> None:
        assert self._target is not None
        port = self._target.point.port
        try:
            _, upstream = await self._loop.create_connection(
                lambda: Upstream(self._pool, place.task_id), place.address, port
            )
        except OSError as error:
            self._connecting = None
            self._retry_or_give_up(f"nothing listens at port {port} of its container ({error})")
            return
        self._connecting = None
        if self._closed:
            upstream.abort()
        else:
            self._use(upstream)

    def _use(self, upstream: Upstream) -> None:
        request = self._requests[0]
        self._upstream = upstream
        request.task_id = upstream.task_id
        upstream.serve(self, request.method)
        if self._is_slow:  # it has the end of an earlier answer still to take
            upstream.pause()
        data = b"".join(request.waiting)
        request.waiting.clear()
        request.waiting_size = 0
        self._remember(request, data)
        upstream.write(data)
        self.go_on(_BODY)

    def _remember(self, request: _Request, data: bytes) -> None:
        if request.sent is not None:
            request.sent_size += len(data)
            if request.sent_size > REPLAY_BYTES_MAX:
                request.sent = None
            else:
                request.sent.append(data)

    # ── for the container's side ────────────────────────────────────────────────────────────

    def hold(self, reason: str) -> None:
        """Read nothing more of the client, as long as there is a ``reason``."""
        if not self._held and not self._closed:
            self._transport.pause_reading()
        self._held.add(reason)

    def go_on(self, reason: str) -> None:
        """That reason is no more."""
        if reason in self._held:
            self._held.discard(reason)
            if not self._held and not self._closed and not self._transport.is_closing():
                self._transport.resume_reading()

    def pass_back(self, data: bytes) -> None:
        if self._requests:
            request = self._requests[0]
            if not request.answered and not request.keep_alive:
                data = _with_close(data)
            request.answered = True
        if not self._closed:
            self._transport.write(data)

    def tunnel(self) -> None:
        """Both sides agreed on another protocol: bytes from now on."""
        self._tunnel = True
        if self._requests:
            request = self._requests[0]
            if request.waiting and self._upstream is not None:
                self._upstream.write(b"".join(request.waiting))
                request.waiting.clear()

    def answered(self, keep_alive: bool) -> None:
        """The answer is complete."""
        request = self._requests.popleft()
        self._is_over(request)
        self._let_go(reusable=request.is_whole)
        if not request.is_whole:
            self._linger()
        elif not (keep_alive and request.keep_alive) or self._stopping:
            self._transport.close()
        elif request.is_upgrade:
            self._transport.close()  # it was refused, and what follows is none of HTTP
        elif self._requests:
            self._next()
        elif self._last_word is not None:
            self._refuse(self._last_word, last=True)
        else:
            self._wait_for_next()

    def finish(self) -> None:
        """The container's side is closed, and with that the answer is complete."""
        if self._requests:
            self._is_over(self._requests[0])
        is_whole = self._tunnel or not self._requests or self._requests[0].is_whole
        self._let_go(reusable=False)
        if is_whole or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._linger()

    def fail(self, upstream: Upstream, reason: str) -> None:
        """There will be no (more) answer."""
        was_used = upstream.is_used
        if self._requests[0].answered:
            self._is_over(self._requests[0])
        upstream.release(reusable=False)
        self._upstream = None
        request = self._requests[0]
        if request.answered:
            self._let_go(reusable=False)
            self._transport.abort()
            return
        repeatable = request.method in _REPEATABLE or was_used
        if request.sent is not None and repeatable:
            request.waiting[:0] = request.sent
            request.sent, request.sent_size = [], 0
            self._retry_or_give_up(reason)
        else:
            self._give_up(502, reason)

    def _retry_or_give_up(self, reason: str) -> None:
        request = self._requests[0]
        if self._closed:
            return
        if request.attempts >= ATTEMPTS_MAX:
            self._give_up(502, reason)
            return
        lease, self._lease = self._lease, None
        if lease is not None:
            self._doorman.close(lease)
        pause = min(RETRY_S[0] * 2 ** (request.attempts - 1), RETRY_S[1])
        self._loop.call_later(pause, self._try_again, request)

    def _try_again(self, request: _Request) -> None:
        if not self._closed and self._requests and self._requests[0] is request:
            self._ask_for_place()

    def _give_up(self, status: int, reason: str) -> None:
        assert self._target is not None
        text = self._doorman.explain(self._target, reason)
        self._let_go(reusable=False)
        self._refuse(Refusal(status, text))

    def _is_over(self, request: _Request, status: int = 0) -> None:
        """Have it noted, with the status of the container's answer if we gave none."""
        if not request.arrived_at or self._target is None:
            return
        if not status and self._upstream is not None:
            status = self._upstream.status
        path = request.url.partition(b"?")[0]
        self._doorman.served(self._target, path, request.task_id, request.arrived_at, status)
        request.arrived_at = 0.0

    def _let_go(self, *, reusable: bool) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.release(reusable=reusable)
        self.go_on(FULL)
        lease, self._lease = self._lease, None
        if lease is not None:
            self._doorman.close(lease)

    # ── the end of a connection ─────────────────────────────────────────────────────────────

    @property
    def _is_done(self) -> bool:
        """Whether no further request is taken."""
        return self._last_word is not None or self._lingering is not None

    def _end_with(self, refusal: Refusal) -> None:
        """What came last is no request: answer those before it, then say so and close."""
        if self._closed or self._is_done or self._transport.is_closing():
            return
        self._head.stop()
        request = self._incoming
        if self._requests and self._requests[-1] is request and not request.is_whole:
            if len(self._requests) > 1:
                self._requests.pop()
            elif request.answered:
                self._is_over(request)
                self._let_go(reusable=False)
                self._transport.abort()
                return
            else:
                self._let_go(reusable=False)
                self._refuse(refusal, last=True)
                return
        if self._requests:
            self._last_word = refusal
            self.hold(_LAST)
        else:
            self._refuse(refusal, last=True)

    def _linger(self) -> None:
        """Close the connection once the client has sent what it was sending, or does not any more."""
        if self._closed or self._transport.is_closing():
            return
        self._held.clear()
        self._lingering = Linger(self._transport)

    # ── answers of our own ──────────────────────────────────────────────────────────────────

    def _refuse_open(self, refusal: Refusal) -> None:
        if not self._closed:
            self._refuse(refusal)

    def _refuse(self, refusal: Refusal, *, last: bool = False) -> None:
        request = self._requests.popleft() if self._requests else self._incoming
        self._is_over(request, refusal.status)
        accept = next((v for n, v in request.headers if n.lower() == b"accept"), b"")
        kind, body = error_body(refusal.status, refusal.text, accept.decode("latin-1"))
        if refusal.body is not None:
            kind, body = b"application/json", refusal.body
        is_http = request.is_whole and not request.is_upgrade  # what follows it as well
        keep = request.keep_alive and is_http and not last and not self._stopping
        head = [
            b"HTTP/1.1 %d %b" % (refusal.status, b"" if refusal.status < 400 else b"Error"),
            b"Content-Type: " + kind,
            b"Content-Length: %d" % len(body),
            *(b"%b: %b" % pair for pair in refusal.headers),
            *(() if keep else (b"Connection: close",)),
        ]
        if not self._closed:
            answer = b"\r\n".join(head) + b"\r\n\r\n"
            self._transport.write(answer if request.method == b"HEAD" else answer + body)
            if not keep and not request.is_whole:
                self._linger()
            elif not keep:
                self._transport.close()
        if keep and self._requests:
            self._next()
        elif keep and self._last_word is not None:
            self._refuse(self._last_word, last=True)
        elif keep and not self._closed:
            self._wait_for_next()

    def _wait_for_next(self) -> None:
        self._idle = self._loop.call_later(KEEP_ALIVE_S, self._transport.close)

    def _next(self) -> None:
        if len(self._requests) == 1:
            self.go_on(_QUEUE)
        self._begin()


def _host(headers: Headers) -> str:
    return next((v.decode("latin-1") for n, v in headers if n.lower() == b"host"), "")


def _with_close(data: bytes) -> bytes:
    """The begin of an answer, saying that its connection ends with it."""
    line, separator, rest = data.partition(b"\r\n")
    if not separator or line[9:10] == b"1":  # cut short, or not the last word on the request
        return data
    return line + b"\r\nConnection: close\r\n" + rest


def _head(request: _Request, peer: bytes, scheme: bytes) -> bytes:
    """The head of a request as the container gets it."""
    lines = [b"%b %b HTTP/%b" % (request.method, request.url, request.version.encode())]
    forwarded = peer
    proto_seen = False
    for name, value in request.headers:
        lower = name.lower()
        if lower == b"x-forwarded-for":
            forwarded = value + b", " + peer
            continue
        if lower in _OWN and not (lower == b"connection" and request.is_upgrade):
            continue
        proto_seen = proto_seen or lower == b"x-forwarded-proto"
        lines.append(name + b": " + value)
    lines.append(b"X-Forwarded-For: " + forwarded)
    if not proto_seen:
        lines.append(b"X-Forwarded-Proto: " + scheme)
    return b"\r\n".join(lines) + b"\r\n\r\n"


class Splice:
    """Makes the protocols of clients' connections; ``stop`` ends them.

    ``others`` makes the protocols for hosts that are served otherwise, on connections that were begun
    with one that is served here: proxies in front use one for all.
    """

    def __init__(self, doorman: Doorman, others: Callable[[str], ProtocolFactory]) -> None:
        self._doorman = doorman
        self._others = others
        self._pool = Upstreams()
        self._connections = Connections()

    def protocol(self) -> asyncio.Protocol:
        """A protocol for one connection."""
        return SpliceProtocol(self._doorman, self._pool, self._connections, self._others)

    async def stop(self, grace_s: float) -> None:
        """Close idle connections at once, the others when their answer is out, or after a while."""
        for connection in self._connections.all():
            connection.shutdown()
        await self._connections.ended(grace_s)
        for connection in self._connections.all():
            connection.abort()
        self._pool.close()
