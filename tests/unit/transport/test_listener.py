"""One port: what each kind of first bytes gets, and the node's handshake for its link."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop
from aiohttp import web
from tests.unit.transport.harness import Client, Recorder

from homeport.gateway.listener import HEAD_BYTES_MAX, Listener
from homeport.kernel.errors import ConflictError, InvalidError
from homeport.link.connect import LinkRefusedError, connect_link
from homeport.link.framing import FrameProtocol
from homeport.link.messages import Ack, NodeMessage, Ping, ServerMessage
from homeport.transport.grpc_server import GrpcServer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TOKEN = "nt-secret"


class Port:
    """A listener with everything behind it, as the server wires it."""

    def __init__(self, **options: Any) -> None:
        self.received: asyncio.Queue[NodeMessage] = asyncio.Queue()
        self.closed = asyncio.Event()
        self.links: list[FrameProtocol[NodeMessage]] = []
        self.grpc = GrpcServer(Recorder())
        self.options = options

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/healthz", self._health)
        app.router.add_put("/blob/x", self._blob)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        server = self.runner.server
        assert server is not None
        self.listener = Listener(
            "127.0.0.1",
            0,
            grpc=self.grpc.protocol_factory,
            http=server,
            link=self._link,
            **self.options,
        )
        await self.listener.start()
        self.url = f"http://127.0.0.1:{self.listener.port}"

    async def stop(self) -> None:
        await self.listener.stop()
        await self.grpc.stop(0)
        for link in self.links:
            link.close()
        await self.runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="fine")

    async def _blob(self, request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    def _link(self, token: str) -> FrameProtocol[NodeMessage] | None:
        if token != TOKEN:
            return None
        link: FrameProtocol[NodeMessage] = FrameProtocol(
            NodeMessage, self.received.put_nowait, lambda _: self.closed.set()
        )
        self.links.append(link)
        return link


def run(scenario: Callable[[Port], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: failures.append(context)
        )
        port = Port(**options)
        await port.start()
        try:
            async with asyncio.timeout(20):
                await scenario(port)
        finally:
            await port.stop()
        assert not failures, failures

    uvloop.run(main())


async def exchange(port: Port, *pieces: bytes) -> bytes:
    """Send ``pieces`` one by one; everything that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port.listener.port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.001)
    answer = await reader.read()
    writer.close()
    return answer


def node_end(
    received: asyncio.Queue[ServerMessage], closed: asyncio.Event | None = None
) -> FrameProtocol[ServerMessage]:
    return FrameProtocol(
        ServerMessage, received.put_nowait, lambda _: closed.set() if closed else None
    )


def test_http2_goes_to_grpc_and_http1_to_the_gateway() -> None:
    async def scenario(port: Port) -> None:
        client = Client(port.listener.port)
        assert await client.unary("Echo", b"hello") == b"hello"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{port.url}/healthz") as answer:
                assert await answer.text() == "fine"
            async with session.put(f"{port.url}/blob/x", data=bytes(500_000)) as answer:
                assert await answer.text() == "500000"
        client.channel.close()

    run(scenario)


def test_requests_that_arrive_in_pieces() -> None:
    async def scenario(port: Port) -> None:
        request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        for split in (1, 3, 4, 5, 12):
            answer = await exchange(port, request[:split], request[split:])
            assert answer.startswith(b"HTTP/1.1 200 OK")
        # a name that only starts like the link's
        answer = await exchange(
            port, b"GET /_node/li", b"NK HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 404")
        # an HTTP/2 preface in pieces, then a frame that is nonsense
        answer = await exchange(port, PREFACE[:2], PREFACE[2:20], PREFACE[20:], b"\xff" * 200)
        assert b"GOAWAY" not in answer
        assert answer[3] == 4  # the server's SETTINGS frame came first
        assert b"\x07\x00\x00\x00\x00\x00" in answer  # and a GOAWAY frame later

    run(scenario)


def test_garbage_gets_a_bad_request() -> None:
    async def scenario(port: Port) -> None:
        for garbage in (
            b"\x00\x01\x02\xff\r\n\r\n",
            b"PRIME NUMBERS\r\n\r\n",
            b"\x16\x03\x01\x02\x00\r\n\r\n",
        ):
            assert b" 400 " in (await exchange(port, garbage)).split(b"\r\n")[0]
        client = Client(port.listener.port)
        assert await client.unary("Echo", b"hello") == b"hello"
        client.channel.close()

    run(scenario)


def test_a_silent_connection_is_closed() -> None:
    async def scenario(port: Port) -> None:
        assert await exchange(port) == b""
        assert await exchange(port, b"PRI *") == b""
        assert await exchange(port, b"GET /_node/link HTTP/1.1\r\n") == b""

    run(scenario, silence_s=0.05)


def test_stop_closes_connections_without_a_kind() -> None:
    async def scenario(port: Port) -> None:
        waiting = asyncio.ensure_future(exchange(port, b"PRI"))
        await asyncio.sleep(0.02)
        await port.listener.stop()
        assert await waiting == b""
        with pytest.raises(ConnectionRefusedError):
            await exchange(port)

    run(scenario)


def test_the_link_carries_messages_both_ways() -> None:
    async def scenario(port: Port) -> None:
        received: asyncio.Queue[ServerMessage] = asyncio.Queue()
        transport, link = await connect_link(port.url, TOKEN, lambda: node_end(received))
        link.send(Ping(0.5))
        assert await port.received.get() == Ping(0.5)
        port.links[0].send(Ack(7))
        assert await received.get() == Ack(7)
        transport.close()
        await port.closed.wait()

    run(scenario)


def test_messages_that_arrive_with_the_handshake_are_kept() -> None:
    async def scenario(port: Port) -> None:
        body = msgspec.msgpack.encode(Ping(1.5))
        head = f"GET /_node/link HTTP/1.1\r\nhost: x\r\nUPGRADE: homeport-link\r\nauthorization: bearer {TOKEN}\r\n\r\n"
        packet = head.encode() + len(body).to_bytes(4, "big") + body
        for split in (5, 40, len(head) - 1, len(head) + 3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port.listener.port)
            writer.write(packet[:split])
            await asyncio.sleep(0.005)
            writer.write(packet[split:])
            assert await port.received.get() == Ping(1.5)
            assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
            writer.close()

    run(scenario)


def test_a_wrong_token_is_refused() -> None:
    async def scenario(port: Port) -> None:
        with pytest.raises(LinkRefusedError, match="token"):
            await connect_link(port.url, "wrong", lambda: node_end(asyncio.Queue()))
        assert port.links == []
        upgrade = b"GET /_node/link HTTP/1.1\r\nUpgrade: homeport-link\r\n"
        answer = await exchange(port, upgrade + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 401 ")
        answer = await exchange(port, upgrade + b"Authorization: Basic abc\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 401 ")
        answer = await exchange(port, b"GET /_node/link HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 426 ")
        answer = await exchange(port, upgrade + b"X: " + b"y" * HEAD_BYTES_MAX)
        assert answer.startswith(b"HTTP/1.1 431 ")

    run(scenario)


def test_a_link_to_something_else_fails() -> None:
    async def scenario(port: Port) -> None:
        def factory() -> FrameProtocol[ServerMessage]:
            return node_end(asyncio.Queue())

        with pytest.raises(ConnectionError, match="404"):
            await connect_link(f"{port.url}/elsewhere", TOKEN, factory)
        with pytest.raises(ValueError, match="URL"):
            await connect_link("ftp://x", TOKEN, factory)
        with pytest.raises(ValueError, match="token"):
            await connect_link(port.url, "a\r\nb", factory)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(ConnectionError, match="did not answer"):
                await connect_link(url, TOKEN, factory, timeout_s=0.05)
        with pytest.raises(ConnectionError, match="cannot"):
            await connect_link(url, TOKEN, factory)

    run(scenario)


def test_a_port_in_use_is_a_conflict() -> None:
    async def scenario(port: Port) -> None:
        number = port.listener.port
        server = port.runner.server
        assert server is not None

        def listener(host: str, number: int) -> Listener:
            return Listener(
                host, number, grpc=port.grpc.protocol_factory, http=server, link=lambda _: None
            )

        with pytest.raises(ConflictError, match=f"port {number} .* in use"):
            await listener("127.0.0.1", number).start()
        with pytest.raises(InvalidError, match=r"no\.such\.host\.invalid"):
            await listener("no.such.host.invalid", 0).start()

    run(scenario)


def test_the_unix_socket_serves_the_same(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()

    async def scenario(port: Port) -> None:
        assert path.stat().st_mode & 0o777 == 0o600
        client = Client(0, str(path))
        assert await client.unary("Echo", b"hello") == b"hello"
        client.channel.close()
        connector = aiohttp.UnixConnector(str(path))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get("http://x/healthz") as answer,
        ):
            assert await answer.text() == "fine"
        with pytest.raises(ConflictError, match="in use"):
            await Port(unix_path=path).start()
        assert path.exists()

    run(scenario, unix_path=path)
    assert not path.exists()
