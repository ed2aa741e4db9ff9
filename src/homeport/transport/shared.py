"""What the connections of one gRPC server have in common."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from homeport.transport.asgi_stream import Application
from homeport.transport.dispatch import Dispatcher
from homeport.transport.upload import Uploads


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a server, see ``GrpcServer``."""

    message_bytes_max: int
    streams_max: int
    inbound_bytes_max: int
    outbound_bytes_max: int


class StoppableConnection(Protocol):
    """What a server does with its connections when it stops."""

    def begin_stop(self) -> None: ...
    def end_calls(self, status: int, sentence: str) -> None: ...
    def shut(self) -> None: ...
    def abort(self) -> None: ...


@dataclass(slots=True)
class Shared:
    """What the connections of one server have in common."""

    dispatcher: Dispatcher
    limits: Limits
    uploads: Uploads | None = None
    application: Application | None = None
    """Who answers requests that are no RPCs."""
    is_elsewhere: Callable[[str], bool] = lambda _: False
    """Whether an authority is the application's, RPCs and all."""
    connections: set[StoppableConnection] = field(
        default_factory=lambda: set[StoppableConnection]()
    )
    tasks: set[asyncio.Task[None]] = field(default_factory=lambda: set[asyncio.Task[None]]())
    """Tasks of RPCs; the event loop itself holds tasks weakly."""
    stopping: str = ""
    """The sentence for new calls once the server stops."""
    _closed: asyncio.Event | None = None

    async def wait_closed(self, timeout_s: float) -> None:
        """Until there is no connection, or ``timeout_s`` has passed."""
        if not self.connections:
            return
        self._closed = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._closed.wait()

    def forget(self, connection: StoppableConnection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        if not self.connections and self._closed is not None:
            self._closed.set()


def prepare_socket(transport: asyncio.BaseTransport) -> str:
    """Set up a TCP socket for RPCs (no delay, a vanished peer is noticed); returns the peer's name."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return "unix"
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    peer = transport.get_extra_info("peername")
    return f"{peer[0]}:{peer[1]}" if peer else "tcp"
