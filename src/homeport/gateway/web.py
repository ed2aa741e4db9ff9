"""Web functions: an ASGI application that has each request answered by the function it is for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl, urlencode

import structlog

from homeport.gateway.access import Access
from homeport.gateway.errors import error_body
from homeport.gateway.relay import Relay
from homeport.web.requests import (
    CONTINUE_PARAMETER,
    BrokenError,
    FailedError,
    Receive,
    Scope,
    Send,
    WaitOnError,
    WebRequests,
)
from homeport.web.service import Target, WebRoutes

log = structlog.get_logger(__name__)

_CREDENTIALS: Final = frozenset({b"modal-key", b"modal-secret", b"modal-authorization"})
_CALL_ID: Final = re.compile(r"fc-[0-9A-Za-z]{16,32}")


class WebGateway:
    """``app(scope, receive, send)`` for the host names of web functions.

    ``app_page`` gives the address of an app's page, where its log is.
    """

    def __init__(
        self,
        routes: WebRoutes,
        requests: WebRequests,
        relay: Relay,
        access: Access,
        *,
        app_page: Callable[[str], str],
    ) -> None:
        self._routes = routes
        self._requests = requests
        self._relay = relay
        self._access = access
        self._app_page = app_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or WebSocket. Raises what must end the connection."""
        if scope["type"] not in ("http", "websocket"):
            return
        try:
            await self._serve(scope, receive, send)
        except BrokenError:
            raise
        except Exception:
            log.exception("request failed", host=_header(scope, b"host"), path=scope["path"])
            raise

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = self._routes.find(_header(scope, b"host"))
        refusal = self._refusal(target, scope)
        if target is None or refusal is not None:
            status, text = refusal or (404, "")
            if scope["type"] == "websocket":
                await receive()
            await _error(scope, send, status, text)
        elif scope["type"] == "websocket":
            await self._websocket(target, _without_credentials(target, scope), receive, send)
        else:
            await self._http(target, _without_credentials(target, scope), receive, send)

    def _refusal(self, target: Target | None, scope: Scope) -> tuple[int, str] | None:
        if target is None:
            return 404, self._routes.unknown(_header(scope, b"host"))
        if target.point.needs_token and not self._access.is_known(target, dict(scope["headers"])):
            return 401, self._access.SENTENCE
        return None

    async def _http(self, target: Target, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if target.is_direct:
                await self._relay.http(target, scope, receive, send)
                return
            call_id = "" if scope["method"] == "OPTIONS" else _continued(scope)[0]
            call = self._requests.parked(call_id, target) if call_id else None
            if call is not None:
                await self._requests.go_on(call, receive, send)
            elif call_id:
                raise FailedError(
                    404,
                    f"Nothing is known of the call {call_id}: its answer was fetched, or it was given up.",
                )
            else:
                await self._requests.http(target, scope, receive, send)
        except WaitOnError as wait:
            _, rest = _continued(scope)
            await _redirect(scope, send, rest, wait.call_id)
        except FailedError as failure:
            await _error(scope, send, failure.status, self._explain(target, failure))

    async def _websocket(self, target: Target, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if target.is_direct:
                text = (
                    "its server speaks HTTP/2" if target.point.is_h2 else "open another connection"
                )
                raise FailedError(421, text)
            await self._requests.websocket(target, scope, receive, send)
        except FailedError as failure:
            await _error(scope, send, failure.status, self._explain(target, failure))

    def _explain(self, target: Target, failure: FailedError) -> str:
        """What a client is told of a failure: its reason only if it is likely its author's own."""
        app = target.app
        reason = f": {failure.text}" if target.is_dev and failure.text else "."
        call = f" (call {failure.call_id})" if failure.call_id else ""
        return (
            f"The function {target.name!r} of the app {app.name or app.description!r} gave no "
            f"answer{call}{reason}\nIts log: `homeport app logs {app.app_id}`, or "
            f"{self._app_page(app.app_id)}"
        )


def _header(scope: Scope, name: bytes) -> str:
    """A request header's value; empty if there is none."""
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return ""


def _without_credentials(target: Target, scope: Scope) -> Scope:
    """``scope`` without what was meant for the gateway."""
    if not target.point.needs_token:
        return scope
    headers = [(name, value) for name, value in scope["headers"] if name not in _CREDENTIALS]
    return {**scope, "headers": headers}


def _continued(scope: Scope) -> tuple[str, str]:
    """The call that a request continues (empty: none), and the query without its name."""
    query = scope["query_string"].decode("latin-1")
    if CONTINUE_PARAMETER not in query:
        return "", query
    pairs = parse_qsl(query, keep_blank_values=True)
    found = [value for name, value in pairs if name == CONTINUE_PARAMETER]
    rest = urlencode([pair for pair in pairs if pair[0] != CONTINUE_PARAMETER])
    return (found[-1] if found and _CALL_ID.fullmatch(found[-1]) else ""), rest


async def _redirect(scope: Scope, send: Send, query: str, call_id: str) -> None:
    """See Other: the same address, with the call to wait for."""
    path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    if path.startswith("//"):  # which would name another host
        path = f"/.{path}"
    query = f"{query}&" if query else ""
    location = f"{path}?{query}{CONTINUE_PARAMETER}={call_id}"
    headers = [(b"location", location.encode("latin-1"))]
    origin = _header(scope, b"origin")
    if origin:  # a script of another site may go there: what it may read the application says then
        headers += [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-credentials", b"true"),
            (b"vary", b"Origin"),
        ]
    await _answer(send, 303, headers, b"")


async def _error(scope: Scope, send: Send, status: int, text: str) -> None:
    kind, body = error_body(status, text, _header(scope, b"accept"))
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1011, "reason": ""})
            return
        await _answer(send, status, [(b"content-type", kind)], body, "websocket.http.response")
    else:
        await _answer(send, status, [(b"content-type", kind)], body)


async def _answer(
    send: Send,
    status: int,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    kind: str = "http.response",
) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body, "more_body": False})
