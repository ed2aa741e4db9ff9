"""Requests for servers that speak HTTP/2, such as gRPC's: streams, trailers, back pressure, ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import grpclib
import httpx
import pytest
from grpclib.client import Channel
from grpclib.const import Cardinality, Handler, Status
from grpclib.server import Server, Stream
from tests.unit.gateway.test_splice import Door
from tests.unit.transport.harness import Recorder

from homeport.gateway.direct import Direct
from homeport.gateway.http1 import Http1
from homeport.gateway.relay import Relay
from homeport.transport.grpc_server import GrpcServer
from homeport.web.requests import FailedError
from homeport.web.service import Target

MIB = 1024 * 1024


class Raw:
    """Messages that are bytes."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, _type: object) -> bytes:
        return message

    def decode(self, data: bytes, _type: object) -> bytes:
        return data


class Echo:
    """What containers serve here."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.seen: dict[str, Any] = {}

    def __mapping__(self) -> dict[str, Handler]:
        both = Cardinality.STREAM_STREAM
        return {
            "/t.Echo/Each": Handler(self.each, both, bytes, bytes),
            "/t.Echo/Fail": Handler(self.fail, both, bytes, bytes),
            "/t.Echo/Flood": Handler(self.flood, both, bytes, bytes),
            "/t.Echo/Wait": Handler(self.wait, both, bytes, bytes),
        }

    async def each(self, stream: Stream[bytes, bytes]) -> None:
        self.seen = dict(stream.metadata or {})
        await stream.send_initial_metadata(metadata={"began": "yes"})
        async for message in stream:
            await stream.send_message(message[::-1])
        await stream.send_trailing_metadata(metadata={"ended": "yes"})

    async def fail(self, stream: Stream[bytes, bytes]) -> None:
        raise grpclib.GRPCError(Status.FAILED_PRECONDITION, "not like this")

    async def flood(self, stream: Stream[bytes, bytes]) -> None:
        self.sent = 0
        await stream.recv_message()
        for _ in range(64):
            await stream.send_message(b"x" * MIB)
            self.sent += 1

    async def wait(self, stream: Stream[bytes, bytes]) -> None:
        await stream.recv_message()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Case:
    """A gateway in front of one server; asked by HTTP/2 at ``channel``, by HTTP/1.1 at ``http1``."""

    def __init__(self) -> None:
        self.echo = Echo()

    async def start(self) -> None:
        self.behind = Server([self.echo], codec=Raw())
        await self.behind.start("127.0.0.1", 0)
        assert self.behind._server is not None
        self.door = Door(self.behind._server.sockets[0].getsockname()[1])
        self.relay = Relay(cast(Direct, self.door))
        await self.relay.start()
        target = self.door.admit([])
        cast(Any, target).point.is_h2 = True

        async def application(scope: Any, receive: Any, send: Any) -> None:
            try:
                await self.relay.http(cast(Target, target), scope, receive, send)
            except FailedError as error:
                await send({"type": "http.response.start", "status": error.status, "headers": []})
                await send({"type": "http.response.body", "body": error.text.encode()})

        self.grpc = GrpcServer(
            Recorder(), application=application, is_elsewhere=lambda name: name != "rpc"
        )
        self.http = Http1(application)
        loop = asyncio.get_running_loop()
        self.front2 = await loop.create_server(self.grpc.protocol_factory, "127.0.0.1", 0)
        self.front1 = await loop.create_server(self.http.protocol, "127.0.0.1", 0)
        self.http1 = f"http://127.0.0.1:{self.front1.sockets[0].getsockname()[1]}"
        port = self.front2.sockets[0].getsockname()[1]
        self.channel = Channel("127.0.0.1", port, codec=Raw())

    async def stop(self) -> None:
        self.channel.close()
        self.front1.close()
        self.front2.close()
        await self.http.stop(1.0)
        await self.grpc.stop(1.0)
        await self.relay.stop()
        self.behind.close()
        await self.behind.wait_closed()

    @contextlib.asynccontextmanager
    async def call(self, name: str) -> AsyncIterator[Any]:
        both = Cardinality.STREAM_STREAM
        request = self.channel.request(
            f"/t.Echo/{name}", both, bytes, bytes, metadata={"asked": "so"}
        )
        async with request as stream:
            yield stream


@contextlib.asynccontextmanager
async def case() -> AsyncIterator[Case]:
    made = Case()
    async with asyncio.timeout(30):
        await made.start()
        try:
            yield made
        finally:
            await made.stop()


def test_messages_in_turn_both_ways_with_metadata_and_trailers() -> None:
    async def talk() -> None:
        async with case() as here:
            async with here.call("Each") as stream:
                await stream.send_message(b"abc")
                assert await stream.recv_message() == b"cba"  # before the request has ended
                assert stream.initial_metadata["began"] == "yes"
                await stream.send_message(b"12" * MIB * 2, end=True)
                assert await stream.recv_message() == b"21" * MIB * 2
                assert await stream.recv_message() is None
                await stream.recv_trailing_metadata()
                assert stream.trailing_metadata["ended"] == "yes"
            assert here.echo.seen["asked"] == "so"
            assert here.echo.seen["x-forwarded-for"] == "127.0.0.1"
            assert here.door.taken == 0

    asyncio.run(talk())


def test_many_at_once_on_one_connection() -> None:
    async def talk() -> None:
        async with case() as here:

            async def one(number: int) -> bytes | None:
                async with here.call("Each") as stream:
                    await stream.send_message(b"%d" % number, end=True)
                    return await stream.recv_message()

            said = await asyncio.gather(*(one(number) for number in range(100)))
            assert said == [(b"%d" % number)[::-1] for number in range(100)]

    asyncio.run(talk())


def test_status_of_a_call_that_failed_at_once() -> None:
    async def talk() -> None:
        async with case() as here:

            async def call() -> None:
                async with here.call("Fail") as stream:
                    await stream.send_message(b"", end=True)
                    await stream.recv_message()

            with pytest.raises(grpclib.GRPCError) as refused:
                await call()
            assert refused.value.status is Status.FAILED_PRECONDITION
            assert refused.value.message == "not like this"

    asyncio.run(talk())


def test_server_waits_for_its_reader() -> None:
    async def talk() -> None:
        async with case() as here, here.call("Flood") as stream:
            await stream.send_message(b"", end=True)
            await stream.recv_message()
            before = -1
            while before != here.echo.sent:
                before = here.echo.sent
                await asyncio.sleep(0.3)
            assert before < 40
            rest = [message async for message in stream]
            assert len(rest) == 63

    asyncio.run(talk())


def test_client_that_leaves_ends_the_call() -> None:
    async def talk() -> None:
        async with case() as here:
            async with here.call("Wait") as stream:
                await stream.send_message(b"", end=True)
                await asyncio.sleep(0.2)
                await stream.cancel()
            await here.echo.cancelled.wait()

    asyncio.run(talk())


def test_connection_that_was_lost_is_made_again() -> None:
    async def talk() -> None:
        async with case() as here:
            for _ in range(2):
                async with here.call("Each") as stream:
                    await stream.send_message(b"abc", end=True)
                    assert await stream.recv_message() == b"cba"
                for opened in list(here.relay._http2._open.values()):
                    opened.result().close()

    asyncio.run(talk())


def test_nothing_listens() -> None:
    async def talk() -> None:
        async with case() as here:
            here.behind.close()
            await here.behind.wait_closed()
            async with httpx.AsyncClient() as client:
                answer = await client.get(here.http1 + "/")
            assert answer.status_code == 502
            assert here.door.opened > 1
            assert here.door.taken == 0

    asyncio.run(talk())


def test_http1_clients_are_served_too() -> None:
    async def talk() -> None:
        async with case() as here:
            framed = b"\0" + (3).to_bytes(4, "big") + b"abc"
            headers = {"content-type": "application/grpc", "te": "trailers"}
            async with httpx.AsyncClient() as client:
                url = here.http1 + "/t.Echo/Each"
                answer = await client.post(url, content=framed, headers=headers)
            assert answer.status_code == 200
            assert answer.content == framed[:5] + b"cba"

    asyncio.run(talk())
