"""Runs web requests as inputs of their functions: the way from a connection to a container."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from homeport.calls.exchange import Exchange
from homeport.calls.model import Call, InputState, Output
from homeport.calls.service import CallService
from homeport.link.messages import STATUS_INIT_FAILURE, STATUS_TERMINATED, STATUS_TIMEOUT
from homeport.web import asgi_wire as wire
from homeport.web.service import Target

Message = dict[str, Any]
Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

FIRST_MESSAGE_S: Final = 2.0
"""A container gives its application up that hears nothing for 5 s: it is told that more will come."""
DISCONNECT_GRACE_S: Final = 1.0
"""How long an application may take to end by itself once its client is gone."""
NUDGE_S: Final = 1.0
"""An application that goes on after its answer is told that nobody listens, so much later."""
PARKED_MARGIN_S: Final = 60.0
"""How much longer than one wait an answer is kept for a client that was sent to wait again."""
REQUESTS_MAX: Final = 20_000
"""Requests at once, waiting or running; more are refused."""
CONTINUE_PARAMETER: Final = "__modal_function_call_id"
_PASSED_ON: Final = ("type", "http_version", "method", "scheme", "path", "query_string", "client")
_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
"""From 2.4 on frameworks no longer listen for disconnects but expect sending to fail."""


class FailedError(Exception):
    """No answer, or only a part of one: ``status`` and ``text`` tell the client why."""

    def __init__(self, status: int, text: str, call_id: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.call_id = call_id


class BrokenError(Exception):
    """The answer broke off after it had begun: its connection has to end."""


class WaitOnError(Exception):
    """The answer takes longer than one request may: the client has to ask again for ``call_id``."""

    def __init__(self, call_id: str) -> None:
        super().__init__(call_id)
        self.call_id = call_id


class WebRequests:
    """Web requests in flight. ``wait_s`` is how long one may go without an answer."""

    def __init__(
        self, calls: CallService, *, wait_s: float, blob: Callable[[str], Awaitable[bytes]]
    ) -> None:
        self._calls = calls
        self._wait_s = wait_s
        self._blob = blob
        self._open_count = 0
        self._parked: dict[str, tuple[Call, asyncio.TimerHandle]] = {}

    # ── HTTP ────────────────────────────────────────────────────────────────────────────────

    async def http(self, target: Target, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Raises ``FailedError``, ``BrokenError``, ``WaitOnError``."""
        exchange = Exchange(wire.request_body(b"", True), FIRST_MESSAGE_S)
        call = self._open(target, scope, exchange)
        upload = _Upload(self._calls, call, exchange, receive)
        # What browsers ask before they ask may not be continued elsewhere.
        may_park = scope["method"] != "OPTIONS"
        await self._answer(call, exchange, upload, send, may_park=may_park)

    def parked(self, call_id: str, target: Target) -> Call | None:
        """The call that a client was sent to wait for, if it is one of ``target``."""
        entry = self._parked.get(call_id)
        if entry is None or entry[0].app_id != target.app.app_id:
            return None
        return entry[0]

    async def go_on(self, call: Call, receive: Receive, send: Send) -> None:
        """Answer a request that continues an earlier one. Raises as ``http``."""
        assert call.exchange is not None
        _, timer = self._parked.pop(call.call_id)
        timer.cancel()
        upload = _Upload(self._calls, call, call.exchange, receive, is_whole=True)
        await self._answer(call, call.exchange, upload, send)

    def _open(self, target: Target, scope: Scope, exchange: Exchange) -> Call:
        if self._open_count >= REQUESTS_MAX:
            raise FailedError(503, f"{REQUESTS_MAX} requests are being answered; try again")
        self._open_count += 1
        plain = {name: scope[name] for name in _PASSED_ON if name in scope}
        plain["headers"] = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        plain["asgi"] = _ASGI
        plain["root_path"] = ""
        plain["raw_path"] = scope.get("raw_path") or b""
        if "subprotocols" in scope:
            plain["subprotocols"] = list(scope["subprotocols"])
        return self._calls.open_bound(
            function_id=target.record.function_id,
            app_id=target.app.app_id,
            method_name=target.point.method,
            args=wire.arguments(plain),
            exchange=exchange,
        )

    async def _answer(
        self,
        call: Call,
        exchange: Exchange,
        upload: _Upload,
        send: Send,
        *,
        may_park: bool = True,
    ) -> None:
        reading = asyncio.ensure_future(upload.run())
        kept = False
        try:
            if may_park and not await self._first(exchange, upload):
                self._park(call)
                kept = True
                raise WaitOnError(call.call_id)
            await self._pass_back(call, exchange, send)
        finally:
            reading.cancel()
            if not kept:
                self._leave(call, exchange)

    async def _first(self, exchange: Exchange, upload: _Upload) -> bool:
        """Wait for the first of an answer, or its end; whether that came in time.

        An upload takes as long as it takes: the time counts from its end.
        """
        loop = asyncio.get_running_loop()
        while not exchange.has_news:
            since = upload.ended_at if upload.is_whole else loop.time()
            if loop.time() >= since + self._wait_s:
                return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(since + self._wait_s):
                    await exchange.news()
        return True

    async def _pass_back(self, call: Call, exchange: Exchange, send: Send) -> None:
        begun = False
        while (data := await self._pull(exchange)) is not None:
            message = wire.answer(data)
            if not message:
                continue
            if message["type"] == "http.response.start" and (fault := wire.fault(message)):
                raise FailedError(502, fault, call.call_id)
            begun = True
            await send(message)
            if message["type"] == "http.response.body" and not message["more_body"]:
                return
        if exchange.is_closed:
            return  # nobody is there any more
        if begun:
            raise BrokenError
        raise _failure(call, exchange.output)

    async def _pull(self, exchange: Exchange) -> bytes | None:
        chunk = await exchange.pull()
        if chunk is None:
            return None
        if not chunk.blob_id:
            return chunk.data
        return await self._blob(chunk.blob_id)

    def _park(self, call: Call) -> None:
        timer = asyncio.get_running_loop().call_later(
            self._wait_s + PARKED_MARGIN_S, self._give_up, call
        )
        self._parked[call.call_id] = (call, timer)

    def _give_up(self, call: Call) -> None:
        self._parked.pop(call.call_id, None)
        self._open_count -= 1
        self._calls.release(call)

    def _leave(self, call: Call, exchange: Exchange) -> None:
        """The connection is done with the input, which may have something left to do."""
        self._open_count -= 1
        if exchange.output is not None:
            self._calls.release(call)
            return
        exchange.close()
        asyncio.get_running_loop().call_later(NUDGE_S, _nudge, exchange)

    # ── WebSockets ──────────────────────────────────────────────────────────────────────────

    async def websocket(self, target: Target, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a WebSocket. Raises ``FailedError`` before it was accepted."""
        exchange = Exchange()
        call = self._open(target, scope, exchange)
        await receive()  # websocket.connect
        exchange.push(wire.websocket_connect())
        reading = asyncio.ensure_future(_read_websocket(self._calls, call, exchange, receive))
        accepted = False
        try:
            while (data := await self._pull(exchange)) is not None:
                message = wire.answer(data)
                if not message:
                    continue
                accepted = accepted or message["type"] == "websocket.accept"
                await send(message)
                if message["type"] == "websocket.close":
                    return
            if exchange.is_closed:
                return
            if not accepted:
                raise _failure(call, exchange.output)
            ok = exchange.output is not None and not exchange.output.result.exception
            await send({"type": "websocket.close", "code": 1000 if ok else 1011, "reason": ""})
        finally:
            reading.cancel()
            self._leave(call, exchange)


class _Upload:
    """Passes what a client sends to its container, and notices when the client leaves."""

    def __init__(
        self,
        calls: CallService,
        call: Call,
        exchange: Exchange,
        receive: Receive,
        *,
        is_whole: bool = False,
    ) -> None:
        self._calls = calls
        self._call = call
        self._exchange = exchange
        self._receive = receive
        self._was_whole = is_whole
        self.is_whole = is_whole
        """Whether the whole body has come."""
        self.ended_at = asyncio.get_running_loop().time()

    async def run(self) -> None:
        exchange = self._exchange
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                exchange.push(wire.disconnect())
                abandon(self._calls, self._call, exchange)
                return
            if self._was_whole:
                continue  # the body of a request that continues another means nothing
            more = bool(message.get("more_body"))
            if not self.is_whole:
                exchange.push(wire.request_body(message.get("body", b""), more))
            if not more:
                self.is_whole = True
                self.ended_at = asyncio.get_running_loop().time()
            await exchange.room()


async def _read_websocket(
    calls: CallService, call: Call, exchange: Exchange, receive: Receive
) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            exchange.push(wire.websocket_disconnect(message.get("code") or 1005))
            abandon(calls, call, exchange)
            return
        exchange.push(wire.websocket_receive(message))
        await exchange.room()


def abandon(calls: CallService, call: Call, exchange: Exchange) -> None:
    """The client is gone: its application may end by itself, and is ended if it does not.

    One that was not begun with is not begun with: no container is started for nobody.
    """
    exchange.close()
    if call.inputs[0].state is InputState.WAITING:
        calls.release(call)
        return
    asyncio.get_running_loop().call_later(DISCONNECT_GRACE_S, calls.release, call)


def _nudge(exchange: Exchange) -> None:
    if exchange.output is None:
        exchange.push(wire.disconnect())


def _failure(call: Call, output: Output | None) -> FailedError:
    """Why there is no answer."""
    if output is None:
        return FailedError(502, "The request ended without an answer.", call.call_id)
    result = output.result
    status = _STATUS.get(result.status, 500 if result.exception else 502)
    text = result.exception or "The application ended without an answer."
    return FailedError(status, text, call.call_id)


_STATUS: Final = {STATUS_TIMEOUT: 504, STATUS_TERMINATED: 503, STATUS_INIT_FAILURE: 500}
