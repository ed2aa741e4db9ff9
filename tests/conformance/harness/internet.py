"""A network beyond this machine, as its containers see it: a namespace with servers and names."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset

from homeport.kernel.certificates import Authority
from homeport.node import netlink
from homeport.node.resolver import host_resolver
from homeport.node.runtime import linux

SERVERS = (2, 3)
"""Last numbers of the addresses with servers; the name server has 1, this machine 254."""


class Internet:
    """``names`` maps names under ``.example`` to addresses, ``{net}`` being this network's and
    ``{loopback}`` an address of this machine's own.

    Each of ``SERVERS`` answers TLS at 443 and 8443 with ``server <n> sni <name>`` and a line, echoes
    lines after that; at 80 and 853 it answers plainly; at the UDP ports of ``DATAGRAMS`` it keeps
    what it got in ``datagrams``. This machine answers TLS at 254 and at ``loopback``. ``asked`` has the names that were looked up.
    """

    DATAGRAMS = (53, 443, 5353)

    def __init__(self, names: Mapping[str, str]) -> None:
        self.net = f"198.18.{random.randrange(1, 255)}"
        self.loopback = f"127.250.{random.randrange(1, 255)}.{random.randrange(1, 255)}"
        self.names = {
            name: where.format(net=self.net, loopback=self.loopback)
            for name, where in names.items()
        }
        self.asked: list[str] = []
        self.datagrams: list[bytes] = []
        self._interface = f"inet{os.getpid()}"[:15]
        self._netns = -1
        self._sockets: list[socket.socket] = []
        self._folder = tempfile.TemporaryDirectory()

    @property
    def name_server(self) -> str:
        return f"{self.net}.1"

    def __enter__(self) -> Self:
        self._inside(self._wire)
        certificate = Path(self._folder.name) / "certificate.pem"
        authority = Authority.from_folder(Path(self._folder.name))
        certificate.write_text("".join(authority.issue(["example"])))
        for number in SERVERS:
            for port in (443, 8443):
                listening = self._socket(number, port, socket.SOCK_STREAM)
                self._serve(listening, _tls(str(number), certificate))
            for port in (80, 853):
                self._serve(self._socket(number, port, socket.SOCK_STREAM), _plain(number))
            for port in self.DATAGRAMS:
                self._keep(number, port)
        for address in (f"{self.net}.254", self.loopback):
            listening = socket.create_server((address, 443))
            self._sockets.append(listening)
            self._serve(listening, _tls("of the machine", certificate))
        self._answer_names()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        routes = netlink.Netlink()
        netlink.delete_links(routes, [self._interface], 0x20000000 | os.getpid() & 0xFFFFFF)
        routes.close()
        os.close(self._netns)
        self._folder.cleanup()

    # ── the wires ───────────────────────────────────────────────────────────────────────────

    def _wire(self) -> None:
        """In a thread of its own, which ends in the new namespace."""
        host = netlink.Netlink()
        linux.unshare(linux.CLONE_NEWNET)
        self._netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        netlink.create_veth(host, self._interface, "eth0", self._netns)
        here = host.index(self._interface)
        inside = netlink.Netlink()
        netlink.set_up(inside, inside.index("lo"))
        there = inside.index("eth0")
        for number in (1, *SERVERS):
            netlink.add_address(host, here, f"{self.net}.254", f"{self.net}.{number}")
            netlink.add_address(inside, there, f"{self.net}.{number}")
        netlink.set_up(host, here)
        netlink.set_up(inside, there)
        netlink.add_default_route(inside, there, f"{self.net}.254")
        inside.close()
        host.close()

    def _inside(self, work: Callable[[], None]) -> None:
        failed: list[BaseException] = []

        def run() -> None:
            try:
                if self._netns >= 0:
                    linux.setns(self._netns, linux.CLONE_NEWNET)
                work()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]

    def _socket(self, number: int, port: int, kind: socket.SocketKind) -> socket.socket:
        made: list[socket.socket] = []

        def make() -> None:
            one = socket.socket(socket.AF_INET, kind)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((f"{self.net}.{number}", port))
            if kind == socket.SOCK_STREAM:
                one.listen(64)
            made.append(one)

        self._inside(make)
        self._sockets += made
        return made[0]

    # ── the servers ─────────────────────────────────────────────────────────────────────────

    def _serve(self, listening: socket.socket, answer: Callable[[socket.socket], None]) -> None:
        def one(connection: socket.socket) -> None:
            with contextlib.suppress(OSError), connection:
                answer(connection)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    threading.Thread(target=one, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()

    def _keep(self, number: int, port: int) -> None:
        one = self._socket(number, port, socket.SOCK_DGRAM)

        def receive() -> None:
            with contextlib.suppress(OSError):
                while True:
                    data, source = one.recvfrom(4096)
                    if source is None:  # it was shut down
                        return
                    self.datagrams.append(data)
                    one.sendto(b"got it", source)

        threading.Thread(target=receive, daemon=True).start()

    def _answer_names(self) -> None:
        datagrams = self._socket(1, 53, socket.SOCK_DGRAM)
        internet = self

        def receive() -> None:
            with contextlib.suppress(OSError):
                while True:
                    data, source = datagrams.recvfrom(4096)
                    if source is None:
                        return
                    threading.Thread(target=reply, args=(data, source), daemon=True).start()

        def reply(data: bytes, source: Any) -> None:
            with contextlib.suppress(Exception):
                datagrams.sendto(internet._answer(data), source)

        def answer(connection: socket.socket) -> None:
            length = int.from_bytes(connection.recv(2, socket.MSG_WAITALL), "big")
            data = internet._answer(connection.recv(length, socket.MSG_WAITALL))
            connection.sendall(len(data).to_bytes(2, "big") + data)

        self._serve(self._socket(1, 53, socket.SOCK_STREAM), answer)
        threading.Thread(target=receive, daemon=True).start()

    def _answer(self, question: bytes) -> bytes:
        query = dns.message.from_wire(question)
        asked = query.question[0]
        name = asked.name.to_text(omit_final_dot=True).lower()
        if not name.endswith(".example"):  # the real ones, for what images are made of
            return dns.query.udp(query, host_resolver().nameservers[0], timeout=5).to_wire()
        self.asked.append(f"{name} {dns.rdatatype.to_text(asked.rdtype)}")
        answer = dns.message.make_response(query, recursion_available=True)
        where = self.names.get(name)
        if where is None:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif asked.rdtype == dns.rdatatype.A:
            answer.answer.append(dns.rrset.from_text(asked.name, 60, "IN", "A", *where.split()))
        return answer.to_wire()


def _plain(number: int) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(f"server {number}\n".encode())


def _tls(who: str, certificate: Path) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        seen: list[str | None] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.sni_callback = lambda _socket, name, _context: seen.append(name)
        with context.wrap_socket(connection, server_side=True) as secure:
            file = secure.makefile("rwb")
            file.write(f"server {who} sni {seen[0]}\n".encode())
            file.flush()
            for line in file:
                file.write(line)
                file.flush()

    return answer
