"""The router's port: gRPC over TLS and in plain text, told apart by the first byte."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Final

import structlog

from homeport.kernel.certificates import server_context
from homeport.kernel.errors import ConflictError, InvalidError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_HANDSHAKE: Final = b"\x16"
"""The first byte of a TLS connection; HTTP/2 in plain text begins with ``P``."""
SILENCE_S: Final = 30.0
_BACKLOG: Final = 1024
_PAUSE_S: Final = 0.1


class RouterListener:
    """Accepts connections for ``factory``.

    Clients of one language speak TLS and those of another plain text to the same URL. Some offer
    no protocol by ALPN, which is fine here. TLS works once ``certify`` was called.
    """

    def __init__(self, host: str, port: int, factory: Callable[[], asyncio.Protocol]) -> None:
        self._host = host
        self._port = port
        self._factory = factory
        self._sockets: list[socket.socket] = []
        self._context: ssl.SSLContext | None = None
        self._waiting: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port; the one the system chose if 0 was asked for."""
        return self._port

    def certify(self, certificate: str, key: str) -> None:
        """Show this certificate (PEM) to connections from now on."""
        self._context = server_context(certificate, key, ["h2"])

    async def start(self, preferred: int = 0) -> None:
        """Start accepting; on port ``preferred`` if it may be any and that one is free.

        Raises ``ConflictError`` or ``InvalidError`` about the address.
        """
        if preferred and not self._port:
            self._port = preferred
            try:
                return await self._start()
            except (ConflictError, InvalidError):
                self._port = 0
        await self._start()

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            for family, _, _, _, address in dict.fromkeys(found):
                self._listen(family, address)
        except OSError as error:
            await self.stop()
            if error.errno == errno.EADDRINUSE:
                raise ConflictError(
                    f"port {self._port} on {self._host} is in use by another program"
                ) from None
            raise InvalidError(
                f"cannot listen on port {self._port} of {self._host}: {error.strerror or error}"
            ) from None
        for listening in self._sockets:
            loop.add_reader(listening, self._accept, listening)

    def _listen(self, family: int, address: tuple[object, ...]) -> None:
        listening = socket.socket(family, socket.SOCK_STREAM)
        self._sockets.append(listening)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((address[0], self._port, *address[2:]))
        listening.listen(_BACKLOG)
        listening.setblocking(False)
        self._port = listening.getsockname()[1]

    async def stop(self) -> None:
        """Stop accepting. Connections already handed over are their owner's to close."""
        loop = asyncio.get_running_loop()
        for listening in self._sockets:
            loop.remove_reader(listening)
            listening.close()
        self._sockets.clear()
        waiting = list(self._waiting)
        for task in waiting:
            task.cancel()
        if waiting:
            await asyncio.wait(waiting)

    def serve(self, listening: socket.socket) -> Callable[[], None]:
        """Accept on a socket that listens already, which is taken over; the result ends it."""
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        self._sockets.append(listening)
        loop.add_reader(listening, self._accept, listening)

        def end() -> None:
            if listening in self._sockets:
                self._sockets.remove(listening)
                loop.remove_reader(listening)
                listening.close()

        return end

    def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_BACKLOG):
            try:
                connection, _address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors: let others close theirs
                log.error("a connection to the router was not accepted", error=str(error))
                loop.remove_reader(listening)
                loop.call_later(_PAUSE_S, self._resume, listening)
                return
            connection.setblocking(False)
            task = loop.create_task(self._greet(connection))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    async def _greet(self, connection: socket.socket) -> None:
        """See how a connection begins, without taking it, and hand it over."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(SILENCE_S):
                first = await _peek(connection)
            context = self._context if first == _HANDSHAKE else None
            if not first or (first == _HANDSHAKE and context is None):
                connection.close()
                return
            await loop.connect_accepted_socket(
                self._factory,
                connection,
                ssl=context,
                ssl_handshake_timeout=SILENCE_S if context else None,
            )
        except (OSError, TimeoutError, ssl.SSLError) as error:
            log.info("a connection to the router failed", error=str(error) or type(error).__name__)
            connection.close()
        except BaseException:
            connection.close()
            raise


async def _peek(connection: socket.socket) -> bytes:
    """The first byte, left where it is; empty if the peer is gone."""
    loop = asyncio.get_running_loop()
    while True:
        with contextlib.suppress(BlockingIOError, InterruptedError):
            return connection.recv(1, socket.MSG_PEEK)
        readable = loop.create_future()
        loop.add_reader(connection, _ready, readable)
        try:
            await readable
        finally:
            loop.remove_reader(connection)


def _ready(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
