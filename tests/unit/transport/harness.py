"""A dispatcher with one method per behaviour, a server around it, and grpclib as the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpclib.client
import uvloop
from grpclib.config import Configuration
from grpclib.const import Cardinality

from homeport.transport import dispatch
from homeport.transport.dispatch import IncomingCall, StatusError
from homeport.transport.grpc_server import GrpcServer

MIB = 1024 * 1024


class Bytes:
    """What grpclib's codec needs of a message type, for raw bytes."""


class RawCodec:
    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return message

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


@dataclass
class Recorder:
    """The dispatcher under the tests. Methods are named ``/t.S/<Name>``."""

    calls: list[IncomingCall] = field(default_factory=list)
    cancelled: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    started: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    pulled: int = 0
    closed_streams: int = 0

    def is_stream(self, path: str) -> bool | None:
        name = path.rpartition("/")[2]
        if hasattr(self, f"unary_{name}"):
            return False
        return True if hasattr(self, f"stream_{name}") else None

    async def unary(self, call: IncomingCall, body: bytes) -> bytes:
        self.calls.append(call)
        name = call.path.rpartition("/")[2]
        return await getattr(self, f"unary_{name}")(call, body)

    def stream(self, call: IncomingCall, body: bytes) -> AsyncIterator[bytes]:
        self.calls.append(call)
        return getattr(self, f"stream_{call.path.rpartition('/')[2]}")(call, body)

    async def unary_Echo(self, call: IncomingCall, body: bytes) -> bytes:
        return body

    async def unary_Length(self, call: IncomingCall, body: bytes) -> bytes:
        return str(len(body)).encode()

    async def unary_Make(self, call: IncomingCall, body: bytes) -> bytes:
        self.started.put_nowait("Make")
        return b"m" * int(body)

    async def unary_Fail(self, call: IncomingCall, body: bytes) -> bytes:
        raise StatusError(dispatch.NOT_FOUND, body.decode(), [("x-why-bin", "AAEC")])

    async def unary_Break(self, call: IncomingCall, body: bytes) -> bytes:
        raise ValueError("a secret detail")

    async def unary_Warn(self, call: IncomingCall, body: bytes) -> bytes:
        call.trailers.append(("x-modal-warning", "careful"))
        call.trailers.append(("x-bad", "line\nbreak"))
        return body

    async def unary_Wait(self, call: IncomingCall, body: bytes) -> bytes:
        return await self._wait("Wait", body)

    async def unary_Poll(self, call: IncomingCall, body: bytes) -> bytes:
        call.interruptible = True
        return await self._wait("Poll", body)

    async def _wait(self, name: str, body: bytes) -> bytes:
        self.started.put_nowait(name)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.put_nowait(name)
            raise
        return body

    async def stream_Count(self, call: IncomingCall, body: bytes) -> AsyncIterator[bytes]:
        for number in range(int(body)):
            yield str(number).encode()

    async def stream_FailAfter(self, call: IncomingCall, body: bytes) -> AsyncIterator[bytes]:
        for number in range(int(body)):
            yield str(number).encode()
        raise StatusError(dispatch.ABORTED, "änderte sich")

    async def stream_Flood(self, call: IncomingCall, body: bytes) -> AsyncIterator[bytes]:
        try:
            for _ in range(1000):
                self.pulled += 1
                yield bytes(MIB)
        finally:
            self.closed_streams += 1

    async def stream_Idle(self, call: IncomingCall, body: bytes) -> AsyncIterator[bytes]:
        yield b"first"
        await self._wait("Idle", body)


Scenario = Callable[[Recorder, GrpcServer, "Client"], Awaitable[None]]


class Client:
    """Calls raw methods over a grpclib channel."""

    def __init__(self, port: int, path: str | None = None, **config: Any) -> None:
        self.port = port
        self.channel = grpclib.client.Channel(
            None if path else "127.0.0.1",
            None if path else port,
            path=path,
            codec=RawCodec(),  # type: ignore[arg-type]
            config=Configuration(**config),
        )

    async def unary(self, name: str, body: bytes, **options: Any) -> bytes:
        method = grpclib.client.UnaryUnaryMethod(self.channel, f"/t.S/{name}", Bytes, Bytes)
        return await method(body, **options)

    async def stream(self, name: str, body: bytes, **options: Any) -> list[bytes]:
        method = grpclib.client.UnaryStreamMethod(self.channel, f"/t.S/{name}", Bytes, Bytes)
        return await method(body, **options)

    def open(self, name: str, **options: Any) -> Any:
        return self.channel.request(
            f"/t.S/{name}", Cardinality.UNARY_STREAM, Bytes, Bytes, **options
        )


def run(
    scenario: Scenario,
    *,
    unix: Path | None = None,
    client: dict[str, Any] | None = None,
    **server_options: Any,
) -> None:
    """Run ``scenario`` against a fresh server on uvloop, then check that nothing is left of it."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        failures: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: failures.append(context))
        recorder = Recorder()
        server = GrpcServer(recorder, **server_options)
        if unix is None:
            listening = await loop.create_server(server.protocol_factory, "127.0.0.1", 0)
            port = listening.sockets[0].getsockname()[1]
        else:
            listening = await loop.create_unix_server(server.protocol_factory, str(unix))
            port = 0
        caller = Client(port, str(unix) if unix else None, **(client or {}))
        try:
            async with asyncio.timeout(15):  # uvloop keeps pytest-timeout's signal from acting
                await scenario(recorder, server, caller)
        finally:
            caller.channel.close()
            listening.close()
            await server.stop(0)
        assert server.connections == 0
        assert server.running == 0
        assert not failures, failures

    uvloop.run(main())
