"""The short way to web servers, with servers of the tests' own in place of containers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

import pytest
from tests.unit.gateway.test_listener_hosts import Says

from homeport.calls.lease import Lease, Place
from homeport.gateway import head, splice
from homeport.gateway.doorman import Headers, Refusal
from homeport.gateway.splice import Splice
from homeport.web.service import Target

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
MIB = 1024 * 1024
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class _Point:
    def __init__(self, port: int) -> None:
        self.port = port


class _Target:
    def __init__(self, port: int) -> None:
        self.point = _Point(port)


class Door:
    """Lets everyone in, to a server on this machine; counts the places that are taken."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.taken = 0
        self.opened = 0
        self.granting = True
        self.waiting: list[Lease] = []
        self.over: list[tuple[bytes, str, int]] = []

    def admit(self, headers: Headers) -> Target | Refusal:
        if any(name.lower() == b"x-stranger" for name, _ in headers):
            return Refusal(401, "who are you?")
        if any(name.lower() == b"host" and value == b"b" for name, value in headers):
            return Refusal(421, "on connections of its own")
        return cast(Target, _Target(self.port))

    def control(self, *_: Any) -> bool:
        return False

    def open(self, _target: Target, _headers: Headers) -> Lease | Refusal:
        lease = Lease()
        self.opened += 1
        self.taken += 1
        if self.granting:
            lease.place = Place("ta-1", "127.0.0.1")
        else:
            self.waiting.append(lease)
        return lease

    def close(self, _lease: Lease) -> None:
        self.taken -= 1

    def served(
        self, _target: Target, path: bytes, task_id: str, arrived_at: float, status: int
    ) -> None:
        assert arrived_at > 0
        self.over.append((path, task_id, status))

    def explain(self, _target: Target, reason: str) -> str:
        return f"no answer: {reason}"


class Case:
    """A gateway in front of ``serve``."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.connections = 0

    async def __aenter__(self) -> Case:
        self._behind = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.door = Door(self._behind.sockets[0].getsockname()[1])
        self.splice = Splice(self.door, lambda host: lambda: Says(host.encode()))
        loop = asyncio.get_running_loop()
        self._front = await loop.create_server(self.splice.protocol, "127.0.0.1", 0)
        self.port = self._front.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.splice.stop(1.0)
        self._front.close()
        self._behind.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, request: bytes) -> bytes:
        """All that is answered on a connection that ``request`` ends."""
        reader, writer = await self.connect()
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer

    def small_send_buffers(self) -> None:
        """For connections of clients that are made from now on."""
        (listener,) = self._front.sockets
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024)

    async def settled_after(self, count: int) -> None:
        """Until so many places were taken, and all are given back."""
        while self.door.opened < count:
            await asyncio.sleep(0.01)
        await self.settled()

    async def settled(self) -> None:
        """Until every place is given back."""
        while self.door.taken:
            await asyncio.sleep(0.01)


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await work

    asyncio.run(limited())


def get(path: str, *headers: str, last: bool = True) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: a", *headers, *(["Connection: close"] if last else [])]
    return "\r\n".join([*lines, "", ""]).encode()


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each request with its path."""
    while True:
        path = (await head_of(reader)).split(b" ")[1]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))


def test_request_and_answer_pass() -> None:
    async def scenario() -> None:
        async with Case(hello) as case:
            assert (await case.ask(get("/there"))).endswith(b"\r\n\r\n/there")
            await case.settled()

    run(scenario())


def test_headers_of_the_gateway_are_not_passed_on() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head))

    async def scenario() -> None:
        async with Case(echo) as case:
            answer = await case.ask(get("/", "Modal-Key: k", "Modal-Secret: s", "X-Mine: 1"))
            seen = answer.partition(b"\r\n\r\n")[2].lower()
            assert b"modal-" not in seen
            assert b"connection: close" not in seen
            assert b"connection: close" in answer.partition(b"\r\n\r\n")[0].lower()
            assert b"x-mine: 1" in seen
            assert b"x-forwarded-for: 127.0.0.1" in seen

    run(scenario())


def test_pipelined_requests_are_answered_in_order_over_one_connection() -> None:
    async def scenario() -> None:
        async with Case(hello) as case:
            asked = [get(f"/{n}", last=n == 4) for n in range(5)]
            answer = await case.ask(b"".join(asked))
            assert [line[:2] for line in answer.split(b"\r\n\r\n")[1:]] == [
                b"/%d" % n for n in range(5)
            ]
            assert case.connections == 1
            await case.settled()

    run(scenario())


def test_chunked_request_arrives_whole() -> None:
    async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        total = b""
        while length := int(await reader.readline(), 16):
            total += await reader.readexactly(length)
            await reader.readline()
        await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(total), total))

    async def scenario() -> None:
        async with Case(digest) as case:
            body = b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n"
            head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
            answer = await case.ask(head + b"Connection: close\r\n\r\n" + body)
            assert answer.endswith(b"\r\n\r\nabcdefg")

    run(scenario())


def test_fast_sender_is_held_back() -> None:
    taken = 0

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await head_of(reader)
        await asyncio.sleep(0.5)
        while taken < 64 * MIB:
            taken += len(await reader.read(MIB))
        writer.write(OK)

    async def scenario() -> None:
        async with Case(slow) as case:
            reader, writer = await case.connect()
            writer.transport.set_write_buffer_limits(high=MIB)
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (64 * MIB))
            sent = 0
            while sent < 64 * MIB:
                writer.write(bytes(MIB))
                sent += MIB
                await writer.drain()
                assert sent - taken < 32 * MIB  # buffers of the kernel and ours
            assert (await head_of(reader)).startswith(b"HTTP/1.1 200")
            writer.close()

    run(scenario())


def test_fast_server_is_held_back() -> None:
    sent = 0

    async def fast(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 * MIB))
        for _ in range(64):
            writer.write(bytes(MIB))
            await writer.drain()
            sent += MIB

    async def scenario() -> None:
        async with Case(fast) as case:
            reader, writer = await case.connect()
            writer.write(get("/"))
            await head_of(reader)
            await asyncio.sleep(0.5)
            assert sent < 32 * MIB
            await reader.readexactly(64 * MIB)
            writer.close()

    run(scenario())


async def _slow_client(case: Case) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """One that takes next to nothing before it is read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", case.port))
    return await asyncio.open_connection(sock=sock, limit=1024)


def test_connection_that_a_slow_client_had_serves_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(splice, "BUFFER_BYTES", 1024)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            size = int((await head_of(reader)).split(b" ")[1][1:])
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)

    async def scenario() -> None:
        async with Case(serve) as case:
            case.small_send_buffers()
            slow, writer = await _slow_client(case)
            writer.write(get("/60000", last=False))
            await case.settled_after(1)  # the answer is out of the container, not yet at its client
            assert (await case.ask(get("/3"))).endswith(b"\r\n\r\nxxx")
            head = await head_of(slow)
            assert b"60000" in head
            assert await slow.readexactly(60000) == b"x" * 60000
            assert (await case.ask(get("/2"))).endswith(b"\r\n\r\nxx")
            assert case.connections == 1
            writer.close()

    run(scenario())


def test_client_that_is_still_slow_holds_the_next_answer_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(splice, "BUFFER_BYTES", 1024)
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await head_of(reader)
        size = 60000
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"y" * MIB)
            await writer.drain()
            sent += MIB

    async def scenario() -> None:
        async with Case(serve) as case:
            case.small_send_buffers()
            _, writer = await _slow_client(case)
            writer.write(get("/", last=False))
            await case.settled_after(1)
            writer.write(get("/", last=False))
            last = -1
            while last != sent:
                last = sent
                await asyncio.sleep(0.3)
            assert sent < 64 * MIB
            writer.close()
            await case.settled()

    run(scenario())


def test_stale_connection_is_replaced() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(OK)
        await head_of(reader)  # the second request on this connection: gone without a word
        writer.transport.abort()

    async def scenario() -> None:
        async with Case(once) as case:
            for _ in range(2):
                assert (await case.ask(get("/"))).endswith(b"ok")
            assert case.connections == 2
            await case.settled()

    run(scenario())


def test_answer_that_breaks_off_ends_the_connection() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()

    async def scenario() -> None:
        async with Case(half) as case:
            reader, writer = await case.connect()
            writer.write(get("/"))
            await head_of(reader)
            rest = b""
            try:
                while part := await reader.read(1000):
                    rest += part
            except ConnectionError:
                pass
            assert rest in (b"", b"half")
            assert case.connections == 1  # not tried again: a part of the answer was out
            writer.close()
            await case.settled()

    run(scenario())


def test_server_that_is_gone_is_a_bad_gateway() -> None:
    async def scenario() -> None:
        async with Case(hello) as case:
            case.door.port = 1
            answer = await case.ask(get("/"))
            assert answer.startswith(b"HTTP/1.1 502 ")
            assert b"no answer: nothing listens at port 1" in answer
            await case.settled()

    run(scenario())


def test_something_else_than_http_is_a_bad_gateway() -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"220 mail.example ESMTP\r\n")
        await reader.read()

    async def scenario() -> None:
        async with Case(nonsense) as case:
            request = get("/").replace(b"GET", b"POST")
            assert (await case.ask(request)).startswith(b"HTTP/1.1 502 ")

    run(scenario())


def test_client_that_leaves_gives_its_place_back() -> None:
    async def never(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        assert await reader.read() == b""

    async def scenario() -> None:
        async with Case(never) as case:
            _, writer = await case.connect()
            writer.write(get("/"))
            while not case.connections:
                await asyncio.sleep(0.01)
            writer.close()
            await case.settled()

    run(scenario())


def test_request_waits_for_a_place() -> None:
    async def scenario() -> None:
        async with Case(hello) as case:
            case.door.granting = False
            asking = asyncio.ensure_future(case.ask(get("/late")))
            while not case.door.waiting:
                await asyncio.sleep(0.01)
            assert not asking.done()
            case.door.waiting[0].grant(Place("ta-1", "127.0.0.1"))
            assert (await asking).endswith(b"/late")

    run(scenario())


def test_stranger_is_refused_before_anything_is_opened() -> None:
    async def scenario() -> None:
        async with Case(hello) as case:
            answer = await case.ask(get("/", "X-Stranger: yes"))
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b"who are you?" in answer
            assert case.door.opened == 0

    run(scenario())


def test_connection_goes_on_with_a_host_that_is_served_otherwise() -> None:
    """As proxies use connections: whatever comes next."""

    async def scenario() -> None:
        async with Case(hello) as case:
            reader, writer = await case.connect()
            writer.write(get("/first", last=False))
            assert b"/first" in await reader.readuntil(b"/first")
            other = b"POST /x HTTP/1.1\r\nHost: b\r\nContent-Length: 3\r\n\r\nabc"
            writer.write(other)
            assert await reader.read() == b"b " + other
            writer.close()
            await case.settled()

    run(scenario())


def test_pipelined_request_for_another_host_is_misdirected() -> None:
    async def scenario() -> None:
        async with Case(hello) as case:
            other = b"GET /x HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"
            answer = await case.ask(get("/first", last=False) + other)
            assert b"/first" in answer
            assert b"421" in answer

    run(scenario())


def test_nonsense_is_a_bad_request() -> None:
    async def scenario() -> None:
        async with Case(hello) as case:
            assert (await case.ask(b"what?\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
            smuggled = (
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            )
            assert (await case.ask(smuggled)).startswith(b"HTTP/1.1 400 ")
            assert case.door.taken == 0

    run(scenario())


def test_tunnel_after_an_upgrade() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        assert b"upgrade: thing" in head.lower()
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n")
        writer.write(b"Upgrade: thing\r\n\r\n")
        while data := await reader.read(1000):
            writer.write(data.upper())

    async def scenario() -> None:
        async with Case(echo) as case:
            reader, writer = await case.connect()
            writer.write(get("/", "Upgrade: thing", "Connection: Upgrade", last=False))
            writer.write(b"at once ")
            assert (await head_of(reader)).startswith(b"HTTP/1.1 101 ")
            writer.write(b"later")
            assert await reader.readexactly(13) == b"AT ONCE LATER"
            writer.close()
            await case.settled()

    run(scenario())


# ── what no client should send ────────────────────────────────────────────────────────────────


def _status(answer: bytes) -> int:
    return int(answer.split()[1])


@pytest.mark.parametrize("refused", [True, False], ids=["by the gateway", "by the container"])
def test_answer_before_the_end_of_an_upload_is_not_lost(refused: bool) -> None:
    """Closed with something unread, a connection is reset, and its client may lose the answer."""

    async def full(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nfull")
        await reader.read()

    def upload(port: int) -> bytes:
        stranger = b"X-Stranger: yes\r\n" if refused else b""
        head = b"POST / HTTP/1.1\r\nHost: a\r\n%bContent-Length: 60000000\r\n\r\n" % stranger
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            client.sendall(head)
            for _ in range(60):
                client.sendall(b"x" * 1_000_000)
            answer = b""
            while part := client.recv(65536):
                answer += part
            return answer

    async def scenario() -> None:
        async with Case(full) as case:
            answer = await asyncio.to_thread(upload, case.port)
            assert _status(answer) == (401 if refused else 413)
            assert answer.endswith(b"who are you?\n" if refused else b"full")
            await case.settled()

    run(scenario())


@pytest.mark.parametrize(
    ("line", "header", "status"),
    [
        (b"/" + b"a" * 70_000, b"X: y", 414),
        (b"/", b"X: " + b"y" * 70_000, 431),
        (b"/", b"\r\n".join(b"X%d: %b" % (n, b"y" * 1000) for n in range(80)), 431),
        (b"/" + b"a" * 30_000, b"X: " + b"y" * 30_000, 200),
    ],
)
@pytest.mark.parametrize("size", [1 << 20, 4096])
def test_long_head_is_refused(line: bytes, header: bytes, status: int, size: int) -> None:
    async def scenario() -> None:
        async with Case(hello) as case:
            reader, writer = await case.connect()
            data = b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\nConnection: close\r\n\r\n" % (line, header)
            for start in range(0, len(data), size):
                writer.write(data[start : start + size])
                await asyncio.sleep(0)
            assert _status(await reader.read()) == status
            writer.close()

    run(scenario())


def test_endless_header_is_not_kept() -> None:
    async def scenario() -> None:
        async with Case(hello) as case:
            reader, writer = await case.connect()
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")

            async def drip() -> None:
                while True:
                    writer.write(b"y" * 10_000)
                    await writer.drain()
                    await asyncio.sleep(0.01)

            dripping = asyncio.create_task(drip())
            assert _status(await reader.read()) == 431
            dripping.cancel()
            writer.close()

    run(scenario())


def test_head_that_does_not_end_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "HEAD_S", 0.3)

    async def scenario() -> None:
        async with Case(hello) as case:
            reader, writer = await case.connect()
            writer.write(get("/", last=False) + b"GET /late HTTP/1.1\r\nHost: a\r\n")
            first, _, second = (await reader.read()).partition(b"\r\n\r\n/")
            assert _status(first) == 200
            assert _status(second) == 408
            writer.close()

    run(scenario())


def test_garbage_after_a_request_waits_for_its_answer() -> None:
    release = asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        await release.wait()
        writer.write(b"-last")
        await reader.read()

    async def scenario() -> None:
        async with Case(late) as case:
            reader, writer = await case.connect()
            writer.write(get("/", last=False))
            await reader.readuntil(b"first")
            writer.write(b"\x00\x01 no request\r\n\r\n")
            await asyncio.sleep(0.1)
            release.set()
            rest = await reader.read()
            assert rest.startswith(b"-lastHTTP/1.1 400 ")
            writer.close()
            await case.settled()

    run(scenario())


def test_body_that_is_not_chunked_as_it_says_is_refused() -> None:
    async def never(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def scenario() -> None:
        async with Case(never) as case:
            reader, writer = await case.connect()
            writer.write(
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
            )
            while not case.connections:
                await asyncio.sleep(0.01)
            writer.write(b"not a size\r\n")
            assert _status(await reader.read()) == 400
            await case.settled()
            writer.close()

    run(scenario())


def test_refused_request_without_a_body_leaves_the_connection_open() -> None:
    async def scenario() -> None:
        async with Case(hello) as case:
            reader, writer = await case.connect()
            writer.write(get("/", "X-Stranger: yes", last=False))
            refusal = await head_of(reader)
            assert _status(refusal) == 401
            await reader.readexactly(len(b"who are you?\n"))
            writer.write(get("/there"))
            assert (await reader.read()).endswith(b"/there")
            writer.close()

    run(scenario())


def test_refused_upgrade_ends_the_connection() -> None:
    async def scenario() -> None:
        async with Case(hello) as case:
            upgrade = ("Connection: Upgrade", "Upgrade: websocket", "X-Stranger: yes")
            assert _status(await case.ask(get("/", *upgrade, last=False))) == 401

    run(scenario())


def test_each_request_is_noted_when_it_is_over() -> None:
    waits = asyncio.Event()

    async def by_path(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path = (await head_of(reader)).split(b" ")[1]
            if path == b"/wait":
                waits.set()
                await reader.read()
            writer.write(b"HTTP/1.1 %b X\r\nContent-Length: 0\r\n\r\n" % path[1:4])

    async def scenario() -> None:
        async with Case(by_path) as case:
            await case.ask(get("/200?a=b", last=False) + get("/404"))
            assert case.door.over == [(b"/200", "ta-1", 200), (b"/404", "ta-1", 404)]
            case.door.over.clear()
            await case.ask(get("/200", "X-Stranger: 1"))  # it is for no container
            assert case.door.over == []
            _, writer = await case.connect()
            writer.write(get("/wait"))
            await waits.wait()
            writer.close()  # the client leaves before there is an answer
            await case.settled()
            assert case.door.over == [(b"/wait", "ta-1", 0)]

    run(scenario())


def test_a_request_without_an_answer_is_noted_with_what_we_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(splice, "RETRY_S", (0.0, 0.0))

    async def cut(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await head_of(reader)

    async def scenario() -> None:
        async with Case(cut) as case:
            assert (await case.ask(get("/x"))).startswith(b"HTTP/1.1 502")
            assert case.door.over == [(b"/x", "ta-1", 502)]

    run(scenario())


def test_offer_of_http2_without_tls_is_passed_over() -> None:
    """Some clients make it with their first request; what they say next is HTTP/1.1."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append((await head_of(reader)).lower())
            if b"content-length: 4" in heads[-1]:
                assert await reader.readexactly(4) == b"body"
            elif b"chunked" in heads[-1]:
                assert b"body" in await reader.readuntil(b"0\r\n\r\n")
            writer.write(OK)

    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")

    async def scenario() -> None:
        async with Case(serve) as case:
            reader, writer = await case.connect()
            for _ in range(2):
                writer.write(get("/", *offer, last=False))
                assert (await reader.readexactly(len(OK))) == OK
            for framing, body in (
                ("Content-Length: 4", b"body"),
                ("Transfer-Encoding: chunked", b"4\r\nbody\r\n0\r\n\r\n"),
            ):
                post = get("/", *offer, framing, last=False).replace(b"GET", b"POST")
                writer.write(post + body[:2])
                await asyncio.sleep(0.05)
                writer.write(body[2:] + get("/next", last=False))
                assert (await reader.readexactly(2 * len(OK))) == OK * 2
            assert len(heads) == 6
            assert all(b"upgrade" not in head and b"http2" not in head for head in heads)
            assert case.connections == 1
            writer.close()

    run(scenario())
