"""Whom an HTTP/1 connection is given to: the ``Host`` of its first request decides."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from homeport.gateway.listener import Listener


class Says(asyncio.Protocol):
    """Answers with its name and what it was given."""

    def __init__(self, name: bytes) -> None:
        self._name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._name + b" " + data)
        self._transport.close()


async def ask(*parts: bytes) -> bytes:
    """What is answered to these, each sent by itself."""
    listener = Listener(
        "127.0.0.1",
        0,
        grpc=lambda: Says(b"grpc"),
        http=lambda: Says(b"server"),
        link=lambda _token: None,
        web=lambda host: (lambda: Says(b"web")) if host.startswith("me--") else None,
    )
    await listener.start()
    try:
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0.02)
            answer = await reader.read()
            writer.close()
            return answer
    finally:
        await listener.stop()


@pytest.mark.parametrize(
    ("request_", "taker"),
    [
        (b"GET / HTTP/1.1\r\nHost: me--app.localhost:1\r\n\r\n", b"web"),
        (b"GET / HTTP/1.1\r\nAccept: x\r\nhOST:me--app.localhost\r\n\r\n", b"web"),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"server"),
        (b"GET / HTTP/1.0\r\n\r\n", b"server"),
        (b"POST / HTTP/1.1\r\nHost: a\r\n\r\nx\r\nHost: me--app.localhost\r\n\r\n", b"server"),
        (b"\x16\x03\x01 no text", b"server"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"grpc"),
    ],
)
def test_host_of_the_first_request_decides(request_: bytes, taker: bytes) -> None:
    assert asyncio.run(ask(request_)) == taker + b" " + request_


def test_request_line_may_come_in_pieces() -> None:
    parts = (b"GET / HT", b"TP/1.1\r\nAccept: */*\r\nHo", b"st: me--app.local", b"host\r\n\r\n")
    assert asyncio.run(ask(*parts)) == b"web " + b"".join(parts)
