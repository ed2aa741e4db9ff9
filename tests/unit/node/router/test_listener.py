"""One port for TLS, with and without a protocol by ALPN, and for plain text."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import cast

import pytest

from homeport.kernel.certificates import Authority
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
