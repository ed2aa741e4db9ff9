"""Running the RPCs of one connection and sending what they answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
from ngh2 import Connection, NGH2Error

from homeport.transport.dispatch import (
    CANCELLED,
    INTERNAL,
    Dispatcher,
    StatusError,
    Trailers,
)
from homeport.transport.headers import (
    RESPONSE_HEADERS,
    STATUS_OK,
    encode_trailers,
    status_trailers,
)
from homeport.transport.rpc_stream import PREFIX, RpcStream
from homeport.transport.upload import Incoming, Uploads

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

STREAM_UNSENT_MAX = 2 * 1024 * 1024
"""A streaming answer is not pulled further while more than this of it is unsent …"""
CONNECTION_UNSENT_MAX = 64 * 1024 * 1024
"""… or anything of it, while the whole connection has more than this unsent."""
_JOIN_MAX = 64 * 1024


class Replies:
    """Calls the dispatcher and queues messages and statuses on ``http2``.

    ``flush_soon`` has what is queued sent at the end of the event loop's turn.
    """

    def __init__(
        self, dispatcher: Dispatcher, http2: Connection, flush_soon: Callable[[], None]
    ) -> None:
        self._dispatcher = dispatcher
        self._http2 = http2
        self._flush_soon = flush_soon
        self._blocked: set[RpcStream] = set()

    async def run_unary(self, stream: RpcStream, body: bytes) -> None:
        """The task of an RPC with one answer."""
        await self._run_one(stream, self._dispatcher.unary(stream.call, body))

    async def run_upload(self, stream: RpcStream, uploads: Uploads, messages: Incoming) -> None:
        """The task of an RPC with a stream of requests."""
        await self._run_one(stream, uploads.upload(stream.call, messages))

    async def _run_one(self, stream: RpcStream, answer: Awaitable[bytes]) -> None:
        call = stream.call
        try:
            reply = await answer
        except StatusError as error:
            self.finish(stream, error.status, error.message, error.trailers)
        except asyncio.CancelledError:
            self.finish(stream, CANCELLED, f"{call.path} was cancelled in the server")
            raise
        except Exception as error:
            self._finish_broken(stream, error)
        else:
            if not stream.answered:
                self._send(stream, reply)
                self.finish(stream, 0, "", call.trailers)

    async def run_stream(self, stream: RpcStream, body: bytes) -> None:
        """The task of an RPC whose answer is a stream; closes the iterator in any case."""
        call = stream.call
        messages: AsyncIterator[bytes] | None = None
        try:
            messages = self._dispatcher.stream(call, body)
            async for message in messages:
                if stream.answered:
                    return
                self._send(stream, message)
                await self._wait_for_room(stream)
        except StatusError as error:
            self.finish(stream, error.status, error.message, error.trailers)
        except asyncio.CancelledError:
            self.finish(stream, CANCELLED, f"{call.path} was cancelled in the server")
            raise
        except Exception as error:
            self._finish_broken(stream, error)
        else:
            self.finish(stream, 0, "", call.trailers)
        finally:
            await _close_iterator(messages, call.path)

    def finish(
        self, stream: RpcStream, status: int, message: str, extra: Trailers | None = None
    ) -> None:
        """Send the status that ends the RPC; of several calls the first counts."""
        if stream.answered:
            return
        stream.answered = True
        stream.cancel_timer()
        trailers = status_trailers(status, message) if status else STATUS_OK
        if extra:
            encoded, dropped = encode_trailers(extra)
            trailers = trailers + encoded
            if dropped:
                log.warning("trailers left out", path=stream.call.path, names=dropped)
        # An error means that stream or connection are gone; the event that says so comes.
        with contextlib.suppress(NGH2Error):
            if stream.begun:
                self._http2.send_trailers(stream.stream_id, trailers)
            else:
                headers = RESPONSE_HEADERS + trailers
                self._http2.send_response(stream.stream_id, headers, end_stream=True)
        self._flush_soon()

    def forget(self, stream: RpcStream) -> None:
        """The stream is closed."""
        self._blocked.discard(stream)

    def wake(self) -> None:
        """After a flush: let the streaming answers go on that have room again."""
        if not self._blocked:
            return
        for stream in [stream for stream in self._blocked if self._has_room(stream)]:
            self._blocked.discard(stream)
            stream.wake()

    def _send(self, stream: RpcStream, message: bytes) -> None:
        http2 = self._http2
        stream_id = stream.stream_id
        prefix = len(message).to_bytes(PREFIX, "big")
        try:
            if not stream.begun:
                stream.begun = True
                http2.send_response(stream_id, RESPONSE_HEADERS)
            if len(message) <= _JOIN_MAX:
                http2.send_data(stream_id, prefix + message)
            else:
                http2.send_data(stream_id, prefix)
                http2.send_data(stream_id, message)
        except NGH2Error:
            stream.answered = True  # gone, as in ``finish``
        self._flush_soon()

    async def _wait_for_room(self, stream: RpcStream) -> None:
        while not stream.answered and not self._has_room(stream):
            stream.room = asyncio.get_running_loop().create_future()
            self._blocked.add(stream)
            await stream.room

    def _has_room(self, stream: RpcStream) -> bool:
        unsent = self._http2.queued_body_size(stream.stream_id)
        return unsent == 0 or (
            unsent <= STREAM_UNSENT_MAX and self._http2.queued_body_size() <= CONNECTION_UNSENT_MAX
        )

    def _finish_broken(self, stream: RpcStream, error: Exception) -> None:
        call = stream.call
        log.error("rpc failed", path=call.path, peer=call.peer, exc_info=error)
        self.finish(
            stream,
            INTERNAL,
            f"{call.path} failed in the server ({type(error).__name__}); its log has the details",
        )


async def _close_iterator(messages: AsyncIterator[bytes] | None, path: str) -> None:
    close = getattr(messages, "aclose", None)
    if close is None:
        return
    try:
        await close()
    except Exception as error:
        log.error("a stream did not close cleanly", path=path, exc_info=error)
