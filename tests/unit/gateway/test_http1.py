"""HTTP/1.1 for ASGI applications: what no client should send."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from homeport.gateway import head
from homeport.gateway.http1 import Http1


async def _say_path(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/full":
        headers = [(b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": b"full"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [(b"content-length", b"%d" % len(scope["raw_path"])), (b"x-body", body)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": scope["raw_path"]})


def _ask(*parts: bytes, rest_s: float = 0.0) -> bytes:
    """All that is answered to ``parts``, sent one by one."""

    async def talk() -> bytes:
        http = Http1(_say_path)
        server = await asyncio.get_running_loop().create_server(http.protocol, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        async with asyncio.timeout(20):
            for part in parts:
                writer.write(part)
                await asyncio.sleep(rest_s)
            answer = await reader.read()
        writer.close()
        server.close()
        await http.stop(1.0)
        return answer

    return asyncio.run(talk())


def _request(url: bytes, header: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%b\r\n\r\n" % (url, header)


@pytest.mark.parametrize("size", [1 << 20, 4096])
@pytest.mark.parametrize(
    ("url", "header", "status"),
    [
        (b"/" + b"a" * 70_000, b"X: y", b"414"),
        (b"/", b"X: " + b"y" * 70_000, b"431"),
        (b"/" + b"a" * 30_000, b"X: " + b"y" * 30_000, b"200"),
    ],
)
def test_long_head_is_refused(url: bytes, header: bytes, status: bytes, size: int) -> None:
    data = _request(url, header)
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    assert _ask(*parts).split()[1] == status


def test_head_that_does_not_end_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "HEAD_S", 0.2)
    assert _ask(b"GET / HTTP/1.1\r\nHost: a\r\n").split()[1] == b"408"
    slowly = _request(b"/whole", b"X: y").split(b"X:")
    assert _ask(slowly[0], b"X:" + slowly[1], rest_s=0.05).endswith(b"/whole")


def test_garbage_is_a_bad_request() -> None:
    assert _ask(b"\x00\x01\r\n\r\n").split()[1] == b"400"


def test_offer_of_http2_without_tls_is_passed_over() -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"
    first = b"GET /first HTTP/1.1\r\nHost: a\r\n" + offer + b"\r\n\r\n"
    answer = _ask(first, _request(b"/second", b"X: y"), rest_s=0.1)
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert answer.endswith(b"/second")
    answer = _ask(first + _request(b"/second", b"X: y"))
    assert answer.endswith(b"/second")
    for framing, body in (
        (b"Content-Length: 4", b"body"),
        (b"Transfer-Encoding: chunked", b"4\r\nbody\r\n0\r\n\r\n"),
    ):
        post = first.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\n" + framing + b"\r\n\r\n")
        answer = _ask(post, body[:2], body[2:] + _request(b"/second", b"X: y"), rest_s=0.05)
        assert answer.count(b"HTTP/1.1 200 ") == 2
        assert b"x-body: body" in answer
        assert answer.endswith(b"/second")


@pytest.mark.parametrize("connection", [b"close", b"keep-alive"])
def test_answer_before_the_end_of_an_upload_is_not_lost(connection: bytes) -> None:
    """Closed with something unread, a connection is reset, and its client may lose the answer."""

    def upload(port: int) -> bytes:
        lines = (b"POST /full HTTP/1.1", b"Host: a", b"Content-Length: 60000000")
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            client.sendall(b"\r\n".join([*lines, b"Connection: " + connection, b"", b""]))
            for _ in range(60):
                client.sendall(b"x" * 1_000_000)
            return client.recv(65536)

    async def talk() -> bytes:
        http = Http1(_say_path)
        server = await asyncio.get_running_loop().create_server(http.protocol, "127.0.0.1", 0)
        async with asyncio.timeout(20):
            answer = await asyncio.to_thread(upload, server.sockets[0].getsockname()[1])
        server.close()
        await http.stop(1.0)
        return answer

    assert asyncio.run(talk()).endswith(b"full")
