"""HTTP/2 requests that are no RPCs: how an ASGI application sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import ngh2
import pytest
from tests.unit.transport.harness import Recorder
from tests.unit.transport.raw_client import Answer, RawClient

from homeport.transport.grpc_server import GrpcServer

Fields = list[tuple[bytes, bytes]]
GET: Fields = [
    (b":method", b"GET"),
    (b":scheme", b"http"),
    (b":authority", b"site"),
    (b":path", b"/a?b=c"),
]


class Site:
    """An application that notes its requests and answers with the size of their bodies."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(size).encode()})


class _Client(RawClient):
    """What it sends has no bound, as hostile clients have none."""

    def __init__(self) -> None:
        super().__init__()
        bounds = ngh2.Configuration(max_send_header_block_length=1 << 20)
        self.http2 = ngh2.Connection(ngh2.Role.CLIENT, bounds)


def _run(scenario: Callable[[_Client, Site], Awaitable[None]]) -> None:
    async def scene() -> None:
        site = Site()
        grpc = GrpcServer(Recorder(), application=site)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(grpc.protocol_factory, "127.0.0.1", 0)
        client = await _Client.connect(server.sockets[0].getsockname()[1])
        assert isinstance(client, _Client)
        async with asyncio.timeout(20):
            await scenario(client, site)
        client.transport.close()
        server.close()
        await grpc.stop(1.0)

    asyncio.run(scene())


def _send(client: _Client, headers: Fields, *, end: bool = True) -> Answer:
    stream_id = client.http2.send_request(headers, end_stream=end)
    answer = client.answers[stream_id] = Answer()
    client.flush()
    return answer


def test_cookies_become_one_header() -> None:
    """Browsers send each as a field of its own (RFC 9113, 8.2.3)."""

    async def scenario(client: _Client, site: Site) -> None:
        cookies = [(b"cookie", b"a=1"), (b"cookie-policy", b"x"), (b"cookie", b"b=2")]
        await _send(client, GET + cookies).closed.wait()
        headers = site.scopes[0]["headers"]
        assert [value for name, value in headers if name == b"cookie"] == [b"a=1; b=2"]
        assert (b"cookie-policy", b"x") in headers

    _run(scenario)


def test_authority_is_the_host() -> None:
    async def scenario(client: _Client, site: Site) -> None:
        await _send(client, [*GET, (b"host", b"another")]).closed.wait()
        hosts = [value for name, value in site.scopes[0]["headers"] if name == b"host"]
        assert hosts == [b"site"]

    _run(scenario)


def test_expectation_is_met_before_the_body() -> None:
    async def scenario(client: _Client, site: Site) -> None:
        post = [(b":method", b"POST"), *GET[1:], (b"expect", b"100-continue")]
        answer = _send(client, post, end=False)
        await client.continues.wait()
        client.http2.send_data(next(iter(client.answers)), b"12345", end_stream=True)
        client.flush()
        await answer.closed.wait()
        assert answer.data == b"5"

    _run(scenario)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([*GET, *((b"x%d" % n, b"y" * 8000) for n in range(9))], "431"),
        ([*GET[:3], (b":path", b"/" + b"a" * 65_000 + b"b" * 600)], "414"),
        ([(b":method", b"CONNECT"), (b":authority", b"site:1")], "405"),
    ],
)
def test_refused_without_an_end_of_the_connection(headers: Fields, status: str) -> None:
    async def scenario(client: _Client, site: Site) -> None:
        answer = _send(client, headers)
        await answer.closed.wait()
        assert answer.headers[":status"] == status
        other = _send(client, GET)
        await other.closed.wait()
        assert other.headers[":status"] == "200"
        assert len(site.scopes) == 1

    _run(scenario)


def test_streams_that_are_reset_at_once_do_no_harm() -> None:
    async def scenario(client: _Client, site: Site) -> None:
        for _ in range(5000):
            stream_id = client.http2.send_request(GET, end_stream=True)
            client.http2.reset_stream(stream_id, ngh2.ErrorCode.CANCEL)
            if stream_id % 200 == 1:
                client.flush()
                await asyncio.sleep(0)
        answer = _send(client, GET)
        await answer.closed.wait()
        assert answer.headers[":status"] == "200"

    _run(scenario)
