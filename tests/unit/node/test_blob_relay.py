"""The relay of blobs: streams both ways, and nothing but blobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from homeport.node.blob_relay import BlobRelay


def run(scenario: Callable[[aiohttp.ClientSession, str, list[str]], Awaitable[None]]) -> None:
    """A blob server, a relay to it, and a client of the relay."""

    async def main() -> None:
        seen: list[str] = []
        kept: dict[str, bytes] = {}

        async def put(request: web.Request) -> web.Response:
            seen.append(request.raw_path)
            body = await request.read()
            kept[request.match_info["id"]] = body
            return web.Response(headers={"ETag": f'"{len(body)}"'})

        async def get(request: web.Request) -> web.StreamResponse:
            seen.append(request.raw_path)
            return web.Response(body=kept[request.match_info["id"]])

        app = web.Application(client_max_size=0)
        app.router.add_put("/blob/{id}", put)
        app.router.add_get("/blob/{id}", get)
        app.router.add_get("/_node/files/{id}", get)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        relay = BlobRelay(lambda: f"http://127.0.0.1:{runner.addresses[0][1]}")
        await relay.start()
        assert relay.protocol_factory is not None
        server = await asyncio.get_running_loop().create_server(
            relay.protocol_factory, "127.0.0.1", 0
        )
        base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            async with aiohttp.ClientSession() as session:
                await scenario(session, base, seen)
        finally:
            server.close()
            await relay.close()
            await runner.cleanup()

    asyncio.run(main())


def test_blob_goes_up_and_comes_down_through_the_relay() -> None:
    async def scenario(session: aiohttp.ClientSession, base: str, seen: list[str]) -> None:
        data = bytes(range(256)) * 20_000
        async with session.put(URL(f"{base}/blob/bl-1?t=a%2Fb", encoded=True), data=data) as answer:
            assert answer.status == 200
            assert answer.headers["ETag"] == f'"{len(data)}"'
        async with session.get(f"{base}/blob/bl-1?t=x") as answer:
            assert await answer.read() == data
        assert seen == ["/blob/bl-1?t=a%2Fb", "/blob/bl-1?t=x"]

    run(scenario)


@pytest.mark.parametrize("path", ["/_node/files/x", "/blob/../_node/files/x", "/blob/a/b", "/"])
def test_anything_else_is_refused(path: str) -> None:
    async def scenario(session: aiohttp.ClientSession, base: str, seen: list[str]) -> None:
        async with session.get(URL(base + path, encoded=True)) as answer:
            assert answer.status == 403
        assert seen == []

    run(scenario)


def test_server_out_of_reach_is_said_as_such() -> None:
    async def main() -> None:
        relay = BlobRelay(lambda: "http://127.0.0.1:9")
        await relay.start()
        assert relay.protocol_factory is not None
        server = await asyncio.get_running_loop().create_server(
            relay.protocol_factory, "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{port}/blob/bl-1") as answer,
            ):
                assert answer.status == 503
        finally:
            server.close()
            await relay.close()

    asyncio.run(main())
