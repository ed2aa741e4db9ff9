"""One port for TLS, with and without a protocol by ALPN, and for plain text."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from homeport.kernel.certificates import Authority
from homeport.kernel.clock import SystemClock
from homeport.kernel.errors import UnauthenticatedError, UnavailableError
from homeport.node.router.access import Access
from homeport.node.router.listener import RouterListener


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def ask(port: int, context: ssl.SSLContext | None, host: str = "localhost") -> bytes:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=host if context else None
    )
    try:
        writer.write(b"PRI hello")
        return await reader.readexactly(9)
    finally:
        writer.close()


def trusting(authority: Authority, alpn: list[str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.certificate)
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def test_each_client_is_served_as_it_begins(tmp_path: Path) -> None:
    authority = Authority.from_folder(tmp_path)

    async def main() -> None:
        listener = RouterListener("127.0.0.1", 0, _Echo)
        await listener.start()
        try:
            with pytest.raises((ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)):
                await ask(listener.port, trusting(authority, []))  # no certificate yet
            listener.certify(*authority.issue(["localhost", "127.0.0.1"]))
            for context in (None, trusting(authority, []), trusting(authority, ["h2"])):
                assert await ask(listener.port, context) == b"PRI hello"
            assert await ask(listener.port, trusting(authority, []), "127.0.0.1") == b"PRI hello"
            with pytest.raises(ssl.SSLCertVerificationError):
                await ask(listener.port, trusting(authority, []), "elsewhere.example")
            listener.certify(*authority.issue(["elsewhere.example"]))
            context = trusting(authority, [])
            assert await ask(listener.port, context, "elsewhere.example") == b"PRI hello"
        finally:
            await listener.stop()

    asyncio.run(main())


def test_the_authority_is_kept(tmp_path: Path) -> None:
    first = Authority.from_folder(tmp_path)
    assert Authority.from_folder(tmp_path).certificate == first.certificate
    assert (tmp_path / "ca.key").stat().st_mode & 0o077 == 0


def test_the_port_it_had_is_taken_again_unless_somebody_has_it() -> None:
    async def main() -> None:
        first = RouterListener("127.0.0.1", 0, _Echo)
        await first.start()
        other = RouterListener("127.0.0.1", 0, _Echo)
        await other.start(preferred=first.port)
        assert other.port not in (0, first.port)
        await first.stop()
        again = RouterListener("127.0.0.1", 0, _Echo)
        await again.start(preferred=first.port)
        try:
            assert again.port == first.port
            assert await ask(again.port, None) == b"PRI hello"
        finally:
            await again.stop()
            await other.stop()

    asyncio.run(main())


def test_before_the_server_was_heard_a_caller_is_asked_to_try_again() -> None:
    access = Access(SystemClock())
    call: Any = SimpleNamespace(metadata={"authorization": "Bearer a.b.c"})
    with pytest.raises(UnavailableError, match="try again"):
        access.authorize(call, "ta-1")
    call.metadata.clear()
    with pytest.raises(UnauthenticatedError):
        access.authorize(call, "ta-1")
