"""HTTP/2 requests for servers that speak HTTP/1.1: what the gateway makes of them."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import aiohttp.web
from tests.unit.gateway.test_splice import Door
from tests.unit.transport.harness import Recorder
from tests.unit.transport.raw_client import Answer, RawClient

from homeport.gateway.direct import Direct
from homeport.gateway.relay import Relay
from homeport.transport.grpc_server import GrpcServer
from homeport.web.service import Target

Fields = list[tuple[bytes, bytes]]


def _ask(method: bytes, body: bytes | None, *more: tuple[bytes, bytes]) -> tuple[Answer, Any]:
    """The answer to a request, and what the server saw of it."""
    seen: dict[str, Any] = {}

    async def serve(request: aiohttp.web.BaseRequest) -> aiohttp.web.Response:
        seen.update(request.headers, method=request.method, body=await request.read())
        return aiohttp.web.Response(headers={"X-Long": "x" * 30_000})

    async def talk() -> Answer:
        loop = asyncio.get_running_loop()
        behind = await loop.create_server(aiohttp.web.Server(serve), "127.0.0.1", 0)
        door = Door(behind.sockets[0].getsockname()[1])
        target = cast(Any, door.admit([]))
        target.point.is_h2 = False
        relay = Relay(cast(Direct, door))
        await relay.start()

        async def application(scope: Any, receive: Any, send: Any) -> None:
            await relay.http(cast(Target, target), scope, receive, send)

        grpc = GrpcServer(Recorder(), application=application)
        front = await loop.create_server(grpc.protocol_factory, "127.0.0.1", 0)
        client = await RawClient.connect(front.sockets[0].getsockname()[1])
        plain = [(b":method", method), (b":scheme", b"http"), (b":authority", b"site")]
        headers = [*plain, (b":path", b"/"), *more]
        async with asyncio.timeout(20):
            stream_id = client.http2.send_request(headers, end_stream=body is None)
            answer = client.answers[stream_id] = Answer()
            client.flush()
            if body is not None:
                client.http2.send_data(stream_id, body, end_stream=True)
                client.flush()
            await answer.closed.wait()
        client.transport.close()
        front.close()
        await grpc.stop(1.0)
        await relay.stop()
        behind.close()
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


def test_expectation_is_the_gateways() -> None:
    _, seen = _ask(b"POST", b"body", (b"expect", b"100-continue"))
    assert seen["body"] == b"body"
    assert "Expect" not in seen
