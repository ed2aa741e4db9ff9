"""Requests for web servers in containers that come by another way than HTTP/1.1: passed on by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import aiohttp
from yarl import URL

from homeport.calls.lease import Lease, Place
from homeport.gateway.direct import Direct
from homeport.gateway.doorman import Refusal
from homeport.web.requests import BrokenError, FailedError, Receive, Scope, Send
from homeport.web.service import Target

CHUNK_BYTES: Final = 256 * 1024
_NOT_PASSED_ON: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"modal-authorization",
        b"modal-key",
        b"modal-secret",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)


class Relay:
    """Passes ASGI requests on to ports of containers. ``start`` before use."""

    def __init__(self, doorman: Direct) -> None:
        self._doorman = doorman
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open what all requests share."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )

    async def stop(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def http(self, target: Target, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises ``FailedError``, ``BrokenError``."""
        opened = self._doorman.open(target, list(scope["headers"]))
        if isinstance(opened, Refusal):
            raise FailedError(opened.status, opened.text)
        try:
            place = await _granted(opened)
            await self._pass_on(target, place, scope, receive, send)
        finally:
            self._doorman.close(opened)

    async def _pass_on(
        self, target: Target, place: Place, scope: Scope, receive: Receive, send: Send
    ) -> None:
        assert self._session is not None
        path = scope["raw_path"].decode("latin-1")
        query = scope["query_string"].decode("latin-1")
        raw = f"http://{place.address}:{target.point.port}{path}{'?' if query else ''}{query}"
        begun = False
        try:
            async with self._session.request(
                scope["method"],
                URL(raw, encoded=True),
                headers=_headers(scope),
                data=_body(receive) if _has_body(scope) else None,
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


async def _granted(lease: Lease) -> Place:
    """Wait for a place. Raises ``FailedError`` if there will be none."""
    loop = asyncio.get_running_loop()
    changed: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not changed.done():
            changed.set_result(None)

    lease.on_change = wake
    if lease.place is None and lease.output is None:
        await changed
    if lease.place is None:
        reason = lease.output.result.exception if lease.output is not None else ""
        raise FailedError(503, reason)
    return lease.place


def _has_body(scope: Scope) -> bool:
    return scope["method"] not in ("GET", "HEAD", "OPTIONS") or any(
        name == b"content-length" and value != b"0" for name, value in scope["headers"]
    )


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionResetError("the client went away")
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return


def _headers(scope: Scope) -> list[tuple[str, str]]:
    headers = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in scope["headers"]
        if name not in _NOT_PASSED_ON
    ]
    client = scope.get("client")
    headers.append(("X-Forwarded-For", str(client[0]) if client else "unknown"))
    headers.append(("X-Forwarded-Proto", str(scope["scheme"])))
    return headers
