"""HTTP/1.1 and WebSockets for ASGI applications, by uvicorn's protocols on connections of ours."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from homeport.gateway import offers
from homeport.gateway.doorman import Refusal
from homeport.gateway.errors import error_body
from homeport.gateway.head import HeadGuard
from homeport.gateway.linger import Linger

KEEP_ALIVE_S: Final = 75
"""An idle connection is closed after that time."""
WEBSOCKET_BYTES_MAX: Final = 16 * 1024 * 1024
"""The longest WebSocket message."""


class _Transport:
    """A transport whose ``close`` waits for what ``is_owed`` by the client."""

    def __init__(self, transport: asyncio.Transport, is_owed: Callable[[], bool]) -> None:
        self._transport = transport
        self._is_owed = is_owed
        self.lingering: Linger | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.lingering is not None or self._transport.is_closing()

    def close(self) -> None:
        """The second time at once."""
        if self.lingering is None and self._is_owed() and not self._transport.is_closing():
            self.lingering = Linger(self._transport)
        else:
            self._transport.close()


class _Bounded(HttpToolsProtocol):
    """Uvicorn's protocol, with bounds for what comes before a body and an end without resets."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._head = HeadGuard(self._refuse)
        self._refusal: Refusal | None = None
        self.url = b""
        self._is_cut = False
        """The parser leaves out a body that is there: see ``offers``."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._ending = _Transport(transport, self._is_owed)
        super().connection_made(cast(asyncio.Transport, self._ending))

    def _is_owed(self) -> bool:
        """Whether the client has an answer to a request that it is still sending."""
        cycle: Any = self.cycle  # none before the first request
        return cycle is not None and cycle.response_complete and cycle.more_body

    def connection_lost(self, exc: Exception | None) -> None:
        self._head.stop()
        if self._ending.lingering is not None:
            self._ending.lingering.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._ending.lingering is not None:
            self._ending.lingering.heard()
            return
        self._unset_keepalive_if_required()
        size = len(data)
        while data:
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                if self._should_upgrade():
                    self.handle_websocket_upgrade()
                    return
                data = data[upgrade.args[0] :]
                if self._is_cut:
                    self.parser = offers.parser_of_body(self, self.headers)
                    self._is_cut = False
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
                return
        refusal = self._head.received(size, self.url)
        if refusal is not None:
            self._refuse(refusal)

    def on_message_begin(self) -> None:
        if not self._is_cut:
            super().on_message_begin()
            self._head.begin()

    def on_url(self, url: bytes) -> None:
        if not self._is_cut:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_cut:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_cut:
            return
        self._refusal = self._head.complete(self.url, self.headers)
        if self._refusal is not None:
            raise httptools.HttpParserError  # which ends in ``send_400_response``
        super().on_headers_complete()
        self._is_cut = (
            self.parser.should_upgrade()
            and offers.has_offer(self.headers)
            and offers.has_body(self.headers)
        )

    def on_message_complete(self) -> None:
        if not self._is_cut:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._head.stop()
        refusal, self._refusal = self._refusal, None
        if refusal is None:
            super().send_400_response(msg)
        else:
            self._refuse(refusal)

    def _refuse(self, refusal: Refusal) -> None:
        if self.transport.is_closing():
            return
        kind, body = error_body(refusal.status, refusal.text, "")
        lines = (
            b"HTTP/1.1 %d Error" % refusal.status,
            b"Content-Type: " + kind,
            b"Content-Length: %d" % len(body),
            b"Connection: close",
        )
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        self.transport.close()


class Http1:
    """Serves connections with ``app``; ``protocol`` makes the protocol of one."""

    def __init__(self, app: Any) -> None:
        self._config = Config(
            app,
            http="httptools",
            ws="wsproto",
            ws_max_size=WEBSOCKET_BYTES_MAX,
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._config.load()
        # What the application raises it has logged itself; what clients send wrong is theirs.
        logging.getLogger("uvicorn.error").disabled = True
        self._state = ServerState()

    def protocol(self) -> asyncio.Protocol:
        """A protocol for one connection."""
        return _Bounded(self._config, self._state, {})

    async def stop(self, grace_s: float) -> None:
        """Close idle connections at once, the others when their answer is out, or after a while."""
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(list(self._state.tasks), timeout=grace_s)
        for task in list(self._state.tasks):
            task.cancel()
        for connection in list(self._state.connections):
            connection.transport.close()
