"""The way out of containers that may reach listed domains only.

The container's own packets to port 443 and to name servers end here, whatever address they were
sent to. A TLS connection says which server it means; if that is listed, it is led to an address
which *we* found under that name. So neither an address, nor a name server of the container's choice,
nor a name that hides behind a listed one's address gets round the list.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from homeport.kernel.domains import is_listed, plain
from homeport.node.egress.hello import read_hello, refusal
from homeport.node.egress.names import Names
from homeport.node.sockets import CHUNK_BYTES, pump

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

TLS_PORT: Final = 443
HELLO_S: Final = 15.0
"""How long a connection may take to say which server it means."""
CONNECT_S: Final = 15.0
CONNECTIONS_MAX: Final = 256
"""Open connections of one container; each takes two descriptors of the node."""
_BACKLOG: Final = 512
_IP_FREEBIND: Final = 15


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the gate listens, on the address that containers know as their gateway."""

    tls: int
    names_udp: int
    names_tcp: int


@dataclass(slots=True, eq=False)
class _Passage:
    """A container's connection, and the name it is for, once that is known."""

    task: asyncio.Task[None] | None
    name: str = ""


@dataclass(slots=True)
class _Guest:
    """A container that is listened to."""

    domains: tuple[str, ...]
    passages: set[_Passage] = field(default_factory=set[_Passage])


class Gate:
    """``bind``, then ``serve``. Knows containers by their addresses, which they cannot change.

    ``servers`` gives the name servers; ``avoided`` is the network of all containers, which the
    gate leads nobody to, just as it does not to this machine's own addresses.
    """

    def __init__(self, servers: Callable[[], Sequence[str]], avoided: str) -> None:
        self._guests: dict[str, _Guest] = {}
        self._names = Names(servers, self._allowed)
        self._avoided = ipaddress.IPv4Network(avoided)
        self._sockets: list[socket.socket] = []
        self._server: asyncio.Server | None = None

    def bind(self, address: str) -> Ports:
        """Take ports of ``address``, which need not be there yet. Raises ``OSError``."""
        self._close_sockets()  # of an earlier try
        kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_STREAM)
        for kind in kinds:
            one = socket.socket(socket.AF_INET, kind)
            self._sockets.append(one)
            one.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            one.bind((address, 0))
            if kind == socket.SOCK_STREAM:
                one.listen(_BACKLOG)
            one.setblocking(False)
        return Ports(*(one.getsockname()[1] for one in self._sockets))

    async def serve(self) -> None:
        """Begin to answer."""
        tls, udp, tcp = self._sockets
        await self._names.serve(udp, tcp)
        self._server = await asyncio.start_server(self._connected, sock=tls, limit=CHUNK_BYTES)

    def allow(self, address: str, domains: Sequence[str]) -> None:
        """Let the container there reach these domains; connections to others are cut."""
        guest = self._guests.setdefault(address, _Guest(()))
        guest.domains = tuple(domains)
        for passage in list(guest.passages):
            if passage.name and not is_listed(passage.name, domains):
                _cut(passage)

    def forget(self, address: str, *, cut: bool = True) -> None:
        """The container is gone; or, without ``cut``, may reach everything and keeps what is open."""
        guest = self._guests.pop(address, None)
        if guest is not None and cut:
            for passage in list(guest.passages):
                _cut(passage)

    def close(self) -> None:
        """End everything."""
        for address in list(self._guests):
            self.forget(address)
        if self._server is not None:
            self._server.close()
        self._names.close()
        self._close_sockets()

    def _close_sockets(self) -> None:
        for one in self._sockets:
            one.close()
        self._sockets.clear()

    def _allowed(self, address: str) -> Sequence[str] | None:
        guest = self._guests.get(address)
        return None if guest is None else guest.domains

    # ── TLS ─────────────────────────────────────────────────────────────────────────────────

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = writer.get_extra_info("peername")[0]
        guest = self._guests.get(source)
        if guest is None or len(guest.passages) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        passage = _Passage(asyncio.current_task())
        guest.passages.add(passage)
        try:
            await self._pass(guest, passage, reader, writer)
        except (OSError, TimeoutError) as error:
            log.debug("a container's connection failed", name=passage.name, error=str(error))
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
        except Exception:
            log.exception("a container's connection failed", name=passage.name)
            writer.transport.abort()
        finally:
            guest.passages.discard(passage)
            writer.close()

    async def _pass(
        self,
        guest: _Guest,
        passage: _Passage,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        async with asyncio.timeout(HELLO_S):
            named, seen = await read_hello(reader)
        name = ""
        with contextlib.suppress(ValueError):
            name = plain(named or "")
        # asked only now: the list may have changed meanwhile
        if not name or not is_listed(name, guest.domains):
            log.debug("a container may not reach this", name=name or "(no name)")
            writer.write(refusal())
            return
        passage.name = name
        there_reader, there_writer = await self._connect(name)
        try:
            if not is_listed(name, guest.domains):
                return
            there_writer.write(seen)
            await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))
        finally:
            there_writer.close()

    async def _connect(self, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the server of that name. Raises ``OSError``, ``TimeoutError``."""
        async with asyncio.timeout(CONNECT_S):
            found = await self._names.addresses(name)
            failure = OSError(f"{name} has no address that containers may reach")
            for address in found:
                if not self._is_outside(address):
                    continue
                try:
                    return await asyncio.open_connection(address, TLS_PORT, limit=CHUNK_BYTES)
                except OSError as error:
                    failure = error
        raise failure

    def _is_outside(self, text: str) -> bool:
        """Whether it is what the node's firewall lets containers reach."""
        address = ipaddress.IPv4Address(text)
        if (
            address.is_loopback
            or address.is_link_local
            or address.is_multicast
            or address.is_unspecified
            or address in self._avoided
        ):
            return False
        return not is_own(text)


def is_own(address: str) -> bool:
    """Whether this machine has ``address``: it then speaks to it from the same one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return False
        return probe.getsockname()[0] == address


def _cut(passage: _Passage) -> None:
    if passage.task is not None:
        passage.task.cancel()
