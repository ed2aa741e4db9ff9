"""Connections to web servers in containers: kept while idle, one request of one client at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final, Protocol, cast

import httptools
import structlog

log = structlog.get_logger(__name__)

BUFFER_BYTES: Final = 256 * 1024
"""Bytes that wait for a slow side before the other one is not read any more."""
IDLE_MAX: Final = 256
"""Idle connections that are kept for one container."""
FULL: Final = "the container takes no more"


class Client(Protocol):
    """The other side: a connection of a client, whose request is served."""

    def hold(self, reason: str) -> None:
        """Read nothing more of the client, as long as there is a ``reason``."""
        ...

    def go_on(self, reason: str) -> None:
        """That reason is no more."""
        ...

    def pass_back(self, data: bytes) -> None:
        """A part of the answer."""
        ...

    def tunnel(self) -> None:
        """Both sides agreed on another protocol: bytes from now on."""
        ...

    def answered(self, keep_alive: bool) -> None:
        """The answer is complete."""
        ...

    def finish(self) -> None:
        """The container's side is closed, and with that the answer is complete."""
        ...

    def fail(self, upstream: Upstream, reason: str) -> None:
        """There will be no (more) answer."""
        ...


class Upstreams:
    """Idle connections to containers, by container."""

    def __init__(self) -> None:
        self._idle: dict[str, deque[Upstream]] = {}

    def take(self, task_id: str) -> Upstream | None:
        """One that is free."""
        idle = self._idle.get(task_id)
        while idle:
            upstream = idle.pop()
            if not idle:
                del self._idle[task_id]
            if not upstream.is_closed:
                return upstream
        return None

    def keep(self, upstream: Upstream) -> None:
        """This one is free again."""
        idle = self._idle.setdefault(upstream.task_id, deque())
        if len(idle) >= IDLE_MAX:
            upstream.close()
        else:
            idle.append(upstream)

    def forget(self, upstream: Upstream) -> None:
        """This one is closed."""
        idle = self._idle.get(upstream.task_id)
        if idle is not None and upstream in idle:
            idle.remove(upstream)
            if not idle:
                del self._idle[upstream.task_id]

    def close(self) -> None:
        """Close all."""
        for idle in list(self._idle.values()):
            for upstream in list(idle):
                upstream.close()


class Upstream(asyncio.Protocol):
    """A connection to a container. Serves one request of one client at a time."""

    def __init__(self, pool: Upstreams, task_id: str) -> None:
        self._pool = pool
        self.task_id = task_id
        self._client: Client | None = None
        self._parser: Any = None
        self.status = 0
        """Of the answer that is passed back; 0 as long as it is not known."""
        self._keep_alive = True
        self._complete = False
        self._headers_done = False
        self._is_head = False
        self._tunnel = False
        self.is_closed = False
        self.is_used = False
        """It served a request before."""

    # ── for the client's side ───────────────────────────────────────────────────────────────

    def serve(self, client: Client, method: bytes) -> None:
        self._client = client
        self.status = 0
        self._parser = httptools.HttpResponseParser(self)
        self._complete = self._headers_done = False
        self._is_head = method == b"HEAD"

    def write(self, data: bytes) -> None:
        if not self.is_closed:
            self._transport.write(data)

    def pause(self) -> None:
        if not self.is_closed:
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self.is_closed:
            self._transport.resume_reading()

    def release(self, *, reusable: bool) -> None:
        """The client has its answer, or left."""
        self._client = None
        if reusable and self._keep_alive and not self.is_closed and not self._is_head:
            self.is_used = True
            self.resume()  # for the next one, whose client may be faster
            self._pool.keep(self)
        else:
            self.abort()

    def close(self) -> None:
        self.is_closed = True
        self._transport.close()

    def abort(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._transport.abort()

    # ── asyncio.Protocol ────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=BUFFER_BYTES)

    def pause_writing(self) -> None:
        if self._client is not None:
            self._client.hold(FULL)

    def resume_writing(self) -> None:
        if self._client is not None:
            self._client.go_on(FULL)

    def data_received(self, data: bytes) -> None:
        client = self._client
        if client is None:  # nobody asked
            self.abort()
            return
        if self._tunnel:
            client.pass_back(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._tunnel = self.status == 101
            self._complete = not self._tunnel
        except httptools.HttpParserError as error:
            log.warning("a web server in a container spoke no HTTP", error=str(error))
            client.fail(self, "its web server answered with something that is not HTTP")
            return
        client.pass_back(data)
        if self._tunnel:
            client.tunnel()
        elif self._complete:
            client.answered(self._keep_alive)

    def eof_received(self) -> None:
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self.is_closed = True
        self._pool.forget(self)

    def _end(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        self.is_closed = True
        self._transport.close()
        if self._tunnel or (self._headers_done and self._lasts_to_end):
            client.finish()
        else:
            client.fail(self, "its web server closed the connection")

    # ── httptools ───────────────────────────────────────────────────────────────────────────

    _lasts_to_end = False

    def on_message_begin(self) -> None:
        self._lasts_to_end = True

    def on_header(self, name: bytes, _value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._lasts_to_end = False

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status >= 200:
            self._headers_done = True
            self._keep_alive = self._parser.should_keep_alive()
            if self._is_head:
                self._complete = True

    def on_message_complete(self) -> None:
        if self.status >= 200:
            self._complete = True
