"""Private addresses for containers: each node of a machine takes a block of the pool."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
from collections import deque
from pathlib import Path
from typing import Final

from homeport.node.runtime.port import RuntimeUnavailableError

CLAIMS: Final = Path("/run/homeport/addresses")
_BLOCK_BITS: Final = 20
_REST: Final = 1  # addresses of a block not given out at its end (broadcast-like)


class AddressBlock:
    """One block: its first address is the gateway of all containers, the rest are theirs."""

    def __init__(self, network: ipaddress.IPv4Network, lock: int, path: Path) -> None:
        self.network = str(network)
        self.gateway = str(network[1])
        self._network = network
        self._free: deque[int] = deque(range(2, network.num_addresses - _REST))
        self._lock = lock
        self._path = path

    def address(self, number: int) -> str:
        """The address that has ``number``."""
        return str(self._network[number])

    def take(self) -> int:
        """The number that was free longest. Raises ``RuntimeUnavailableError`` if all are taken."""
        if not self._free:
            raise RuntimeUnavailableError(f"all addresses of {self.network} are in use")
        return self._free.popleft()

    def give_back(self, number: int) -> None:
        """Free it again."""
        self._free.append(number)

    def reserve(self, number: int) -> None:
        """Keep ``number`` from being taken: a container of an earlier run has it."""
        with contextlib.suppress(ValueError):
            self._free.remove(number)

    def release(self) -> None:
        """Let other nodes have the block."""
        if self._lock >= 0:
            self._path.unlink(missing_ok=True)
            for parent in (self._path.parent, self._path.parent.parent):
                with contextlib.suppress(OSError):
                    parent.rmdir()
            os.close(self._lock)
            self._lock = -1


def claim_block(pool: str, tag: str, interface_prefix: str, claims: Path = CLAIMS) -> AddressBlock:
    """A block of ``pool`` for the node called ``tag``: the one it had before, else a free one.

    The claim is a locked file, so it ends with the process. Raises ``RuntimeUnavailableError``.
    """
    network = ipaddress.IPv4Network(pool)
    bits = max(_BLOCK_BITS, network.prefixlen)
    claims.mkdir(parents=True, exist_ok=True)
    blocks = list(network.subnets(new_prefix=bits))
    owners = {block: _owner(claims / _file_name(block)) for block in blocks}
    blocks.sort(key=lambda block: owners[block] != tag)
    routed = _routes()
    for block in blocks:
        taken = any(
            not name.startswith(interface_prefix) and block.overlaps(route)
            for name, route in routed
        )
        if taken:
            continue
        path = claims / _file_name(block)
        lock = _lock(path)
        if lock >= 0:
            os.ftruncate(lock, 0)
            os.pwrite(lock, tag.encode(), 0)
            return _without_used(AddressBlock(block, lock, path), block, routed)
    raise RuntimeUnavailableError(
        f"no block of {pool} is free: other nodes or routes of this machine use them all"
    )


def _without_used(
    made: AddressBlock,
    block: ipaddress.IPv4Network,
    routed: list[tuple[str, ipaddress.IPv4Network]],
) -> AddressBlock:
    for _, route in routed:
        if route.prefixlen == 32 and route.network_address in block:
            made.reserve(int(route.network_address) - int(block.network_address))
    return made


def _file_name(block: ipaddress.IPv4Network) -> str:
    return str(block).replace("/", "_")


def _owner(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _lock(path: Path) -> int:
    """Lock the claim file; -1 if another process has it."""
    for _ in range(5):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return -1
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(fd).st_ino == path.stat().st_ino:
                return fd
        os.close(fd)  # its last owner removed it meanwhile
    return -1


def _routes() -> list[tuple[str, ipaddress.IPv4Network]]:
    """Interface and network of every route but the default ones."""
    found: list[tuple[str, ipaddress.IPv4Network]] = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/route").read_text().splitlines()[1:]:
            fields = line.split()
            address = socket.inet_ntoa(struct.pack("=I", int(fields[1], 16)))
            mask = socket.inet_ntoa(struct.pack("=I", int(fields[7], 16)))
            if mask != "0.0.0.0":
                found.append((fields[0], ipaddress.IPv4Network(f"{address}/{mask}", strict=False)))
    return found
