"""Links between the containers of one sandbox, by which they reach each other by name.

A link is a pair of interfaces, one in each container's network, and nothing of it is in the host's:
the rules about what a container may reach outside do not concern it, and it goes with the first
of the two networks.

Where a container's network stack is not the kernel's (gVisor), that one is behind the kernel in the
container's network (``inner_link``), which forwards to it from the links and to nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from dataclasses import dataclass
from typing import Final

from homeport.node import netlink
from homeport.node.network import in_netns
from homeport.node.runtime.port import Container

_INNER: Final = "peers"
_INNER_KERNEL: Final = "peers-kernel"
_LINKS: Final = "169.254.0.0"
"""Links and what is behind them have their addresses in this network of 17 bits.

A container reaches no link-local address otherwise, so none is taken from it; a cloud's metadata are in
the other half.
"""
_INNER_GATEWAY: Final = "169.254.127.1"
_INNER_FIRST: Final = 64
_INNER_HIGH: Final = 63
_INNER_LOW: Final = 250
_HOSTS_BYTES_MAX: Final = 1024 * 1024
LINKS_MAX: Final = 120 * 64
"""Links in the life of one sandbox: each has an address of its own at either end."""


@dataclass(frozen=True, slots=True)
class _End:
    """One end of a link; ``behind`` and ``beyond`` are the ``peer_address`` of the two containers."""

    interface: str
    address: str
    peer: str
    behind: str
    beyond: str


async def connect(
    one: Container, name: str, other: Container, other_name: str, number: int
) -> None:
    """Let two containers reach each other by their names. ``number`` counts a sandbox's links.

    Raises ``OSError``.
    """
    if number > LINKS_MAX:
        raise OSError(0, f"a sandbox has at most {LINKS_MAX} such links in its life")
    high, low = divmod(number - 1, 120)
    here, there = (f"169.254.{high}.{low * 2 + end}" for end in (1, 2))
    interfaces = f"peer{number}a", f"peer{number}b"
    ends = (
        _End(interfaces[0], here, there, one.peer_address, other.peer_address),
        _End(interfaces[1], there, here, other.peer_address, one.peer_address),
    )
    await asyncio.to_thread(_link, one.netns, other.netns, ends)
    await _name(one, other_name, other.peer_address or there)
    await _name(other, name, one.peer_address or here)


def inner_link(number: int) -> str:
    """Make one for a container that has not started, in the calling thread's network: its address.

    ``number`` tells the containers of a node apart.
    """
    place = number % (_INNER_HIGH * _INNER_LOW)
    address = f"169.254.{_INNER_FIRST + place // _INNER_LOW}.{place % _INNER_LOW + 1}"
    _forward_nothing()
    with contextlib.closing(netlink.Netlink()) as route:
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            netlink.create_veth(route, _INNER_KERNEL, _INNER, here)
        finally:
            os.close(here)
        inner = route.index(_INNER)
        netlink.add_address(route, inner, address)
        netlink.set_up(route, inner)
        netlink.add_route(route, inner, _LINKS, 17, _INNER_GATEWAY)
    return address


def _open_inner(route: netlink.Netlink, address: str) -> None:
    """The kernel's end, with the first link: gVisor takes what has an address when it starts."""
    kernel = route.index(_INNER_KERNEL)
    try:
        netlink.add_address(route, kernel, _INNER_GATEWAY, address)
    except FileExistsError:
        return
    netlink.set_up(route, kernel)
    _forward(_INNER_KERNEL)


def _forward_nothing() -> None:
    """What one container may reach outside is not to be reached through it by another."""
    with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
        file.write("0")


def _forward(interface: str) -> None:
    """What comes in by it may go on."""
    with open(f"/proc/sys/net/ipv4/conf/{interface}/forwarding", "w") as file:
        file.write("1")


def is_gone(container: Container) -> bool:
    """Whether its network is gone: its processes have ended."""
    return not os.path.exists(container.netns)


def _link(one: str, other: str, ends: tuple[_End, _End]) -> None:
    theirs = os.open(other, os.O_RDONLY | os.O_CLOEXEC)
    try:
        in_netns(one, lambda: _begin(theirs, ends))
        in_netns(theirs, lambda: _set_up(ends[1]))
    finally:
        os.close(theirs)


def _begin(theirs: int, ends: tuple[_End, _End]) -> None:
    """Make both ends, from the network of the first."""
    with contextlib.closing(netlink.Netlink()) as route:
        netlink.create_veth(route, ends[0].interface, ends[1].interface, theirs)
    _set_up(ends[0])


def _set_up(end: _End) -> None:
    """In the calling thread's network."""
    if end.behind:
        _forward(end.interface)
    else:
        _forward_nothing()
    with contextlib.closing(netlink.Netlink()) as route:
        index = route.index(end.interface)
        netlink.add_address(route, index, end.address, end.peer)
        netlink.set_up(route, index)
        if end.behind:
            _open_inner(route, end.behind)
        if end.beyond:
            netlink.add_route(route, index, end.beyond, 32, end.peer)


async def _name(container: Container, name: str, address: str) -> None:
    """Have ``name`` lead to ``address`` in a container's ``/etc/hosts``, and nowhere else."""
    etc = await container.open_directory("/etc")
    try:
        await asyncio.to_thread(_write_name, etc, name, address)
    finally:
        os.close(etc)


def _write_name(etc: int, name: str, address: str) -> None:
    """The container may have made anything of the file: no link is followed, nothing waited for."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open("hosts", flags, dir_fd=etc), "r+b", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return
        lines = file.read(_HOSTS_BYTES_MAX).splitlines(keepends=True)
        kept = [line for line in lines if line.split()[1:] != [name.encode()]]
        file.seek(0)
        file.truncate()
        file.write(b"".join([*kept, f"{address}\t{name}\n".encode()]))
