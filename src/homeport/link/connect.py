"""How a node opens its link: an HTTP upgrade on the server's one port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TypeVar, cast
from urllib.parse import urlsplit

P = TypeVar("P", bound=asyncio.Protocol)

LINK_PATH = "/_node/link"
LINK_UPGRADE = "homeport-link"
UNHEARD_S = 20.0
"""A link on which so long nothing was acknowledged is lost, though nobody closed it."""
_HEAD_BYTES_MAX = 16 * 1024
_PORTS = {"http": 80, "https": 443}


class LinkRefusedError(PermissionError):
    """The server does not accept the token; trying again with the same one is useless."""


async def connect_link(
    http_url: str, token: str, protocol_factory: Callable[[], P], *, timeout_s: float = 15.0
) -> tuple[asyncio.Transport, P]:
    """Open a link to the server at ``http_url`` and leave the connection to a new protocol.

    ``http_url`` is ``http://host:port`` or ``https://…`` (checked against the system's trusted
    certificates), with an optional path prefix. Raises ``LinkRefusedError`` if the server does not
    accept ``token``, ``ConnectionError`` if it cannot be reached, does not answer within
    ``timeout_s`` or is no Homeport server, ``ValueError`` for an unusable URL or token.
    """
    parts = urlsplit(http_url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"the server's address {http_url!r} is not an http:// or https:// URL")
    if not token.isascii() or not token.isprintable() or not token:
        raise ValueError("the node's token is empty or has characters that no token has")
    request = (
        f"GET {parts.path.rstrip('/')}{LINK_PATH} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n"
        f"Upgrade: {LINK_UPGRADE}\r\nConnection: Upgrade\r\nAuthorization: Bearer {token}\r\n\r\n"
    ).encode("ascii")
    port = parts.port or _PORTS[parts.scheme]
    loop = asyncio.get_running_loop()
    handshake: _Handshake | None = None
    try:
        async with asyncio.timeout(timeout_s):
            _, handshake = await loop.create_connection(
                lambda: _Handshake(request),
                parts.hostname,
                port,
                ssl=True if parts.scheme == "https" else None,
            )
            rest = await handshake.answered
    except TimeoutError:
        _close(handshake)
        raise ConnectionError(f"{http_url} did not answer within {timeout_s:g} s") from None
    except ConnectionError as error:
        _close(handshake)
        raise ConnectionError(f"cannot open a link to {http_url}: {error}") from None
    except LinkRefusedError:
        _close(handshake)
        raise
    except OSError as error:
        _close(handshake)
        raise ConnectionError(f"cannot reach {http_url}: {error.strerror or error}") from None
    except BaseException:
        _close(handshake)
        raise
    return handshake.hand_over(protocol_factory(), rest)


def _close(handshake: _Handshake | None) -> None:
    if handshake is not None:
        handshake.transport.abort()


class _Handshake(asyncio.Protocol):
    """Sends the request and holds what comes until the connection is handed over."""

    transport: asyncio.Transport

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._buffer = b""
        self._lost: Exception | None = None
        self.answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        """The bytes that followed the head of a 101 answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self.answered.done():
            return
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if len(head) > _HEAD_BYTES_MAX:
            self._fail(ConnectionError("the answer is no HTTP answer"))
        elif separator:
            self._on_answer(head, rest)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = exc or ConnectionError("the connection was closed")
        self._fail(ConnectionError(str(exc) if exc else "the server closed the connection"))

    def hand_over(self, protocol: P, rest: bytes) -> tuple[asyncio.Transport, P]:
        """Let ``protocol`` have the connection, starting with ``rest``."""
        transport = self.transport
        if self._lost is not None:
            raise ConnectionError("the server closed the connection")
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNHEARD_S * 1000)
        )
        if rest:
            protocol.data_received(rest)
        transport.resume_reading()
        return transport, protocol

    def _on_answer(self, head: bytes, rest: bytes) -> None:
        line = head.split(b"\r\n", 1)[0].decode("latin-1")
        status = line.split(" ")[1] if line.startswith("HTTP/1.") and " " in line else ""
        if status == "101":
            # Nothing more is read until the new protocol is there to have it.
            self.transport.pause_reading()
            self.answered.set_result(rest)
        elif status == "401":
            self._fail(LinkRefusedError("the server does not accept this node's token"))
        else:
            self._fail(ConnectionError(f"it answered {line[:100]!r} instead of opening a link"))

    def _fail(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)
