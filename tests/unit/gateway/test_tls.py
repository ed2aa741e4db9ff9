"""TLS on the port: which certificate a name gets, and that what is inside finds its way."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from tests.unit.gateway.test_listener_hosts import Says

from homeport.gateway.listener import Listener
from homeport.gateway.tls import Certificates, GivenCertificate
from homeport.kernel.certificates import Authority
from homeport.kernel.clock import SystemClock
from homeport.kernel.errors import InvalidError

WEB = "me--app.localhost"
Runner = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Runner:
    """The event loop."""
    return request.param


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.from_folder(tmp_path / "ours")


def trusting(*authorities: Authority) -> ssl.SSLContext:
    """A client's context that trusts these alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for authority in authorities:
        context.load_verify_locations(cadata=authority.certificate)
    return context


def certificates(authority: Authority, given: GivenCertificate | None = None) -> Certificates:
    return Certificates(
        authority,
        SystemClock(),
        hosts=["localhost", "127.0.0.1"],
        is_ours=lambda name: "--" in name,
        given=given,
    )


def given(folder: Path, authority: Authority, *names: str) -> GivenCertificate:
    folder.mkdir(exist_ok=True)
    certificate, key = authority.issue(names)
    (folder / "cert.pem").write_text(certificate)
    (folder / "key.pem").write_text(key)
    return GivenCertificate(folder / "cert.pem", folder / "key.pem")


async def listening(certificates: Certificates, silence_s: float = 30.0) -> Listener:
    listener = Listener(
        "127.0.0.1",
        0,
        grpc=lambda: Says(b"grpc"),
        http=lambda: Says(b"server"),
        link=lambda _token: None,
        web=lambda host: (lambda: Says(b"web")) if host == WEB else None,
        tls=certificates.context,
        silence_s=silence_s,
    )
    await listener.start()
    return listener


async def ask(
    certificates: Certificates,
    context: ssl.SSLContext,
    name: str | None,
    request: bytes = b"GET / HTTP/1.1\r\nHost: me--app.localhost\r\n\r\n",
) -> bytes:
    listener = await listening(certificates)
    try:
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", listener.port, ssl=context, server_hostname=name
            )
            writer.write(request)
            answer = await reader.read()
            writer.close()
            return answer
    finally:
        await listener.stop()


@pytest.mark.parametrize("name", [WEB, "localhost", "127.0.0.1"])
def test_our_own_authority_vouches_for_our_names(
    run: Runner, authority: Authority, name: str
) -> None:
    answer = run(ask(certificates(authority), trusting(authority), name))
    assert answer.startswith(b"web GET / HTTP/1.1")


def test_no_certificate_for_names_of_others(run: Runner, authority: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        run(ask(certificates(authority), trusting(authority), "example.com"))


@pytest.mark.parametrize(
    ("name", "offered", "chosen"),
    [
        (WEB, ["h2", "http/1.1"], "h2"),
        (WEB, ["http/1.1"], "http/1.1"),
        ("localhost", ["h2", "http/1.1"], "http/1.1"),  # pages are for browsers
        ("localhost", ["h2"], "h2"),  # RPCs
    ],
)
def test_http2_by_alpn(
    run: Runner, authority: Authority, name: str, offered: list[str], chosen: str
) -> None:
    context = trusting(authority)
    context.set_alpn_protocols(offered)

    async def negotiate() -> tuple[str | None, bytes]:
        listener = await listening(certificates(authority))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", listener.port, ssl=context, server_hostname=name
        )
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        answer = await reader.read()
        writer.close()
        await listener.stop()
        return chosen, answer

    assert run(negotiate()) == (chosen, b"grpc PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


def test_given_certificate_for_its_names_ours_for_the_rest(
    run: Runner, authority: Authority, tmp_path: Path
) -> None:
    other = Authority.from_folder(tmp_path / "theirs")
    both = certificates(authority, given(tmp_path / "given", other, "*.example.com"))
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    assert run(ask(both, trusting(other), "me--app.example.com", request)).startswith(b"server")
    assert run(ask(both, trusting(authority), WEB)).startswith(b"web")
    with pytest.raises(ssl.SSLCertVerificationError):
        run(ask(both, trusting(other), WEB))


def test_renewed_certificate_is_taken_up(run: Runner, authority: Authority, tmp_path: Path) -> None:
    first, second = (Authority.from_folder(tmp_path / name) for name in ("first", "second"))
    shown = certificates(authority, given(tmp_path / "given", first, "a.example.com"))
    run(ask(shown, trusting(first), "a.example.com"))
    given(tmp_path / "given", second, "a.example.com")
    os.utime(tmp_path / "given" / "cert.pem", ns=(1, 1))
    run(ask(shown, trusting(second), "a.example.com"))
    (tmp_path / "given" / "cert.pem").write_text("half a cert")
    run(ask(shown, trusting(second), "a.example.com"))


def test_certificate_that_cannot_be_used_is_refused(authority: Authority, tmp_path: Path) -> None:
    given(tmp_path, authority, "a.example.com")
    (tmp_path / "key.pem").write_text(authority.issue(["other"])[1])
    with pytest.raises(InvalidError, match="tls_certificate"):
        GivenCertificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    with pytest.raises(InvalidError, match="no-such-file"):
        GivenCertificate(tmp_path / "no-such-file")


def test_greeting_in_pieces_and_nonsense(run: Runner, authority: Authority) -> None:
    """The first message may come in pieces; what only looks like it ends the connection."""

    async def talk() -> None:
        listener = await listening(certificates(authority))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = trusting(authority).wrap_bio(incoming, outgoing, server_hostname=WEB)
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        hello = outgoing.read()
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(hello), 100):
            writer.write(hello[start : start + 100])
            await asyncio.sleep(0.01)
        assert (await reader.readexactly(1))[0] == 0x16  # its part of the handshake
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"\x16\x03\x01\x00\x10" + b"no TLS: nonsense")
        async with asyncio.timeout(20):
            await reader.read()
        writer.close()
        await listener.stop()

    run(talk())


def test_silent_client_in_tls_is_left(run: Runner, authority: Authority) -> None:
    async def wait() -> bytes:
        listener = await listening(certificates(authority), silence_s=0.2)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", listener.port, ssl=trusting(authority), server_hostname=WEB
        )
        async with asyncio.timeout(20):
            said = await reader.read()
        writer.close()
        await listener.stop()
        return said

    assert run(wait()) == b""
