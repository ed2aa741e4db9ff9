"""Answers the RPCs that containers make through their node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import msgspec

from homeport.kernel.errors import HomeportError, NotFoundError
from homeport.link.messages import (
    ARRIVAL_PATH,
    RELAY_HOST,
    RELAY_PORT,
    SECRETS_PATH,
    STREAM_GOES_ON,
    Message,
    RpcReply,
    RpcRequest,
)
from homeport.nodes.service import Window
from homeport.rpc.context import TaskIdentity
from homeport.transport.dispatch import (
    NOT_FOUND,
    PERMISSION_DENIED,
    UNAVAILABLE,
    StatusError,
    Trailers,
)

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
    """Runs forwarded RPCs with the identity of the task that made them."""

    def __init__(
        self,
        edge: Edge,
        identify: Callable[[str], TaskIdentity | None],
        secrets: Callable[[list[str]], Awaitable[dict[str, str]]],
        arrival: Callable[[str], Awaitable[None]],
    ) -> None:
        self._secrets = secrets
        self._arrival = arrival
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
            if request.path == SECRETS_PATH:
                reply(RpcReply(request.rpc_id, 0, await self._secret_env(request.body)))
                return
            if request.path == ARRIVAL_PATH:
                await self._arrival(request.task_id)
                reply(RpcReply(request.rpc_id, 0, b""))
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

    async def _secret_env(self, body: bytes) -> bytes:
        try:
            secret_ids = msgspec.msgpack.decode(body, type=list[str])
            return msgspec.msgpack.encode(await self._secrets(secret_ids))
        except NotFoundError as error:
            raise StatusError(NOT_FOUND, error.message) from None
        except (HomeportError, msgspec.MsgspecError) as error:
            raise StatusError(UNAVAILABLE, f"the secrets could not be read: {error}") from None
