"""Connect tokens: HTTP and WebSockets into a sandbox for who shows a token of the server's.

A door is one port of the node for all ports of one sandbox; the token says which of them it leads
to, and what the program is told of its bearer (RPC ``SandboxCreateConnectToken``).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_plus

import aiohttp
import msgspec
import structlog
from aiohttp import web
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict
from yarl import URL

from homeport.kernel.errors import HomeportError, UnauthenticatedError
from homeport.kernel.signing import Signer
from homeport.link.messages import CONNECT_AUDIENCE, ConnectScope
from homeport.node.runtime.port import Container
from homeport.node.sockets import CHUNK_BYTES, HANDSHAKE_S
from homeport.node.tunnels import LISTEN_WAIT_S, RETRY_FIRST_S, RETRY_MAX_S, Target, Tunnel

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

QUERY_TOKEN: Final = "_modal_connect_token"
USER_DATA: Final = "X-Verified-User-Data"
MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
"""The largest message of a WebSocket."""
_INSIDE: Final = "127.0.0.1"
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_OURS: Final = frozenset({"x-verified-user-data", "x-forwarded-for", "x-forwarded-proto"})
"""Set by the door alone: a program can believe them."""

Verifier = Callable[[str], ConnectScope]
"""What a token is good for at this door. Raises ``UnauthenticatedError``."""


def verifier(current: Callable[[], Signer | None], task_id: str) -> Verifier:
    """Takes the tokens that the server signed for that container, with its ``current`` key."""

    def verify(token: str) -> ConnectScope:
        signer = current()
        if signer is None:
            raise UnauthenticatedError("this node has not heard from its server yet")
        claims = signer.verify(token, CONNECT_AUDIENCE)
        if claims.sub != task_id:
            raise UnauthenticatedError("the connect token is another sandbox's")
        return msgspec.json.decode(claims.scope, type=ConnectScope)

    return verify


@dataclass(frozen=True, slots=True)
class _Admitted:
    scope: ConnectScope
    path: str
    """Path and query as they came, without the token."""
    headers: CIMultiDict[str]


class Door(Tunnel):
    """A listening port of the node. ``close`` ends it with all its connections."""

    def __init__(
        self,
        target: Target,
        verify: Verifier,
        context: Callable[[], ssl.SSLContext | None],
        sources: Sequence[str],
    ) -> None:
        super().__init__(target, sources)
        self._verify = verify
        self._context = context
        self._server = web.Server(self._answer, access_log=None, auto_decompress=False)
        self._session: aiohttp.ClientSession | None = None

    def close(self) -> None:
        super().close()
        for connection in self._server.connections:
            connection.force_close()
        if self._session is not None:
            closing = asyncio.get_running_loop().create_task(self._session.close())
            _closing.add(closing)
            closing.add_done_callback(_closing.discard)
            self._session = None

    async def serve(self, connection: socket.socket) -> None:
        context = self._context()
        if context is None:
            connection.close()
            return
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._server, connection, ssl=context, ssl_handshake_timeout=HANDSHAKE_S
            )
        except OSError as error:
            log.info("a connection to a sandbox failed", error=str(error))

    # ── requests ────────────────────────────────────────────────────────────────────────────

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            admitted = self._admit(request)
        except UnauthenticatedError as error:
            return _refusal(401, error.message, {"WWW-Authenticate": "Bearer"})
        try:
            with self._target.active():
                if _is_websocket(request):
                    return await self._websocket(request, admitted)
                return await self._http(request, admitted)
        except (HomeportError, aiohttp.ClientError, TimeoutError, ValueError) as error:
            reason = str(error) or type(error).__name__
            text = f"port {admitted.scope.port} of the sandbox gave no answer: {reason}"
            return _refusal(502, text)

    def _admit(self, request: web.BaseRequest) -> _Admitted:
        path, query, token = _without_token(request.raw_path)
        kind, _, shown = request.headers.get("Authorization", "").partition(" ")
        is_shown = kind.lower() == "bearer" and bool(shown) and not token
        token = token or (shown.strip() if is_shown else "")
        if not token:
            raise UnauthenticatedError(
                "this sandbox is reached with a connect token: send it as Authorization: Bearer "
                f"<token>, or in the query as {QUERY_TOKEN}"
            )
        scope = self._verify(token)
        headers: CIMultiDict[str] = CIMultiDict()
        for name, value in request.headers.items():
            plain = name.lower().replace("_", "-")  # programs see both in the same way
            if plain in _HOP_BY_HOP or plain in _OURS or (is_shown and plain == "authorization"):
                continue
            headers.add(name, value)
        headers["X-Forwarded-For"] = request.remote or "unknown"
        headers["X-Forwarded-Proto"] = "https"
        if scope.user_data is not None:
            headers[USER_DATA] = scope.user_data
        return _Admitted(scope, f"{path}?{query}" if query else path, headers)

    async def _http(self, request: web.BaseRequest, admitted: _Admitted) -> web.StreamResponse:
        async with await self._ask(request, admitted) as answer:
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    response.headers.add(name, value)
            await response.prepare(request)
            try:
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
            except aiohttp.ClientError:  # the program broke off: so does this
                if request.transport is not None:
                    request.transport.abort()
                return response
            await response.write_eof()
            return response

    async def _ask(self, request: web.BaseRequest, admitted: _Admitted) -> aiohttp.ClientResponse:
        """The program's answer, once it listens. Raises ``aiohttp.ClientError``."""
        session = await self._inside()
        body = request.content.iter_chunked(CHUNK_BYTES) if request.can_read_body else None
        url = _url("http", admitted)
        for delay_s in (*_delays_s(), None):
            try:
                return await session.request(
                    request.method,
                    url,
                    headers=admitted.headers,
                    data=body,
                    allow_redirects=False,
                )
            except aiohttp.ClientConnectorError:  # nothing was sent
                if delay_s is None:
                    raise
            await asyncio.sleep(delay_s)  # nothing tells that a program listens
        raise AssertionError("the last try returns or raises")

    async def _websocket(self, request: web.BaseRequest, admitted: _Admitted) -> web.StreamResponse:
        session = await self._inside()
        headers = CIMultiDict(
            (name, value)
            for name, value in admitted.headers.items()
            if not name.lower().startswith("sec-websocket-")
        )
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        protocols = [part.strip() for part in offered.split(",") if part.strip()]
        try:
            inner = await self._connected(session, _url("http", admitted), headers, protocols)
        except aiohttp.WSServerHandshakeError as error:
            return _refusal(error.status, "the sandbox's program refused the WebSocket")
        async with inner:
            chosen = [inner.protocol] if inner.protocol else []
            outer = web.WebSocketResponse(
                protocols=chosen, max_msg_size=MESSAGE_BYTES_MAX, compress=False
            )
            await outer.prepare(request)
            await _exchange(outer, inner)
            return outer

    @staticmethod
    async def _connected(
        session: aiohttp.ClientSession, url: URL, headers: CIMultiDict[str], protocols: list[str]
    ) -> aiohttp.ClientWebSocketResponse:
        for delay_s in (*_delays_s(), None):
            try:
                return await session.ws_connect(
                    url, headers=headers, protocols=protocols, max_msg_size=MESSAGE_BYTES_MAX
                )
            except aiohttp.ClientConnectorError:
                if delay_s is None:
                    raise
            await asyncio.sleep(delay_s)
        raise AssertionError("the last try returns or raises")

    async def _inside(self) -> aiohttp.ClientSession:
        """Connections to the sandbox's own loopback address. Raises ``NotFoundError``."""
        container = await self._target.started()
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_Connector(container),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            )
        return self._session


class _Connector(aiohttp.BaseConnector):
    """Connections to ports of a container, whatever host is asked for."""

    def __init__(self, container: Container) -> None:
        super().__init__(limit=0)
        self._container = container

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: object, timeout: object
    ) -> ResponseHandler:
        assert req.port is not None
        try:
            inside = await self._container.connect(req.port)
        except OSError as error:
            raise aiohttp.ClientConnectorError(req.connection_key, error) from error
        _, protocol = await self._loop.create_connection(self._factory, sock=inside)
        return protocol


_closing: Final[set[asyncio.Task[None]]] = set()


def _url(scheme: str, admitted: _Admitted) -> URL:
    return URL(f"{scheme}://{_INSIDE}:{admitted.scope.port}{admitted.path}", encoded=True)


def _without_token(raw: str) -> tuple[str, str, str]:
    """Path and query of a request as they came, but for the token, and that."""
    path, _, query = raw.partition("?")
    kept: list[str] = []
    token = ""
    for part in query.split("&") if query else []:
        name, _, value = part.partition("=")
        if unquote_plus(name) == QUERY_TOKEN:
            token = unquote_plus(value)
        else:
            kept.append(part)
    return (path if path.startswith("/") else "/"), "&".join(kept), token


def _delays_s() -> Iterator[float]:
    """Pauses between tries, ``LISTEN_WAIT_S`` in all."""
    delay_s, total_s = RETRY_FIRST_S, 0.0
    while total_s < LISTEN_WAIT_S:
        yield delay_s
        total_s += delay_s
        delay_s = min(2 * delay_s, RETRY_MAX_S)


def _is_websocket(request: web.BaseRequest) -> bool:
    return request.headers.get("Upgrade", "").lower() == "websocket"


def _refusal(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=f"{text}\n", headers=headers)


async def _exchange(outer: web.WebSocketResponse, inner: aiohttp.ClientWebSocketResponse) -> None:
    """Messages of both to the other, until one of them closes."""
    ways = [
        asyncio.create_task(_carry(outer, inner)),
        asyncio.create_task(_carry(inner, outer)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


_Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def _carry(source: _Socket, sink: _Socket) -> None:
    async for message in source:
        if message.type == aiohttp.WSMsgType.TEXT:
            await sink.send_str(message.data)
        elif message.type == aiohttp.WSMsgType.BINARY:
            await sink.send_bytes(message.data)
        else:
            break
    code = source.close_code
    await sink.close(code=code if code in _SENDABLE else aiohttp.WSCloseCode.GOING_AWAY)


_SENDABLE: Final = frozenset({*range(1000, 1004), *range(1007, 1012), *range(3000, 5000)})
