"""Proxies between client and server: one loses answers, one bears with a server that dies."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any, Self

from grpclib.client import Channel
from grpclib.const import Cardinality
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError, StreamTerminatedError

from homeport.rpc.methods import client_services, methods_of
from homeport.transport.dispatch import UNAVAILABLE, IncomingCall, StatusError
from homeport.transport.grpc_server import GrpcServer

SERVICE = "/modal.client.ModalClient/"
GIVE_BACK_S = 45.0
"""Clients wait that long and a little more for an answer."""
ANSWER_S = 5.0
"""What waits for something is asked to answer so long before that, if with nothing."""
METHODS = {method.path: method for method in methods_of(client_services()).values()}
STREAMS = {path for path, method in METHODS.items() if method.is_stream}


class RawCodec(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return message

    def decode(self, data: bytes, message_type: Any) -> Any:
        return data


class Proxy:
    """Forwards each RPC to ``port`` of this machine as it is, on a connection of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(150)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = GrpcServer(self)
        listener = await self._loop.create_server(server.protocol_factory, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stopping.wait()
        listener.close()
        await server.stop(0)
        # A crash that is under way goes on to the server's new start: whoever stops it comes after.
        await self._loop.shutdown_default_executor()

    # ── homeport.transport.dispatch.Dispatcher ──────────────────────────────────────────────

    def is_stream(self, path: str) -> bool | None:
        return path in STREAMS

    async def unary(self, call: IncomingCall, body: bytes) -> bytes:
        (answer,) = [message async for message in self.stream(call, body)]
        return answer

    async def stream(self, call: IncomingCall, body: bytes) -> AsyncIterator[bytes]:
        channel = Channel("127.0.0.1", self._port, codec=RawCodec())
        cardinality = (
            Cardinality.UNARY_STREAM if self.is_stream(call.path) else Cardinality.UNARY_UNARY
        )
        metadata = [(name, value) for name, value in call.metadata.items() if name.startswith("x-")]
        try:
            async with channel.request(
                call.path, cardinality, bytes, bytes, metadata=metadata
            ) as stream:
                await stream.send_message(body, end=True)
                async for message in stream:
                    yield message
        except GRPCError as error:
            raise StatusError(error.status.value, error.message or "failed") from None
        except (OSError, StreamTerminatedError) as error:
            raise StatusError(UNAVAILABLE, str(error)) from None
        finally:
            channel.close()


class LossyProxy(Proxy):
    """Loses the answer to the first try of each method in ``lose``: the work is done.

    ``meanwhile`` runs between the server's answer and the client's bad news. ``lost`` says what
    was.
    """

    def __init__(self, port: int, lose: Collection[str], meanwhile: Callable[[], None]) -> None:
        super().__init__(port)
        self._lose = {SERVICE + name for name in lose}
        self._meanwhile = meanwhile
        self._one_at_a_time = asyncio.Lock()
        self.lost: list[str] = []

    async def unary(self, call: IncomingCall, body: bytes) -> bytes:
        answer = await super().unary(call, body)
        # Old clients make some calls without a key, and do not repeat those.
        is_first = call.metadata.get("x-retry-attempt", "0") == "0"
        if call.path in self._lose and is_first and "x-idempotency-key" in call.metadata:
            self.lost.append(call.path.removeprefix(SERVICE))
            async with self._one_at_a_time:
                await asyncio.to_thread(self._meanwhile)
            raise StatusError(UNAVAILABLE, "the answer was lost")
        return answer


class PatientProxy(Proxy):
    """Repeats a unary call, idempotency key and all, until the server answers it.

    As a client does that does not give up within a second; ``repeated`` counts. A call that waits
    anew with each repeat is to wait for what is left of the client's deadline only; if the server
    is not there by then, it is given back to the client.
    """

    repeated = 0

    async def unary(self, call: IncomingCall, body: bytes) -> bytes:
        give_back_at = self._loop.time() + GIVE_BACK_S
        timeout_at = None
        while True:
            try:
                async with asyncio.timeout_at(timeout_at):
                    return await super().unary(call, body)
            except TimeoutError:
                raise StatusError(UNAVAILABLE, "the server went away meanwhile") from None
            except StatusError as error:
                if error.status != UNAVAILABLE:
                    raise
            self.repeated += 1
            body = _waiting_at_most(call.path, body, give_back_at - ANSWER_S - self._loop.time())
            # If it is not there for so long it is waited for all the same.
            timeout_at = max(give_back_at, self._loop.time() + 1.0)
            await asyncio.sleep(0.05)


def _waiting_at_most(path: str, body: bytes, seconds: float) -> bytes:
    """The request, with its ``timeout`` cut to that, if it has one and there is any time left."""
    method = METHODS.get(path)
    if method is None or "timeout" not in method.request.DESCRIPTOR.fields_by_name or seconds <= 0:
        return body
    request: Any = method.request.FromString(body)
    request.timeout = min(request.timeout, type(request.timeout)(seconds))
    return request.SerializeToString()
