"""Requests of the server to a node's command router, over the link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

from homeport.kernel.errors import Code, UnavailableError, error_of
from homeport.link.messages import (
    STREAM_GOES_ON,
    Message,
    RouterCancel,
    RouterReply,
    RouterRequest,
)

OK: Final = 0
UNREAD_BYTES_MAX: Final = 64 * 1024 * 1024
"""Answers of one stream that nobody has taken yet, beyond which it is given up."""


@dataclass(slots=True)
class _Routed:
    node_id: str
    replies: asyncio.Queue[RouterReply] = field(default_factory=asyncio.Queue[RouterReply])
    unread: int = 0


class Routing:
    """The requests that are under way. ``send`` says whether the node is connected."""

    def __init__(self, send: Callable[[str, Message], bool]) -> None:
        self._send = send
        self._routed: dict[int, _Routed] = {}
        self._next = 0

    async def unary(self, node_id: str, path: str, body: bytes, timeout_s: float | None) -> bytes:
        """One answer. Raises the ``HomeportError`` that the node answers with."""
        async with asyncio.timeout(timeout_s):
            async for answer in self.stream(node_id, path, body):
                return answer
        raise UnavailableError("the node gave no answer")

    async def stream(self, node_id: str, path: str, body: bytes) -> AsyncIterator[bytes]:
        """The messages of a stream. Raises as ``unary`` does."""
        self._next += 1
        rpc_id = self._next
        routed = self._routed[rpc_id] = _Routed(node_id)
        ended = False
        try:
            if not self._send(node_id, RouterRequest(rpc_id, path, body)):
                ended = True
                raise UnavailableError("the node is not connected now; try again")
            while True:
                reply = await routed.replies.get()
                routed.unread -= len(reply.body)
                if reply.code:
                    ended = True
                    raise error_of(Code(reply.code), reply.message)
                if reply.status == STREAM_GOES_ON:
                    yield reply.body
                    continue
                ended = True
                if reply.body or not reply.is_stream:
                    yield reply.body
                return
        finally:
            self._routed.pop(rpc_id, None)
            if not ended:
                self._send(node_id, RouterCancel(rpc_id))

    def replied(self, reply: RouterReply) -> None:
        """A node answered."""
        routed = self._routed.get(reply.rpc_id)
        if routed is None:
            return
        routed.unread += len(reply.body)
        if routed.unread > UNREAD_BYTES_MAX:
            self._routed.pop(reply.rpc_id)
            self._send(routed.node_id, RouterCancel(reply.rpc_id))
            sentence = f"more than {UNREAD_BYTES_MAX} bytes of this stream were left unread"
            reply = RouterReply(reply.rpc_id, 0, b"", Code.UNAVAILABLE.value, sentence)
        routed.replies.put_nowait(reply)

    def lost(self, node_id: str) -> None:
        """Its connection is gone."""
        sentence = "the connection to the node was lost; try again"
        for rpc_id, routed in self._routed.items():
            if routed.node_id == node_id:
                failed = RouterReply(rpc_id, 0, b"", Code.UNAVAILABLE.value, sentence)
                routed.replies.put_nowait(failed)
