"""One HTTP/2 stream that is no RPC: served by an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import unquote

import structlog
from ngh2 import Connection, ErrorCode, NGH2Error

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Application = Callable[
    [Any, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
]
Headers = tuple[tuple[bytes, bytes], ...]

UNSENT_MAX: Final = 1024 * 1024
"""An application is held while more than this of its answer is unsent."""
OPEN_END: Final = "homeport.open_end"
"""Extension of ASGI's: an answer may end in ``http.response.trailers`` that were not announced, and in
its ``http.response.start`` if that says ``end_stream``. What passes on answers does not know before."""
BODY: Final = "homeport.body"
"""Extension as well: the request has a body, whether or not its headers say so."""
_HOP_BY_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)


class AsgiStream:
    """A request and its answer. What of the request's body is not read holds its sender back."""

    def __init__(
        self,
        stream_id: int,
        http2: Connection,
        flush_soon: Callable[[], None],
        headers: Headers,
        peer: str,
        *,
        has_body: bool,
    ) -> None:
        self.stream_id = stream_id
        self._http2 = http2
        self._flush_soon = flush_soon
        self._scope = _scope(headers, peer)
        if has_body:
            self._scope["extensions"][BODY] = {}
        self._body = bytearray()
        self._ended = False
        self._gone = False
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._began = False
        self._complete = False
        self._told_end = False
        """The application knows the whole body."""
        self._waits_for_100 = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in headers
        )
        self.task: asyncio.Task[None] | None = None

    # ── for the connection ──────────────────────────────────────────────────────────────────

    async def run(self, application: Application) -> None:
        """Have the request answered; a stream that is left without an end is reset."""
        try:
            await application(self._scope, self._receive, self._send)
        except Exception as error:
            log.debug("an answer broke off", path=self._scope["path"], error=repr(error))
        finally:
            if not self._complete and not self._gone:
                with contextlib.suppress(NGH2Error):
                    self._http2.reset_stream(self.stream_id, ErrorCode.INTERNAL_ERROR)
                self._flush_soon()

    def feed(self, data: bytes) -> None:
        """A part of the body."""
        if self._complete:
            self._acknowledge(len(data))
        else:
            self._body += data
            self._changed.set()

    def end(self) -> None:
        """The request is complete."""
        self._ended = True
        self._changed.set()

    def drop(self) -> None:
        """The stream is closed: nobody waits for an answer."""
        self._gone = True
        self._acknowledge(len(self._body))
        self._body.clear()
        self._changed.set()
        self._room.set()

    def abort(self) -> None:
        """The server stops: end it as it is."""
        if self.task is not None:
            self.task.cancel()

    @property
    def has_room(self) -> bool:
        return self._gone or self._http2.queued_body_size(self.stream_id) <= UNSENT_MAX

    def wake(self) -> None:
        """Something was sent."""
        if not self._room.is_set() and self.has_room:
            self._room.set()

    # ── for the application ─────────────────────────────────────────────────────────────────

    async def _receive(self) -> Any:
        if self._waits_for_100 and not (self._gone or self._began):
            self._waits_for_100 = False
            with contextlib.suppress(NGH2Error):
                self._http2.send_informational_response(self.stream_id, [(b":status", b"100")])
            self._flush_soon()
        while not (self._gone or self._complete or self._body or self._ended):
            self._changed.clear()
            await self._changed.wait()
        if self._gone or self._complete:
            return {"type": "http.disconnect"}
        if not self._body and self._told_end:
            return await self._disconnected()
        data = bytes(self._body)
        self._body.clear()
        self._acknowledge(len(data))
        self._told_end = self._ended
        return {"type": "http.request", "body": data, "more_body": not self._ended}

    async def _disconnected(self) -> Any:
        while not (self._gone or self._complete):
            self._changed.clear()
            await self._changed.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if self._gone or self._complete:
            return
        try:
            if message["type"] == "http.response.start":
                self._start(message)
            elif message["type"] == "http.response.body":
                self._send_body(message)
            elif message["type"] == "http.response.trailers":
                self._finish()
                self._http2.send_trailers(self.stream_id, list(message["headers"]))
        except NGH2Error:
            self._gone = True  # reset in this moment; the event that says so comes
        self._flush_soon()
        while not self.has_room:
            self._room.clear()
            await self._room.wait()

    def _start(self, message: Any) -> None:
        headers = [(b":status", str(message["status"]).encode())]
        for name, value in message.get("headers", ()):
            name = name.lower()
            if name not in _HOP_BY_HOP:
                headers.append((name, value.strip()))
        self._began = True
        last = bool(message.get("end_stream"))
        if last:
            self._finish()
        self._http2.send_response(self.stream_id, headers, end_stream=last)

    def _finish(self) -> None:
        self._complete = True
        self._changed.set()

    def _send_body(self, message: Any) -> None:
        body = message.get("body", b"")
        if self._scope["method"] == "HEAD":
            body = b""
        last = not message.get("more_body", False)
        if last:
            self._finish()
        if body or last:
            self._http2.send_data(self.stream_id, body, end_stream=last)

    def _acknowledge(self, size: int) -> None:
        if size:
            with contextlib.suppress(NGH2Error):
                self._http2.acknowledge_received_data(size, self.stream_id)
            self._flush_soon()


def _scope(headers: Headers, peer: str) -> dict[str, Any]:
    """The request as an ASGI application sees it."""
    pseudo = {name: value for name, value in headers if name.startswith(b":")}
    plain = [pair for pair in headers if not pair[0].startswith(b":") and pair[0] != b"cookie"]
    cookies = [value for name, value in headers if name == b"cookie"]
    if cookies:  # RFC 9113, 8.2.3: browsers send them one by one, applications know one field
        plain.append((b"cookie", b"; ".join(cookies)))
    if b":authority" in pseudo:
        plain = [pair for pair in plain if pair[0] != b"host"]
        plain.insert(0, (b"host", pseudo[b":authority"]))
    path, _, query = pseudo.get(b":path", b"/").partition(b"?")
    host, _, port = peer.rpartition(":")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "2",
        "method": pseudo.get(b":method", b"GET").decode("latin-1"),
        "scheme": pseudo.get(b":scheme", b"http").decode("latin-1"),
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": plain,
        "client": (host, int(port)) if port.isdigit() else None,
        "server": None,
        "extensions": {OPEN_END: {}},
    }
