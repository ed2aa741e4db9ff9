"""Just enough netlink to wire containers: links, addresses, routes, and nftables rules.

Messages are built by hand because the set is small and fixed: no command-line tool needs to be
installed and one container costs a few hundred microseconds. Sockets block; use them off the
event loop. A socket belongs to the network namespace in which it was created.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800
NLM_F_DUMP: Final = 0x300

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLA_F_NESTED: Final = 0x8000
_HEADER: Final = struct.Struct("=IHHII")

_RTM_NEWLINK: Final = 16
_RTM_DELLINK: Final = 17
_RTM_SETLINK: Final = 19
_RTM_NEWADDR: Final = 20
_RTM_NEWROUTE: Final = 24
_IFF_UP: Final = 1
_RTNH_F_ONLINK: Final = 4
_SIOCGIFINDEX: Final = 0x8933


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + b"\0" * (-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | _NLA_F_NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """A string attribute (with its terminating zero)."""
    return attribute(kind, value.encode() + b"\0")


class Netlink:
    """One netlink socket of a protocol (``NETLINK_ROUTE``, ``NETLINK_NETFILTER``)."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.bind((0, 0))
        self._socket.settimeout(10)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def index(self, name: str) -> int:
        """Index of interface ``name`` in this socket's namespace. Raises ``OSError``."""
        request = struct.pack("16si", name.encode(), 0)
        return struct.unpack("16si", fcntl.ioctl(self._socket, _SIOCGIFINDEX, request))[1]

    def ask(self, kind: int, flags: int, body: bytes) -> None:
        """Send one request and wait for its acknowledgement. Raises ``OSError``."""
        self._sequence += 1
        message = self.message(kind, flags | NLM_F_ACK, body, self._sequence)
        self._socket.send(message)
        self._wait_for({self._sequence})

    def send_batch(self, messages: Sequence[tuple[int, int, bytes]]) -> None:
        """Send requests in one datagram; those with ``NLM_F_ACK`` are waited for."""
        data = b""
        wanted: set[int] = set()
        for kind, flags, body in messages:
            self._sequence += 1
            if flags & NLM_F_ACK:
                wanted.add(self._sequence)
            data += self.message(kind, flags, body, self._sequence)
        self._socket.send(data)
        self._wait_for(wanted)

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """All answers (without their header) to a dump request."""
        self._sequence += 1
        self._socket.send(self.message(kind, NLM_F_DUMP, body, self._sequence))
        answers: list[bytes] = []
        while True:
            for answer_kind, sequence, payload in self._receive():
                if sequence != self._sequence:
                    continue
                if answer_kind == _NLMSG_DONE:
                    return answers
                if answer_kind == _NLMSG_ERROR:
                    _raise(payload)
                    return answers
                answers.append(payload)

    @staticmethod
    def message(kind: int, flags: int, body: bytes, sequence: int) -> bytes:
        length = _HEADER.size + len(body)
        header = _HEADER.pack(length, kind, flags | NLM_F_REQUEST, sequence, 0)
        return header + body + b"\0" * (-length % 4)

    def _wait_for(self, wanted: set[int]) -> None:
        error: OSError | None = None
        while wanted:
            for kind, sequence, payload in self._receive():
                if kind != _NLMSG_ERROR or sequence not in wanted:
                    continue
                wanted.discard(sequence)
                try:
                    _raise(payload)
                except OSError as failure:
                    error = error or failure
            if error is not None:
                raise error

    def _receive(self) -> list[tuple[int, int, bytes]]:
        data = self._socket.recv(1 << 17)
        messages: list[tuple[int, int, bytes]] = []
        while len(data) >= _HEADER.size:
            length, kind, _, sequence, _ = _HEADER.unpack_from(data)
            messages.append((kind, sequence, data[_HEADER.size : length]))
            data = data[length + (-length % 4) :]
        return messages


def _raise(payload: bytes) -> None:
    number = -struct.unpack_from("=i", payload)[0]
    if number:
        raise OSError(number, f"netlink: {os.strerror(number)}")


# --- links, addresses, routes -------------------------------------------------------------------


def _link(index: int = 0, up: bool = False) -> bytes:
    flag = _IFF_UP if up else 0
    return struct.pack("=BxHiII", 0, 0, index, flag, flag)


def create_veth(host: Netlink, name: str, peer: str, netns_fd: int) -> None:
    """A pair ``name`` here and ``peer`` in another namespace, both down."""
    other = _link() + text(3, peer) + attribute(28, struct.pack("=I", netns_fd))
    info = nested(18, text(1, "veth"), nested(2, attribute(1, other)))
    host.ask(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _link() + text(3, name) + info)


def set_up(netlink: Netlink, index: int) -> None:
    """Switch an interface on."""
    netlink.ask(_RTM_NEWLINK, 0, _link(index, up=True))


def delete_links(netlink: Netlink, names: Sequence[str], group: int) -> None:
    """Remove interfaces by name, all in one step of the kernel (each alone takes ten ms).

    ``group`` is a number of interface groups nobody else uses. Names that do not exist are no
    error.
    """
    found = False
    for name in names:
        try:
            body = _link() + text(3, name) + attribute(27, struct.pack("=I", group))
            netlink.ask(_RTM_SETLINK, 0, body)
            found = True
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
    if not found:
        return
    try:
        netlink.ask(_RTM_DELLINK, 0, _link() + attribute(27, struct.pack("=I", group)))
    except OSError as error:
        if error.errno != errno.ENODEV:  # else the kernel removed all with their namespaces
            raise


def add_address(netlink: Netlink, index: int, address: str, peer: str = "") -> None:
    """Give an interface an address; with ``peer`` it is one end of a point-to-point link."""
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, index)
    body += attribute(2, socket.inet_aton(address))
    body += attribute(1, socket.inet_aton(peer or address))
    netlink.ask(_RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body)


def add_default_route(netlink: Netlink, index: int, gateway: str) -> None:
    """Everything goes to ``gateway``, which is on the link though not in its subnet."""
    add_route(netlink, index, "", 0, gateway)


def add_route(netlink: Netlink, index: int, network: str, bits: int, gateway: str) -> None:
    """``network`` (of ``bits``) is reached through ``gateway``, on the link, and no other way."""
    main, boot, universe, unicast = 254, 3, 0, 1
    body = struct.pack(
        "=BBBBBBBBI", socket.AF_INET, bits, 0, 0, main, boot, universe, unicast, _RTNH_F_ONLINK
    )
    if bits:
        body += attribute(1, socket.inet_aton(network))
    body += attribute(5, socket.inet_aton(gateway)) + attribute(4, struct.pack("=I", index))
    netlink.ask(_RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body)


# --- nftables -----------------------------------------------------------------------------------

_NETFILTER: Final = 12
_SUBSYSTEM: Final = 10
_BATCH_BEGIN: Final = 0x10
_BATCH_END: Final = 0x11
_NEWTABLE: Final = 0
_GETTABLE: Final = 1
_DELTABLE: Final = 2
_NEWCHAIN: Final = 3
_NEWRULE: Final = 6
_IPV4: Final = 2

HOOK_PREROUTING: Final = 0
HOOK_INPUT: Final = 1
HOOK_FORWARD: Final = 2
HOOK_POSTROUTING: Final = 4

ACCEPT: Final = 1


def _be32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">i", value))


def _generic(resource: int = 0, family: int = _IPV4) -> bytes:
    return struct.pack(">BBH", family, 0, resource)


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *attributes))


def _compare(value: bytes, *, equal: bool = True) -> bytes:
    return _expression(
        "cmp", _be32(1, 1), _be32(2, 0 if equal else 1), nested(3, attribute(1, value))
    )


def match_interface(direction: str, prefix: str, *, equal: bool = True) -> bytes:
    """``iifname``/``oifname`` begins (or does not begin) with ``prefix``."""
    key = {"in": 6, "out": 7}[direction]
    return _expression("meta", _be32(1, 1), _be32(2, key)) + _compare(prefix.encode(), equal=equal)


def match_network(field: str, network: str, *, equal: bool = True) -> bytes:
    """``ip saddr``/``ip daddr`` is in (or is not in) ``network`` (``a.b.c.d/n``)."""
    address, _, length = network.partition("/")
    bits = int(length or 32)
    mask = struct.pack(">I", (0xFFFFFFFF << (32 - bits)) & 0xFFFFFFFF)
    offset = {"source": 12, "destination": 16}[field]
    load = _expression("payload", _be32(1, 1), _be32(2, 1), _be32(3, offset), _be32(4, 4))
    masked = _expression(
        "bitwise", _be32(1, 1), _be32(2, 1), _be32(3, 4),
        nested(4, attribute(1, mask)), nested(5, attribute(1, b"\0\0\0\0")),
    )  # fmt: skip
    return load + masked + _compare(socket.inet_aton(address), equal=equal)


def match_port(protocol: int, port: int) -> bytes:
    """Destination ``port`` of an IP ``protocol`` (6 TCP, 17 UDP)."""
    kind = _expression("meta", _be32(1, 1), _be32(2, 16)) + _compare(bytes([protocol]))
    load = _expression("payload", _be32(1, 1), _be32(2, 2), _be32(3, 2), _be32(4, 2))
    return kind + load + _compare(struct.pack(">H", port))


def match_known_connection() -> bytes:
    """``ct state established,related``."""
    mask = struct.pack("=I", 2 | 4)
    return (
        _expression("ct", _be32(1, 1), _be32(2, 0))
        + _expression(
            "bitwise", _be32(1, 1), _be32(2, 1), _be32(3, 4),
            nested(4, attribute(1, mask)), nested(5, attribute(1, b"\0\0\0\0")),
        )
        + _compare(b"\0\0\0\0", equal=False)
    )  # fmt: skip


def match_reply() -> bytes:
    """``ct direction reply``: the packet answers to a connection that came from outside."""
    return _expression("ct", _be32(1, 1), _be32(2, 1)) + _compare(b"\x01")


def accept() -> bytes:
    """Let it pass."""
    return _expression("immediate", _be32(1, 0), nested(2, nested(2, _be32(1, ACCEPT))))


def reject() -> bytes:
    """Refuse with "administratively prohibited", so that programs fail at once."""
    return _expression("reject", _be32(1, 0), attribute(2, b"\x0d"))


def masquerade() -> bytes:
    """Replace the source by the outgoing interface's address."""
    return _expression("masq")


def redirect(port: int) -> bytes:
    """Have it end at ``port`` of the address that this machine has on the interface it came by."""
    load = _expression("immediate", _be32(1, 1), nested(2, attribute(1, struct.pack(">H", port))))
    return load + _expression("redir", _be32(1, 1))


class Firewall:
    """One nftables table (family ``ip``) of ours, replaced and deleted as a whole."""

    def __init__(self, table: str) -> None:
        self.table = table
        self._messages: list[tuple[int, int, bytes]] = []

    def chain(self, name: str, kind: str, hook: int, priority: int) -> None:
        """A base chain with policy accept."""
        body = _generic() + text(1, self.table) + text(3, name)
        body += nested(4, _be32(1, hook), _be32(2, priority)) + _be32(5, ACCEPT) + text(7, kind)
        self._add(_NEWCHAIN, NLM_F_CREATE, body)

    def rule(self, chain: str, *expressions: bytes) -> None:
        """Append a rule; the last expression is its verdict."""
        body = _generic() + text(1, self.table) + text(2, chain) + nested(4, *expressions)
        self._add(_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body)

    def apply(self) -> None:
        """Replace the table by what was described, in one transaction. Raises ``OSError``."""
        table = _generic() + text(1, self.table)
        fresh: list[tuple[int, int, bytes]] = [
            (_SUBSYSTEM << 8 | _NEWTABLE, NLM_F_CREATE | NLM_F_ACK, table),
            (_SUBSYSTEM << 8 | _DELTABLE, NLM_F_ACK, table),
            (_SUBSYSTEM << 8 | _NEWTABLE, NLM_F_CREATE | NLM_F_ACK, table),
        ]
        _transact([*fresh, *self._messages])

    def _add(self, kind: int, flags: int, body: bytes) -> None:
        self._messages.append((_SUBSYSTEM << 8 | kind, flags | NLM_F_ACK, body))


def delete_table(name: str) -> None:
    """Remove a table with all that is in it; no error if it does not exist."""
    table = _generic() + text(1, name)
    _transact(
        [
            (_SUBSYSTEM << 8 | _NEWTABLE, NLM_F_CREATE | NLM_F_ACK, table),
            (_SUBSYSTEM << 8 | _DELTABLE, NLM_F_ACK, table),
        ]
    )


def table_names() -> list[str]:
    """Names of all nftables tables of family ``ip``. Raises ``OSError`` without nftables."""
    netlink = Netlink(_NETFILTER)
    try:
        answers = netlink.dump(_SUBSYSTEM << 8 | _GETTABLE, _generic())
    finally:
        netlink.close()
    names: list[str] = []
    for answer in answers:
        rest = answer[4:]
        while len(rest) >= 4:
            length, kind = struct.unpack_from("=HH", rest)
            if length < 4:
                break
            if kind & 0x3FFF == 1:
                names.append(rest[4:length].rstrip(b"\0").decode(errors="replace"))
            rest = rest[length + (-length % 4) :]
    return names


def _transact(messages: list[tuple[int, int, bytes]]) -> None:
    border = _generic(_SUBSYSTEM, 0)
    netlink = Netlink(_NETFILTER)
    try:
        netlink.send_batch([(_BATCH_BEGIN, 0, border), *messages, (_BATCH_END, 0, border)])
    finally:
        netlink.close()
