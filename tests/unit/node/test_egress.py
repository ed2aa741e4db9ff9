"""The way out by lists of domains: who is meant, and what is told of names. No network needed."""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from homeport.kernel.errors import InvalidError
from homeport.node.egress.gate import Gate, is_own
from homeport.node.egress.hello import BYTES_MAX, Peek, read_hello
from homeport.node.egress.names import Names
from homeport.node.main import name_servers


def running(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Has a test an event loop of its own."""

    @functools.wraps(test)
    def run(*arguments: object, **named: object) -> None:
        asyncio.run(test(*arguments, **named))

    return run


def hello(name: str | None) -> bytes:
    """What a TLS client sends first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize("name", ["a.example", None])
def test_the_name_in_pieces(name: str | None, step: int) -> None:
    data = hello(name)
    peek = Peek()
    for at in range(0, len(data), step):
        assert not peek.is_over
        peek.feed(data[at : at + step])
    assert (peek.is_over, peek.name) == (True, name)


def test_the_name_in_several_records() -> None:
    """A first message may be cut into records of TLS anywhere."""
    data = hello("a.example")
    message = data[5:]
    cut = b"".join(
        bytes([22, 3, 1]) + len(part).to_bytes(2, "big") + part
        for part in (message[at : at + 100] for at in range(0, len(message), 100))
    )
    peek = Peek()
    peek.feed(cut)
    assert peek.name == "a.example"


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b"\0" * 100])
def test_what_is_no_tls(data: bytes) -> None:
    peek = Peek()
    peek.feed(data)
    assert (peek.is_over, peek.name) == (True, None)


@running
async def test_all_that_was_read_is_passed_on() -> None:
    reader = asyncio.StreamReader()
    data = hello("a.example")
    reader.feed_data(data)
    assert await read_hello(reader) == ("a.example", data)


@running
async def test_an_endless_first_message_is_none() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data((bytes([22, 3, 1, 64, 0, 1, 255, 255, 255]) + b"\0" * 16375) * 8)
    name, seen = await read_hello(reader)
    assert name is None
    assert len(seen) <= 2 * BYTES_MAX


class Asked(Names):
    """Answers itself, and remembers what for."""

    def __init__(self) -> None:
        super().__init__(lambda: [], {"10.0.0.2": ["a.example", "*.wild.example"]}.get)
        self.asked: list[str] = []

    async def _ask(self, query: dns.message.Message) -> dns.message.Message | None:
        name = query.question[0].name
        self.asked.append(name.to_text())
        answer = dns.message.make_response(query)
        answer.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.1"))
        return answer


async def ask(
    names: Asked, name: str, kind: str = "A", source: str = "10.0.0.2"
) -> tuple[int, int]:
    query = dns.message.make_query(name, dns.rdatatype.from_text(kind))
    answer = dns.message.from_wire(await names.answer(source, query.to_wire()))
    assert answer.id == query.id
    return answer.rcode(), len(answer.answer)


@running
async def test_listed_names_are_answered() -> None:
    names = Asked()
    assert await ask(names, "A.example.") == (dns.rcode.NOERROR, 1)
    assert await ask(names, "x.y.wild.example.") == (dns.rcode.NOERROR, 1)


@running
async def test_other_names_are_asked_nobody() -> None:
    names = Asked()
    assert await ask(names, "secret.b.example.") == (dns.rcode.NXDOMAIN, 0)
    assert names.asked == []


@pytest.mark.parametrize("kind", ["AAAA", "TXT", "HTTPS", "MX", "ANY"])
@running
async def test_only_addresses_are_asked_for(kind: str) -> None:
    names = Asked()
    assert await ask(names, "secret.wild.example.", kind) == (dns.rcode.NOERROR, 0)
    assert names.asked == []


@running
async def test_strangers_and_nonsense_get_nothing() -> None:
    names = Asked()
    query = dns.message.make_query("a.example.", "A").to_wire()
    assert await names.answer("10.0.0.3", query) == b""
    for end in range(len(query)):
        assert await names.answer("10.0.0.2", query[:end]) == b""
    assert names.asked == []


@running
async def test_whom_nobody_knows_is_not_served() -> None:
    gate = Gate(lambda: [], "10.87.0.0/16")
    ports = gate.bind("127.0.0.1")
    await gate.serve()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", ports.tls)
        writer.write(hello("a.example"))
        with pytest.raises(ConnectionError):
            await reader.readexactly(1)
        writer.close()
    finally:
        gate.close()


@running
async def test_a_name_outside_the_list_is_denied_as_tls_does() -> None:
    gate = Gate(lambda: [], "10.87.0.0/16")
    ports = gate.bind("127.0.0.1")
    await gate.serve()
    gate.allow("127.0.0.1", ["b.example"])
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", ports.tls)
        writer.write(hello("a.example"))
        assert (await reader.read())[-2:] == bytes([2, 49])
        writer.close()
    finally:
        gate.close()


def test_own_addresses() -> None:
    assert is_own("127.0.0.1")
    assert not is_own("192.0.2.1")


def test_name_servers_are_addresses() -> None:
    assert name_servers("192.0.2.1, 192.0.2.2") == ["192.0.2.1", "192.0.2.2"]
    assert name_servers("") == []
    with pytest.raises(InvalidError, match=r"dns\.example"):
        name_servers("dns.example")
