"""Tunnels: ports of the node that lead to ports inside containers, with TLS or without.

A connection enters the container through its network namespace, so a program may listen on any of
its addresses, loopback included, and needs no network of its own.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from homeport.kernel.certificates import server_context
from homeport.kernel.errors import AlreadyExistsError, HomeportError, UnavailableError
from homeport.link.messages import HTTPS_PORT
from homeport.node.runtime.port import Container
from homeport.node.sockets import pump, streams

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

LISTEN_WAIT_S: Final = 10.0
"""How long a connection waits for the program to listen."""
RETRY_FIRST_S: Final = 0.01
RETRY_MAX_S: Final = 0.25
_BACKLOG: Final = 1024


@dataclass(frozen=True, slots=True)
class TunnelPort:
    """A port of a container that is to be reached. ``h2``: its program speaks HTTP/2 only."""

    number: int
    unencrypted: bool = False
    h2: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """An address that a tunnel has for itself, at the usual port of HTTPS; PEM texts."""

    host: str
    certificate: str
    key: str


class Target(Protocol):
    """The container behind a tunnel."""

    async def started(self) -> Container:
        """As soon as it runs. Raises ``NotFoundError`` if it has ended."""
        ...

    def active(self) -> AbstractContextManager[None]:
        """It is in use for the time of the block."""
        ...


Contexts = Callable[[bool], ssl.SSLContext | None]
"""What TLS connections are served with, ``True`` for HTTP/2 alone; ``None`` = not known yet."""


class Tunnel:
    """A listening port of the node. ``close`` ends it with all its connections.

    Connections from elsewhere than ``sources`` (networks; none = everywhere) are closed at once.
    """

    def __init__(self, target: Target, sources: Sequence[str] = ()) -> None:
        self._target = target
        self._sources = [ipaddress.ip_network(source) for source in sources]
        self._listening: list[socket.socket] = []
        self._acceptors: list[asyncio.Task[None]] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def serve(self, connection: socket.socket) -> None:
        """Do what the port is for, for one connection."""
        raise NotImplementedError

    async def open(self, host: str, number: int = 0) -> int:
        """Listen on a port of ``host``, 0 = a free one; the port. Raises ``UnavailableError``."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
            for family, _, _, _, address in dict.fromkeys(found):
                listening = socket.socket(family, socket.SOCK_STREAM)
                self._listening.append(listening)
                if family == socket.AF_INET6:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listening.bind((address[0], number, *address[2:]))
                listening.listen(_BACKLOG)
                listening.setblocking(False)
                number = listening.getsockname()[1]
        except OSError as error:
            self.close()
            raise UnavailableError(f"no port for a tunnel on {host}: {error}") from None
        self._acceptors = [loop.create_task(self._accept(one)) for one in self._listening]
        return number

    def close(self) -> None:
        """Accept no more and cut what is open."""
        for task in (*self._acceptors, *self._connections):
            task.cancel()
        for listening in self._listening:
            listening.close()
        self._listening.clear()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as error:  # out of descriptors: others have to close theirs first
                log.error("a connection to a tunnel was not accepted", error=str(error))
                await asyncio.sleep(RETRY_MAX_S)
                continue
            if not self._is_admitted(address[0]):
                connection.close()
                continue
            task = loop.create_task(self.serve(connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    def _is_admitted(self, source: str) -> bool:
        if not self._sources:
            return True
        address = ipaddress.ip_address(source.partition("%")[0])
        if address.version == 6 and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._sources)


class PortTunnel(Tunnel):
    """A tunnel to one port."""

    def __init__(
        self, target: Target, port: TunnelPort, contexts: Contexts, sources: Sequence[str] = ()
    ) -> None:
        super().__init__(target, sources)
        self.port = port
        self._contexts = contexts

    async def serve(self, connection: socket.socket) -> None:
        writers: list[asyncio.StreamWriter] = []
        try:
            with self._target.active():
                reader, writer = await self._greet(connection)
                writers.append(writer)
                inner_reader, inner_writer = await self._enter()
                writers.append(inner_writer)
                await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
        except (OSError, TimeoutError, HomeportError) as error:
            log.info("a tunnel's connection failed", port=self.port.number, error=str(error))
        except Exception:
            log.exception("a tunnel's connection failed", port=self.port.number)
        finally:
            connection.close()
            for writer in writers:
                writer.close()

    async def _greet(
        self, connection: socket.socket
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = None
        if not self.port.unencrypted:
            context = self._contexts(self.port.h2)
            if context is None:
                raise UnavailableError("the node has no certificate yet")
        return await streams(connection, context)

    async def _enter(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the program, as soon as it listens."""
        async with asyncio.timeout(LISTEN_WAIT_S):
            container = await self._target.started()
            delay_s = RETRY_FIRST_S
            while True:
                try:
                    inside = await container.connect(self.port.number)
                except ConnectionRefusedError:
                    await asyncio.sleep(delay_s)  # nothing tells that a program listens
                    delay_s = min(2 * delay_s, RETRY_MAX_S)
                else:
                    return await streams(inside, None)


class Tunnels:
    """All tunnels of a node. They listen on ``listen`` and are reached as ``host``."""

    def __init__(self, listen: str, host: str) -> None:
        self._listen = listen
        self.host = host
        self._certificate = ("", "")
        self._made: dict[bool, ssl.SSLContext] = {}
        self._tunnels: dict[str, dict[TunnelPort, tuple[Tunnel, int]]] = {}
        self._keys: dict[tuple[str, int], str] = {}
        self._lock = asyncio.Lock()

    def certify(self, certificate: str, key: str) -> None:
        """Show this certificate (PEM) to connections from now on."""
        self._certificate = (certificate, key)
        self._made.clear()

    async def open(
        self,
        task_id: str,
        target: Target,
        port: TunnelPort,
        place: Place | None = None,
        sources: Sequence[str] = (),
    ) -> int:
        """The node's port that leads to that one; the same if it is open already.

        ``HTTPS_PORT`` says that the tunnel has its ``place`` for itself.

        Raises ``UnavailableError``.
        """

        def make(contexts: Contexts) -> Tunnel:
            return PortTunnel(target, port, contexts, sources)

        return await self.listen(task_id, port, make, place)

    async def listen(
        self,
        task_id: str,
        port: TunnelPort,
        make: Callable[[Contexts], Tunnel],
        place: Place | None,
    ) -> int:
        """As ``open``, with a tunnel of the caller's making. ``port`` tells those of a task apart."""
        async with self._lock:
            known = self._tunnels.get(task_id, {}).get(port)
            if known is not None:
                return known[1]
            opened = await self._open_at(make, port.h2, place) if place is not None else None
            if opened is None:
                tunnel = make(self._context)
                opened = tunnel, await tunnel.open(self._listen)
            self._tunnels.setdefault(task_id, {})[port] = opened
            return opened[1]

    async def _open_at(
        self, make: Callable[[Contexts], Tunnel], h2: bool, place: Place
    ) -> tuple[Tunnel, int] | None:
        context = server_context(place.certificate, place.key, _protocols(h2))
        tunnel = make(lambda _: context)
        try:
            return tunnel, await tunnel.open(place.host, HTTPS_PORT)
        except UnavailableError as error:  # taken, or not ours to take
            log.info("a tunnel has no address for itself", host=place.host, reason=str(error))
            return None

    async def forward(
        self, task_id: str, target: Target, ports: Sequence[TunnelPort], key: str
    ) -> list[int]:
        """``open`` for the container itself, which may forward a port once, in these ways.

        ``key`` tells a repeated request from another one, which raises ``AlreadyExistsError``.
        """
        number = ports[0].number
        known = self._keys.get((task_id, number))
        if known is not None and (known != key or not key):
            raise AlreadyExistsError(f"port {number} is forwarded already")
        self._keys[task_id, number] = key
        try:
            return [await self.open(task_id, target, port) for port in ports]
        except BaseException:
            self.close(task_id, number)
            self._keys.pop((task_id, number), None)
            raise

    def close(self, task_id: str, number: int | None = None) -> bool:
        """End one tunnel of a container, or all; whether there was any."""
        tunnels = self._tunnels.get(task_id, {})
        ended = [one for one in tunnels if number is None or one.number == number]
        for one in ended:
            tunnels.pop(one)[0].close()
            self._keys.pop((task_id, one.number), None)
        if not tunnels:
            self._tunnels.pop(task_id, None)
        return bool(ended)

    def stop(self) -> None:
        """End all."""
        for task_id in list(self._tunnels):
            self.close(task_id)

    def _context(self, h2: bool) -> ssl.SSLContext | None:
        certificate, key = self._certificate
        if not certificate:
            return None
        if h2 not in self._made:
            self._made[h2] = server_context(certificate, key, _protocols(h2))
        return self._made[h2]


def _protocols(h2: bool) -> list[str]:
    return ["h2"] if h2 else ["http/1.1"]
