"""RPCs of the command router that come over the link: the server answers older clients with them."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

import structlog

from homeport.kernel.errors import Code
from homeport.link.messages import STREAM_GOES_ON, Message, RouterReply, RouterRequest
from homeport.transport import dispatch
from homeport.transport.dispatch import Dispatcher, IncomingCall, StatusError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_CODES: Final = {
    dispatch.INVALID_ARGUMENT: Code.INVALID,
    dispatch.NOT_FOUND: Code.NOT_FOUND,
    dispatch.ALREADY_EXISTS: Code.ALREADY_EXISTS,
    dispatch.FAILED_PRECONDITION: Code.CONFLICT,
    dispatch.UNIMPLEMENTED: Code.UNIMPLEMENTED,
    dispatch.RESOURCE_EXHAUSTED: Code.EXHAUSTED,
    dispatch.DEADLINE_EXCEEDED: Code.DEADLINE,
}


class Link(Protocol):
    """The link, as answers use it."""

    def send(self, message: Message) -> bool: ...

    async def uncongested(self) -> None: ...


class Routed:
    """The requests that are being answered, by ``dispatcher``."""

    def __init__(self, dispatcher: Dispatcher, link: Link) -> None:
        self._dispatcher = dispatcher
        self._link = link
        self._running: dict[int, asyncio.Task[None]] = {}

    def begin(self, request: RouterRequest) -> None:
        """Answer a request."""
        task = asyncio.create_task(self._run(request))
        self._running[request.rpc_id] = task
        task.add_done_callback(lambda _: self._running.pop(request.rpc_id, None))

    def cancel(self, rpc_id: int) -> None:
        """Nobody waits for it any more."""
        task = self._running.get(rpc_id)
        if task is not None:
            task.cancel()

    async def stop(self) -> None:
        """End them all."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    async def _run(self, request: RouterRequest) -> None:
        rpc_id = request.rpc_id
        call = IncomingCall(request.path, {}, None)
        try:
            if self._dispatcher.is_stream(request.path):
                async for body in self._dispatcher.stream(call, request.body):
                    self._link.send(RouterReply(rpc_id, STREAM_GOES_ON, body))
                    await self._link.uncongested()
                self._link.send(RouterReply(rpc_id, dispatch.OK, b"", is_stream=True))
            else:
                body = await self._dispatcher.unary(call, request.body)
                self._link.send(RouterReply(rpc_id, dispatch.OK, body))
        except StatusError as error:
            code = _CODES.get(error.status, Code.UNAVAILABLE)
            self._link.send(RouterReply(rpc_id, error.status, b"", code.value, error.message))
        except Exception as error:
            log.exception("a request of the server failed", path=request.path)
            sentence = f"the node failed to answer ({type(error).__name__}); its log has details"
            self._link.send(RouterReply(rpc_id, dispatch.INTERNAL, b"", "internal", sentence))
