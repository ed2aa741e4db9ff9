"""Requests for web servers in containers that come by another way than HTTP/1.1: passed on by it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final

import aiohttp
from ngh2 import DataReceived, ResponseReceived, TrailersReceived
from yarl import URL

from homeport.calls.lease import Lease, Place
from homeport.gateway.direct import Direct
from homeport.gateway.doorman import Refusal
from homeport.gateway.splice import ATTEMPTS_MAX, RETRY_S
from homeport.gateway.upstream_h2 import Exchange, GoneError, Http2Upstreams
from homeport.transport.asgi_stream import BODY, OPEN_END
from homeport.web.requests import BrokenError, FailedError, Message, Receive, Scope, Send
from homeport.web.service import Target

CHUNK_BYTES: Final = 256 * 1024
HEAD_BYTES_MAX: Final = 256 * 1024
"""Of one header of an answer, or of its first line."""
_NOT_PASSED_ON: Final = frozenset(
    {
        b"connection",
        b"expect",  # answered already: its body is read
        b"keep-alive",
        b"modal-authorization",
        b"modal-key",
        b"modal-secret",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)


class _Noted:
    """Sends an answer and notes what is to be told of it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.arrived_at = time.time()
        self.task_id = ""
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


class Relay:
    """Passes ASGI requests on to ports of containers. ``start`` before use."""

    def __init__(self, doorman: Direct) -> None:
        self._doorman = doorman
        self._session: aiohttp.ClientSession | None = None
        self._http2 = Http2Upstreams()

    async def start(self) -> None:
        """Open what all requests share."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=HEAD_BYTES_MAX,
            max_field_size=HEAD_BYTES_MAX,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )

    async def stop(self) -> None:
        """Close all connections."""
        self._http2.close()
        if self._session is not None:
            await self._session.close()

    async def http(self, target: Target, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises ``FailedError``, ``BrokenError``."""
        headers = list(scope["headers"])
        if await self._control(target, scope, headers, send):
            return
        noted = _Noted(send)
        try:
            await self._serve(target, scope, headers, receive, noted)
        except FailedError as failure:
            noted.status = failure.status
            raise
        finally:
            path: bytes = scope["raw_path"]
            self._doorman.served(target, path, noted.task_id, noted.arrived_at, noted.status)

    async def _serve(
        self,
        target: Target,
        scope: Scope,
        headers: list[tuple[bytes, bytes]],
        receive: Receive,
        send: _Noted,
    ) -> None:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            opened = self._doorman.open(target, headers)
            if isinstance(opened, Refusal):
                raise FailedError(opened.status, opened.text)
            upload = _Upload(receive, is_whole=not _has_body(scope))
            leaving = asyncio.ensure_future(upload.left())
            try:
                place = await _granted(opened, leaving)
                if place is None:
                    return
                send.task_id = place.task_id
                if not target.point.is_h2:
                    await self._pass_on(target, place, scope, upload, leaving, send)
                    return
                leaving.cancel()  # what the client sends is the exchange's now
                upstream = await self._http2.connect(
                    place.task_id, place.address, target.point.port
                )
                has_body = not upload.is_whole
                exchange = upstream.request(_http2_headers(scope), has_body=has_body)
                await _answer_http2(exchange, scope, receive, send, has_body=has_body)
                return
            except (OSError, GoneError) as error:
                untouched = not isinstance(error, GoneError) or error.untouched
                if attempt == ATTEMPTS_MAX or not untouched:
                    raise FailedError(502, f"its web server gave no answer ({error})") from None
            finally:
                leaving.cancel()
                self._doorman.close(opened)
            await asyncio.sleep(min(RETRY_S[0] * 2 ** (attempt - 1), RETRY_S[1]))

    async def _control(
        self, target: Target, scope: Scope, headers: list[tuple[bytes, bytes]], send: Send
    ) -> bool:
        """Carry out a request that is about a session; whether it was one."""
        outcome: asyncio.Future[Refusal] = asyncio.get_running_loop().create_future()

        def answer(refusal: Refusal) -> None:
            if not outcome.done():
                outcome.set_result(refusal)

        if not self._doorman.control(target, scope["raw_path"], headers, answer):
            return False
        said = await outcome
        if said.body is None:
            raise FailedError(said.status, said.text)
        kind = (b"content-type", b"application/json")
        await send({"type": "http.response.start", "status": said.status, "headers": [kind]})
        await send({"type": "http.response.body", "body": said.body, "more_body": False})
        return True

    async def _pass_on(
        self,
        target: Target,
        place: Place,
        scope: Scope,
        upload: _Upload,
        leaving: asyncio.Future[None],
        send: Send,
    ) -> None:
        """Raises ``FailedError``, ``BrokenError``; ends as well when the client leaves."""
        passing = asyncio.ensure_future(self._exchange(target, place, scope, upload, send))
        try:
            await asyncio.wait((leaving, passing), return_when=asyncio.FIRST_COMPLETED)
            if passing.done():
                passing.result()
        finally:
            passing.cancel()
            await asyncio.wait((passing,))

    async def _exchange(
        self, target: Target, place: Place, scope: Scope, upload: _Upload, send: Send
    ) -> None:
        assert self._session is not None
        path = scope["raw_path"].decode("latin-1")
        if not path.startswith("/"):  # "OPTIONS *" asks the server at large
            raise FailedError(400, f"{path[:100]!r} is no path")
        query = scope["query_string"].decode("latin-1")
        raw = f"http://{place.address}:{target.point.port}{path}{'?' if query else ''}{query}"
        begun = False
        try:
            async with self._session.request(
                scope["method"],
                URL(raw, encoded=True),
                headers=_headers(scope),
                data=None if upload.is_whole else upload.parts(),
                allow_redirects=False,
            ) as answer:
                headers = [
                    (name.lower(), value)
                    for name, value in answer.raw_headers
                    if name.lower() not in _NOT_PASSED_ON
                ]
                await send(
                    {"type": "http.response.start", "status": answer.status, "headers": headers}
                )
                begun = True
                async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
                    part = {"type": "http.response.body", "body": chunk, "more_body": True}
                    await send(part)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if begun:
                raise BrokenError from error
            raise FailedError(502, f"its web server gave no answer ({error})") from None


async def _answer_http2(
    exchange: Exchange, scope: Scope, receive: Receive, send: Send, *, has_body: bool
) -> None:
    """Raises ``GoneError`` before there was an answer, ``BrokenError`` in the middle of one."""
    reading = asyncio.ensure_future(exchange.upload(receive, has_body=has_body))
    is_http2 = OPEN_END in scope.get("extensions", {})
    begun = False
    try:
        while True:
            event = await exchange.next()
            last = isinstance(event, TrailersReceived) or event.end_stream
            if isinstance(event, ResponseReceived):
                await send(_start(event, ends=last and is_http2))
                begun = True
            elif isinstance(event, DataReceived):
                await send(_part(event.data, last=last))
                exchange.taken(len(event.data))
            elif is_http2:
                await send({"type": "http.response.trailers", "headers": list(event.headers)})
            if last:
                if not (is_http2 or isinstance(event, DataReceived)):
                    await send(_part(b"", last=True))
                return
    except GoneError as error:
        if begun:
            raise BrokenError from error
        raise
    finally:
        reading.cancel()
        exchange.leave()


def _start(event: ResponseReceived, *, ends: bool) -> Message:
    headers: list[tuple[bytes, bytes]] = []
    status = 502
    for name, value in event.headers:
        if name == b":status":
            status = int(value)
        elif name not in _NOT_PASSED_ON:
            headers.append((name, value))
    start: Message = {"type": "http.response.start", "status": status, "headers": headers}
    return start | ({"end_stream": True} if ends else {})


def _part(body: bytes, *, last: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": not last}


async def _granted(lease: Lease, leaving: asyncio.Future[None]) -> Place | None:
    """Wait for a place; ``None`` if the client does not. Raises ``FailedError`` if there is none."""
    loop = asyncio.get_running_loop()
    changed: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not changed.done():
            changed.set_result(None)

    lease.on_change = wake
    if lease.place is None and lease.output is None:
        await asyncio.wait((changed, leaving), return_when=asyncio.FIRST_COMPLETED)
    if lease.place is None and lease.output is None:
        return None
    if lease.place is None:
        reason = lease.output.result.exception if lease.output is not None else ""
        raise FailedError(503, reason)
    return lease.place


def _has_body(scope: Scope) -> bool:
    extensions = scope.get("extensions", {})
    if OPEN_END in extensions:  # HTTP/2 says so by an end of the stream, or none
        return BODY in extensions
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b" 0") != b"")
        for name, value in scope["headers"]
    )


class _Upload:
    """The body of a request, and whether who sends it is still there."""

    def __init__(self, receive: Receive, *, is_whole: bool) -> None:
        self._receive = receive
        self.is_whole = is_whole
        self._ended = asyncio.Event()
        if is_whole:
            self._ended.set()

    async def parts(self) -> AsyncIterator[bytes]:
        """As they come. Raises ``ConnectionResetError`` if the client leaves before the last."""
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ConnectionResetError("the client went away")
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body"):
                self._ended.set()
                return

    async def left(self) -> None:
        """Until the client is gone, once its body has come."""
        await self._ended.wait()
        while (await self._receive())["type"] == "http.request":
            pass


def _headers(scope: Scope) -> list[tuple[str, str]]:
    """A request's headers as the container gets them."""
    client = scope.get("client")
    forwarded = str(client[0]) if client else "unknown"
    headers: list[tuple[str, str]] = []
    for name, value in scope["headers"]:
        if name == b"x-forwarded-for":
            forwarded = f"{value.decode('latin-1')}, {forwarded}"
        elif name not in _NOT_PASSED_ON and name != b"x-forwarded-proto":
            headers.append((name.decode("latin-1"), value.decode("latin-1")))
    headers.append(("X-Forwarded-For", forwarded))
    headers.append(("X-Forwarded-Proto", str(scope["scheme"])))
    return headers


def _http2_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    query = scope["query_string"]
    host = b""
    headers: list[tuple[bytes, bytes]] = []
    for name, value in _headers(scope):
        if name == "host":
            host = value.encode("latin-1")
        else:
            headers.append((name.lower().encode("latin-1"), value.encode("latin-1")))
    if any(name == b"te" and value == b"trailers" for name, value in scope["headers"]):
        headers.append((b"te", b"trailers"))
    return [
        (b":method", scope["method"].encode("latin-1")),
        (b":scheme", b"http"),
        (b":authority", host),
        (b":path", scope["raw_path"] + (b"?" + query if query else b"")),
        *headers,
    ]
