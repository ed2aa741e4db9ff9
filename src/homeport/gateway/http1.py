"""HTTP/1.1 and WebSockets for ASGI applications, by uvicorn's protocols on connections of ours."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

KEEP_ALIVE_S: Final = 75
"""An idle connection is closed after that time."""
WEBSOCKET_BYTES_MAX: Final = 16 * 1024 * 1024
"""The longest WebSocket message."""


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
        return HttpToolsProtocol(self._config, self._state, {})

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
