"""Names for containers that may reach listed domains only: asked for outside of the container."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import dns.asyncquery
import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import structlog

from homeport.kernel.domains import is_listed, plain

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

ASK_S: Final = 3.0
"""How long one name server may take."""
IDLE_S: Final = 10.0
"""A TCP connection without a question is closed after it."""
PENDING_MAX: Final = 64
"""Questions of one container that wait for answers; more are dropped, as networks do."""
CONNECTIONS_MAX: Final = 16
"""TCP connections of one container at a time."""

Allowed = Callable[[str], Sequence[str] | None]
"""The domains that the container of an address may reach; ``None`` if it is none of ours."""


class Names:
    """Asks the machine's name servers, for A records of listed domains and for nothing else.

    ``servers`` gives their IPv4 addresses. What else could be asked would be a way to send data
    out, and nothing in a container could use the answers: it has no IPv6.
    """

    def __init__(self, servers: Callable[[], Sequence[str]], allowed: Allowed) -> None:
        self._servers = servers
        self._allowed = allowed
        self._pending: dict[str, set[asyncio.Task[None]]] = {}
        self._connections: Counter[str] = Counter()
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None

    async def serve(self, udp: socket.socket, tcp: socket.socket) -> None:
        """Answer at these sockets."""
        loop = asyncio.get_running_loop()
        self._udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=udp)
        self._tcp = await asyncio.start_server(self._connected, sock=tcp)

    def close(self) -> None:
        """Answer no more."""
        for tasks in self._pending.values():
            for task in tasks:
                task.cancel()
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()

    async def addresses(self, name: str) -> list[str]:
        """The IPv4 addresses of ``name``; none if it has none, or nobody answers."""
        answer = await self._ask(dns.message.make_query(name, dns.rdatatype.A))
        if answer is None:
            return []
        records: list[dns.rdata.Rdata] = []
        for found in answer.answer:
            if found.rdtype == dns.rdatatype.A:
                records += found
        return [record.to_text() for record in records]

    async def answer(self, source: str, question: bytes) -> bytes:
        """What the container with the address ``source`` is told; empty: nothing."""
        allowed = self._allowed(source)
        if allowed is None:
            return b""
        try:
            query = dns.message.from_wire(question)
            answer = dns.message.make_response(query, recursion_available=True)
        except (dns.exception.DNSException, ValueError, struct.error):
            return b""
        await self._fill(query, answer, allowed)
        return answer.to_wire()

    async def _fill(
        self, query: dns.message.Message, answer: dns.message.Message, allowed: Sequence[str]
    ) -> None:
        if len(query.question) != 1 or query.question[0].rdclass != dns.rdataclass.IN:
            answer.set_rcode(dns.rcode.REFUSED)
            return
        asked = query.question[0]
        if not is_listed(plain(asked.name.to_text()), allowed):
            answer.set_rcode(dns.rcode.NXDOMAIN)
            if query.edns >= 0:
                option = dns.edns.EDEOption(dns.edns.EDECode.BLOCKED)
                answer.use_edns(0, 0, query.payload, options=[option])
            return
        if asked.rdtype != dns.rdatatype.A:
            return
        found = await self._ask(dns.message.make_query(asked.name, dns.rdatatype.A))
        if found is None:
            answer.set_rcode(dns.rcode.SERVFAIL)
            return
        answer.set_rcode(found.rcode())
        answer.answer = found.answer

    async def _ask(self, query: dns.message.Message) -> dns.message.Message | None:
        for server in self._servers():
            try:
                answer, _ = await dns.asyncquery.udp_with_fallback(query, server, ASK_S)
            except (dns.exception.DNSException, OSError) as error:
                log.info("a name server gave no answer", server=server, error=str(error))
                continue
            return answer
        return None

    # ── both ways in ────────────────────────────────────────────────────────────────────────

    def received(self, question: bytes, source: tuple[str, int]) -> None:
        """A datagram came."""
        pending = self._pending.setdefault(source[0], set())
        if len(pending) < PENDING_MAX:
            task = asyncio.get_running_loop().create_task(self._reply(question, source))
            pending.add(task)
            task.add_done_callback(lambda done: self._replied(source[0], done))

    def _replied(self, address: str, task: asyncio.Task[None]) -> None:
        pending = self._pending[address]
        pending.discard(task)
        if not pending:
            del self._pending[address]

    async def _reply(self, question: bytes, source: tuple[str, int]) -> None:
        answer = await self.answer(source[0], question)
        if answer and self._udp is not None:
            self._udp.sendto(_short(answer), source)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = writer.get_extra_info("peername")[0]
        if self._allowed(source) is None or self._connections[source] >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        self._connections[source] += 1
        try:
            while True:
                async with asyncio.timeout(IDLE_S):
                    (length,) = struct.unpack(">H", await reader.readexactly(2))
                    question = await reader.readexactly(length)
                answer = await self.answer(source, question)
                if not answer:
                    return
                writer.write(struct.pack(">H", len(answer)) + answer)
                async with asyncio.timeout(IDLE_S):
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return
        finally:
            self._connections[source] -= 1
            if not self._connections[source]:
                del self._connections[source]
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, names: Names) -> None:
        self._names = names

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._names.received(data, addr)


_DATAGRAM_MAX: Final = 1232


def _short(answer: bytes) -> bytes:
    """As a datagram: what is too long for one is to be asked for by TCP."""
    if len(answer) <= _DATAGRAM_MAX:
        return answer
    message = dns.message.from_wire(answer)
    message.answer = []
    message.flags |= dns.flags.TC
    return message.to_wire()
