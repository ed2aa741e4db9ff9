"""Links between the containers of one sandbox, by which they reach each other by name.

A link is a pair of interfaces, one in each container's network, and nothing of it is in the host's:
the rules about what a container may reach outside do not concern it, and it goes with the first
of the two networks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from typing import Final

from homeport.node import netlink
from homeport.node.network import in_netns
from homeport.node.runtime.port import Container

_HOSTS_BYTES_MAX: Final = 1024 * 1024
LINKS_MAX: Final = 120 * 250
"""Links in the life of one sandbox: each has an address of its own at either end."""


async def connect(
    one: Container, name: str, other: Container, other_name: str, number: int
) -> None:
    """Let two containers reach each other by their names. ``number`` counts a sandbox's links.

    Raises ``OSError``.
    """
    if number > LINKS_MAX:
        raise OSError(0, f"a sandbox has at most {LINKS_MAX} such links in its life")
    if one.has_own_stack or other.has_own_stack:
        raise OSError(
            0,
            "containers of gVisor (runsc) cannot be linked while they run; sandboxes with sidecars "
            "need another sandbox_runtime, such as bubblewrap",
        )
    # 198.18.0.0/15 is nobody's: it is set aside for tests of networks
    here, there = (f"198.18.{number // 120}.{number % 120 * 2 + end}" for end in (1, 2))
    interfaces = f"peer{number}a", f"peer{number}b"
    await asyncio.to_thread(_link, one.netns, other.netns, interfaces, (here, there))
    await _name(one, other_name, there)
    await _name(other, name, here)


def is_gone(container: Container) -> bool:
    """Whether its network is gone: its processes have ended."""
    return not os.path.exists(container.netns)


def _link(one: str, other: str, interfaces: tuple[str, str], addresses: tuple[str, str]) -> None:
    theirs = os.open(other, os.O_RDONLY | os.O_CLOEXEC)
    try:
        in_netns(one, lambda: _begin(theirs, interfaces, addresses))
        in_netns(theirs, lambda: _set_up(interfaces[1], *addresses[::-1]))
    finally:
        os.close(theirs)


def _begin(theirs: int, interfaces: tuple[str, str], addresses: tuple[str, str]) -> None:
    """Make both ends, from the network of the first."""
    with contextlib.closing(netlink.Netlink()) as route:
        netlink.create_veth(route, interfaces[0], interfaces[1], theirs)
    _set_up(interfaces[0], *addresses)


def _set_up(interface: str, address: str, peer: str) -> None:
    """In the calling thread's network."""
    # What one container may reach outside is not to be reached through it by the other.
    with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
        file.write("0")
    with contextlib.closing(netlink.Netlink()) as route:
        index = route.index(interface)
        netlink.add_address(route, index, address, peer)
        netlink.set_up(route, index)


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
