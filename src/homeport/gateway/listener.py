"""One port for everything: each connection is given to the protocol its first bytes ask for."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import re
import socket
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import structlog

from homeport.gateway import head as head_bounds
from homeport.kernel.errors import ConflictError, InvalidError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

ProtocolFactory = Callable[[], asyncio.Protocol]
LinkFactory = Callable[[str], asyncio.Protocol | None]
WebFactory = Callable[[str], ProtocolFactory | None]
TlsFactory = Callable[[str, bytes], ssl.SSLContext]

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LINK_REQUEST = b"GET /_node/link "
LINK_UPGRADE = "homeport-link"
HEAD_BYTES_MAX = 16 * 1024
SILENCE_S = 30.0
"""A connection that has not said what it wants by then is closed."""
_BACKLOG = 1024
TLS_HANDSHAKE = 0x16
"""The first byte of a connection that speaks TLS."""


class Listener:
    """Listens on a TCP port and, if asked to, on a unix socket as well.

    ``grpc`` and ``http`` make the protocols of HTTP/2 and HTTP/1 connections; ``link`` is given
    the token of a node and answers the protocol of its link, or ``None`` if the token is wrong.
    ``web`` is given the ``Host`` of a connection's first HTTP/1 request and answers who makes its
    protocol, if not ``http``. ``tls`` is given the local address of a connection that begins with TLS
    and its first message, and answers what to greet it with; what is inside is looked at likewise.
    ``sock`` listens already and is used in place of ``host`` and ``port``.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        grpc: ProtocolFactory,
        http: ProtocolFactory,
        link: LinkFactory,
        web: WebFactory = lambda _: None,
        tls: TlsFactory | None = None,
        sock: socket.socket | None = None,
        unix_path: Path | None = None,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._host = host
        self._port = port
        self._sock = sock
        self._unix_path = unix_path
        self._grpc = grpc
        self._http = http
        self._link = link
        self._web = web
        self._tls = tls
        self._silence_s = silence_s
        self._bound_path: Path | None = None
        self._servers: list[asyncio.Server] = []
        self._sniffing: set[_Sniffer] = set()

    @property
    def port(self) -> int:
        """The TCP port; the one the system chose if 0 was asked for."""
        return self._port

    async def start(self) -> None:
        """Start accepting.

        Raises ``ConflictError`` if the port or the unix socket is in use, ``InvalidError`` if the
        address cannot be listened on.
        """
        try:
            await self._listen_tcp()
            if self._unix_path is not None:
                await self._listen_unix(self._unix_path)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop accepting. Connections already handed to a protocol are its owner's to close."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._bound_path is not None:
            _remove(self._bound_path)
            self._bound_path = None
        for sniffer in list(self._sniffing):
            sniffer.close()

    async def _listen_tcp(self) -> None:
        server = await self._create_server(self._port)
        ports = [sock.getsockname()[1] for sock in server.sockets]
        if len(set(ports)) > 1:  # a name of several addresses, and a port of the system's choice
            server.close()
            server = await self._create_server(ports[0])
        self._port = ports[0]
        self._servers.append(server)

    async def _create_server(self, port: int) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        if self._sock is not None:
            return await loop.create_server(self._sniff, sock=self._sock, backlog=_BACKLOG)
        try:
            return await loop.create_server(self._sniff, self._host, port, backlog=_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConflictError(
                    f"port {port} on {self._host} is in use by another program; stop that one or choose another port"
                ) from None
            raise InvalidError(
                f"cannot listen on port {port} of {self._host}: {error.strerror or error}"
            ) from None

    async def _listen_unix(self, path: Path) -> None:
        _remove_stale(path)
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_unix_server(self._sniff, str(path), backlog=_BACKLOG)
        except OSError as error:
            raise InvalidError(
                f"cannot listen on the socket {path}: {error.strerror or error}"
            ) from None
        _restrict(path)
        self._servers.append(server)
        self._bound_path = path

    def _sniff(self) -> _Sniffer:
        return self._sniffer(self._tls)

    def _sniffer(self, tls: TlsFactory | None) -> _Sniffer:
        kinds = (self._grpc, self._http, self._link, self._web)
        secured = functools.partial(self._sniffer, None)
        return _Sniffer(*kinds, tls, secured, self._silence_s, self._sniffing)


def _restrict(path: Path) -> None:
    """Only this user may connect."""
    path.chmod(0o600)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove the socket of a process that is gone; raises ``ConflictError`` if one answers."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise ConflictError(f"{path} is in the way of a socket; remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    raise ConflictError(f"the socket {path} is in use by another process")


class _Sniffer(asyncio.Protocol):
    """Reads until it knows the kind of a connection, then passes it on with what was read."""

    def __init__(
        self,
        grpc: ProtocolFactory,
        http: ProtocolFactory,
        link: LinkFactory,
        web: WebFactory,
        tls: TlsFactory | None,
        secured: Callable[[], _Sniffer],
        silence_s: float,
        sniffing: set[_Sniffer],
    ) -> None:
        self._grpc = grpc
        self._http = http
        self._link = link
        self._web = web
        self._tls = tls
        self._secured = secured
        self._silence_s = silence_s
        self._sniffing = sniffing
        self._buffer = b""
        self._securing: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._timer = asyncio.get_running_loop().call_later(self._silence_s, self.close)
        self._sniffing.add(self)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer = self._buffer + data
        if buffer.startswith(HTTP2_PREFACE[: len(buffer)]):
            if len(buffer) >= len(HTTP2_PREFACE):
                self._pass_on(self._grpc(), buffer)
        elif buffer.startswith(HTTP2_PREFACE):
            self._pass_on(self._grpc(), buffer)
        elif self._tls is not None and buffer[0] == TLS_HANDSHAKE:
            if len(buffer) >= 5 and len(buffer) >= 5 + int.from_bytes(buffer[3:5], "big"):
                self._secure(buffer, self._tls)
        elif buffer.startswith(LINK_REQUEST):
            self._on_link_request(buffer)
        elif not LINK_REQUEST.startswith(buffer):
            self._on_http(buffer)

    def _secure(self, hello: bytes, tls: TlsFactory) -> None:
        """The connection goes on in TLS: ``hello`` is the whole of the client's first message."""
        self._forget()
        address: Any = self._transport.get_extra_info("sockname")
        work = _secure(
            self._transport,
            hello,
            tls("" if isinstance(address, str) else str(address[0]), hello),
            self._secured(),
            self._silence_s,
        )
        self._securing = asyncio.get_running_loop().create_task(work)

    def close(self) -> None:
        """End the connection."""
        self._forget()
        self._transport.close()

    def _on_http(self, buffer: bytes) -> None:
        """An HTTP/1 request: its ``Host`` says whom the connection is for."""
        head, separator, _ = buffer.partition(b"\r\n\r\n")
        found = _HOST.search(head + separator[:2])
        if found is None and not separator and _is_text(head):
            if len(head) <= head_bounds.HEAD_BYTES_MAX:
                return
            too_long = head_bounds.HEAD_TOO_LARGE if b"\r\n" in head else head_bounds.URL_TOO_LONG
            self._refuse(f"{too_long.status} Error", too_long.text)
            return
        host = found.group(1).decode("latin-1") if found is not None else ""
        factory = self._web(host) or self._http
        self._pass_on(factory(), buffer)

    def _on_link_request(self, buffer: bytes) -> None:
        head, separator, rest = buffer.partition(b"\r\n\r\n")
        if len(head) > HEAD_BYTES_MAX:
            self._refuse("431 Request Header Fields Too Large", "the request head is over 16 KiB")
            return
        if not separator:
            return
        headers = _parse_head(head)
        if headers.get("upgrade", "").lower() != LINK_UPGRADE:
            self._refuse("426 Upgrade Required", "this address is for nodes only", _UPGRADE)
            return
        kind, _, token = headers.get("authorization", "").partition(" ")
        protocol = self._link(token.strip()) if kind.lower() == "bearer" and token else None
        if protocol is None:
            self._refuse("401 Unauthorized", "the node's token is missing or not valid here")
            return
        self._transport.write(f"HTTP/1.1 101 Switching Protocols\r\n{_UPGRADE}\r\n".encode())
        self._pass_on(protocol, rest)

    def _refuse(self, status: str, sentence: str, headers: str = "") -> None:
        log.info("request refused", status=status)
        body = sentence + "\n"
        self._transport.write(
            f"HTTP/1.1 {status}\r\n{headers}Content-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
        )
        self.close()

    def _pass_on(self, protocol: asyncio.Protocol, data: bytes) -> None:
        self._forget()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if data:
            protocol.data_received(data)

    def _forget(self) -> None:
        self._timer.cancel()
        self._sniffing.discard(self)
        self._buffer = b""


class _Held(asyncio.Protocol):
    """Keeps what is read until the protocol it is for is there."""

    def __init__(self) -> None:
        self.data = b""
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


async def _secure(
    transport: asyncio.Transport,
    hello: bytes,
    context: ssl.SSLContext,
    inner: _Sniffer,
    timeout_s: float,
) -> None:
    """Greet the client that said ``hello``, and give what is inside to ``inner``."""
    loop = asyncio.get_running_loop()
    held = _Held()
    greeting = loop.create_task(
        loop.start_tls(transport, held, context, server_side=True, ssl_handshake_timeout=timeout_s)
    )
    before = transport.get_protocol()
    await asyncio.sleep(0)  # now the connection has a layer for TLS
    await asyncio.sleep(0)  # now the layer was told of its connection
    layer = transport.get_protocol()
    try:
        if layer is not before:
            _feed(cast(asyncio.BufferedProtocol, layer), hello)
        secured = await greeting
    except (OSError, ssl.SSLError, TimeoutError) as error:
        log.info("a TLS connection came to nothing", error=str(error) or type(error).__name__)
        greeting.cancel()
        transport.abort()
        return
    if held.lost or secured is None:
        return
    secured.set_protocol(inner)
    inner.connection_made(secured)
    if held.data:
        inner.data_received(held.data)


def _feed(layer: asyncio.BufferedProtocol, data: bytes) -> None:
    """Have ``layer`` take what was read before it was there."""
    while data:
        room = memoryview(layer.get_buffer(len(data)))  # pyright: ignore[reportArgumentType]
        size = min(len(room), len(data))
        room[:size] = data[:size]
        layer.buffer_updated(size)
        data = data[size:]


_HOST = re.compile(rb"\r\nhost:[ \t]*([^\s]*)[ \t]*\r\n", re.IGNORECASE)


def _is_text(head: bytes) -> bool:
    """Whether this can become the head of an HTTP request: it begins with a method."""
    return head[:1].isalpha()


_UPGRADE = f"Upgrade: {LINK_UPGRADE}\r\nConnection: Upgrade\r\n"


def _parse_head(head: bytes) -> dict[str, str]:
    """The header fields of an HTTP/1 request, by lower-case name."""
    headers: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, separator, value = line.partition(":")
        if separator:
            headers[name.strip().lower()] = value.strip()
    return headers
