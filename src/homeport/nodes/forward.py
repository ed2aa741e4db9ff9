"""Answers the RPCs that containers make through their node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Protocol

import structlog

from homeport.kernel.decoding import UNREADABLE
from homeport.kernel.errors import HomeportError
from homeport.link.messages import (
    RELAY_HOST,
    RELAY_PORT,
    STREAM_GOES_ON,
    Message,
    RpcReply,
    RpcRequest,
)
from homeport.nodes.service import Window
from homeport.rpc.context import TaskIdentity
from homeport.transport.dispatch import (
    INTERNAL,
    PERMISSION_DENIED,
    UNAVAILABLE,
    StatusError,
    Trailers,
)
from homeport.transport.statuses import STATUS_OF_CODE

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Own = Callable[[str, bytes], Awaitable[bytes]]
"""Answers what a node itself asks for a task (its id, the question)."""
CONTAINER_HTTP_BASE = f"http://{RELAY_HOST}:{RELAY_PORT}"


class Edge(Protocol):
    """The RPC edge, entered with an identity that is already known."""

    def is_stream(self, path: str) -> bool | None: ...

    async def forwarded_unary(
        self,
        path: str,
        identity: TaskIdentity,
        metadata: dict[str, str],
        body: bytes,
        timeout_s: float | None,
        http_base: str,
    ) -> tuple[bytes, Trailers]: ...

    def forwarded_stream(
        self,
        path: str,
        identity: TaskIdentity,
        metadata: dict[str, str],
        body: bytes,
        timeout_s: float | None,
        http_base: str,
    ) -> AsyncIterator[bytes]: ...


class RpcForwarder:
    """Runs forwarded RPCs with the identity of the task that made them.

    ``own`` answers the questions of nodes themselves, by their paths.
    """

    def __init__(
        self,
        edge: Edge,
        identify: Callable[[str], TaskIdentity | None],
        own: Mapping[str, Own],
    ) -> None:
        self._own = own
        self._edge = edge
        self._identify = identify

    def forward(
        self, request: RpcRequest, reply: Callable[[Message], None], window: Window
    ) -> asyncio.Task[None]:
        return asyncio.create_task(self._run(request, reply, window))

    async def _run(
        self, request: RpcRequest, reply: Callable[[Message], None], window: Window
    ) -> None:
        try:
            own = self._own.get(request.path)
            if own is not None:
                reply(RpcReply(request.rpc_id, 0, await _answered(own, request)))
                return
            identity = self._identify(request.task_id)
            if identity is None:
                raise StatusError(PERMISSION_DENIED, f"task {request.task_id} has ended")
            arguments = (
                request.path,
                identity,
                dict(request.metadata),
                request.body,
                request.timeout_s or None,
                CONTAINER_HTTP_BASE,
            )
            if self._edge.is_stream(request.path):
                async for body in self._edge.forwarded_stream(*arguments):
                    reply(RpcReply(request.rpc_id, STREAM_GOES_ON, body))
                    await window.sent(len(body))
                reply(RpcReply(request.rpc_id, 0, b""))
            else:
                body, trailers = await self._edge.forwarded_unary(*arguments)
                reply(RpcReply(request.rpc_id, 0, body, "", trailers))
        except StatusError as error:
            reply(RpcReply(request.rpc_id, error.status, b"", error.message, error.trailers))


async def _answered(own: Own, request: RpcRequest) -> bytes:
    try:
        return await own(request.task_id, request.body)
    except HomeportError as error:
        raise StatusError(STATUS_OF_CODE[error.code], error.message) from None
    except UNREADABLE as error:
        raise StatusError(UNAVAILABLE, f"{request.path}: {error}") from None
    except Exception as error:
        log.exception("a node's question was not answered", path=request.path)
        raise StatusError(INTERNAL, f"the server failed to answer {request.path}") from error
