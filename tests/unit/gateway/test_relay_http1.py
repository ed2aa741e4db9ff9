"""HTTP/2 requests for servers that speak HTTP/1.1: what the gateway makes of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import aiohttp.web
import ngh2
import pytest
from tests.unit.gateway.test_splice import Door
from tests.unit.transport.harness import Recorder
from tests.unit.transport.raw_client import Answer, RawClient

from homeport.gateway.direct import Direct
from homeport.gateway.relay import Relay
from homeport.transport.grpc_server import GrpcServer
from homeport.web.requests import FailedError
from homeport.web.service import Target

Fields = list[tuple[bytes, bytes]]


Serve = Callable[[aiohttp.web.BaseRequest], Awaitable[aiohttp.web.StreamResponse]]


@contextlib.asynccontextmanager
async def _behind_a_gateway(serve: Serve) -> AsyncIterator[tuple[RawClient, Door]]:
    """A client of a gateway in front of ``serve``."""
    loop = asyncio.get_running_loop()
    behind = await loop.create_server(aiohttp.web.Server(serve), "127.0.0.1", 0)
    door = Door(behind.sockets[0].getsockname()[1])
    target = cast(Any, door.admit([]))
    target.point.is_h2 = False
    relay = Relay(cast(Direct, door))
    await relay.start()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        try:
            await relay.http(cast(Target, target), scope, receive, send)
        except FailedError as error:
            await send({"type": "http.response.start", "status": error.status, "headers": []})
            await send({"type": "http.response.body", "body": error.text.encode()})

    grpc = GrpcServer(Recorder(), application=application)
    front = await loop.create_server(grpc.protocol_factory, "127.0.0.1", 0)
    client = await RawClient.connect(front.sockets[0].getsockname()[1])
    try:
        async with asyncio.timeout(20):
            yield client, door
    finally:
        client.transport.close()
        front.close()
        await grpc.stop(1.0)
        await relay.stop()
        behind.close()


def _send(client: RawClient, method: bytes, more: Fields, *, end: bool = True) -> int:
    plain = [(b":method", method), (b":scheme", b"http"), (b":authority", b"site")]
    path = b"*" if method == b"OPTIONS" else b"/"
    stream_id = client.http2.send_request([*plain, (b":path", path), *more], end_stream=end)
    client.answers[stream_id] = Answer()
    client.flush()
    return stream_id


def _ask(method: bytes, body: bytes | None, *more: tuple[bytes, bytes]) -> tuple[Answer, Any]:
    """The answer to a request, and what the server saw of it."""
    seen: dict[str, Any] = {}

    async def serve(request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        seen.update(request.headers, method=request.method, body=await request.read())
        return aiohttp.web.Response(headers={"X-Long": "x" * 30_000})

    async def talk() -> Answer:
        async with _behind_a_gateway(serve) as (client, _):
            stream_id = _send(client, method, [*more], end=body is None)
            if body is not None:
                client.http2.send_data(stream_id, body, end_stream=True)
                client.flush()
            answer = client.answers[stream_id]
            await answer.closed.wait()
            return answer

    return asyncio.run(talk()), seen


def test_long_header_of_an_answer_passes() -> None:
    answer, seen = _ask(b"GET", None)
    assert answer.headers[":status"] == "200"
    assert len(answer.headers["x-long"]) == 30_000
    assert (seen["method"], seen["body"]) == ("GET", b"")
    assert "Transfer-Encoding" not in seen


def test_body_without_a_length_passes() -> None:
    for method in (b"GET", b"POST", b"DELETE"):
        assert _ask(method, b"body")[1]["body"] == b"body"


def test_request_without_a_body_has_none() -> None:
    for method in (b"POST", b"DELETE"):
        _, seen = _ask(method, None)
        assert (seen["body"], "Transfer-Encoding" in seen) == (b"", False)


def test_what_is_for_no_path_is_refused() -> None:
    answer, seen = _ask(b"OPTIONS", None)
    assert (answer.headers[":status"], seen) == ("400", {})


def test_expectation_is_the_gateways() -> None:
    _, seen = _ask(b"POST", b"body", (b"expect", b"100-continue"))
    assert seen["body"] == b"body"
    assert "Expect" not in seen


@pytest.mark.parametrize("body", [False, True])
def test_client_that_leaves_an_endless_answer_ends_it(body: bool) -> None:
    ended = asyncio.Event()

    async def serve(request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        answer = aiohttp.web.StreamResponse()
        await answer.prepare(request)
        try:
            while True:
                await answer.write(b"data: x\n\n")
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    async def talk() -> None:
        async with _behind_a_gateway(serve) as (client, door):
            stream_id = _send(client, b"POST" if body else b"GET", [], end=not body)
            if body:
                client.http2.send_data(stream_id, b"body", end_stream=True)
                client.flush()
            while not client.answers[stream_id].data:
                await asyncio.sleep(0.01)
            client.http2.reset_stream(stream_id, ngh2.ErrorCode.CANCEL)
            client.flush()
            await ended.wait()
            while door.taken:
                await asyncio.sleep(0.01)

    asyncio.run(talk())


def test_client_that_leaves_while_it_waits_gives_its_turn_up() -> None:
    async def never(_request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        raise AssertionError("it was asked")

    async def talk() -> None:
        async with _behind_a_gateway(never) as (client, door):
            door.granting = False
            stream_id = _send(client, b"GET", [])
            while not door.waiting:
                await asyncio.sleep(0.01)
            client.http2.reset_stream(stream_id, ngh2.ErrorCode.CANCEL)
            client.flush()
            while door.taken:
                await asyncio.sleep(0.01)

    asyncio.run(talk())
