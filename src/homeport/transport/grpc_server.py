"""The gRPC server: what all its connections share, and how it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from homeport.transport.asgi_stream import Application
from homeport.transport.connection import GrpcProtocol
from homeport.transport.dispatch import UNAVAILABLE, Dispatcher
from homeport.transport.shared import Limits, Shared
from homeport.transport.upload import Uploads

__all__ = ["GrpcProtocol", "GrpcServer"]

_MIB = 1024 * 1024
_CLOSE_S = 2.0
"""How long a closing connection may take to send what is left before the next harder step."""
STOPPING = "the server is stopping; try again"


class GrpcServer:
    """Makes a ``GrpcProtocol`` per connection; works over TCP and unix sockets alike.

    ``uploads`` answers the RPCs whose request is a stream of messages; without it there are none.
    ``application`` (ASGI) answers requests that are no RPCs; without it they are refused. It has
    everything under authorities that are ``is_elsewhere``.

    ``message_bytes_max`` bounds one request message; ``streams_max`` the RPCs of one connection
    at a time; ``inbound_bytes_max`` the incomplete requests one connection may have in memory,
    ``outbound_bytes_max`` the unsent answers above which it gets no new RPC.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        uploads: Uploads | None = None,
        application: Application | None = None,
        is_elsewhere: Callable[[str], bool] = lambda _: False,
        message_bytes_max: int = 256 * _MIB,
        streams_max: int = 5000,
        inbound_bytes_max: int = 1024 * _MIB,
        outbound_bytes_max: int = 1024 * _MIB,
    ) -> None:
        limits = Limits(
            message_bytes_max=message_bytes_max,
            streams_max=streams_max,
            inbound_bytes_max=max(inbound_bytes_max, message_bytes_max),
            outbound_bytes_max=outbound_bytes_max,
        )
        self._shared = Shared(dispatcher, limits, uploads, application, is_elsewhere)

    def protocol_factory(self) -> GrpcProtocol:
        """A protocol for one new connection (pass the method itself to ``create_server``)."""
        return GrpcProtocol(self._shared)

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._shared.connections)

    @property
    def running(self) -> int:
        """RPCs whose task has not ended."""
        return len(self._shared.tasks)

    async def stop(self, grace_s: float) -> None:
        """End all connections; returns when they are closed and no RPC's task is left running.

        New RPCs get UNAVAILABLE, and so do at once all streams and calls marked
        ``interruptible``. Others may take ``grace_s`` seconds. A connection gets its GOAWAY when
        its last RPC is answered and read, not before: grpclib drops running RPCs on GOAWAY.
        A peer that does not read at all holds this up for two times two seconds at most.
        """
        shared = self._shared
        shared.stopping = STOPPING
        for connection in list(shared.connections):
            connection.begin_stop()
        await shared.wait_closed(grace_s)
        for connection in list(shared.connections):
            connection.end_calls(UNAVAILABLE, STOPPING)
        await shared.wait_closed(_CLOSE_S)
        for connection in list(shared.connections):
            connection.shut()
        await shared.wait_closed(_CLOSE_S)
        for connection in list(shared.connections):
            connection.abort()
        if shared.tasks:
            await asyncio.wait(list(shared.tasks), timeout=_CLOSE_S)
