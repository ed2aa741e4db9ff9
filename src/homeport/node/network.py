"""Networks of containers: a namespace each, an ``eth0`` with a private IPv4 address, a way out.

A container is joined to the host by a point-to-point veth pair (no bridge: containers never share
a link). One nftables table a node masquerades what leaves, and refuses what goes to the host's own
addresses, to other containers, to link-local addresses (cloud metadata), and what comes in unasked.
Prepared namespaces wait in a pool, so that a start does not pay for them. Namespaces are held by
descriptors and processes only: nothing is mounted, and the kernel removes a pair with its
namespace even if the node is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import structlog

from homeport.node import netlink
from homeport.node.addresses import AddressBlock, claim_block
from homeport.node.egress.gate import TLS_PORT, Gate, Ports
from homeport.node.resolver import Resolver, host_resolver
from homeport.node.runtime import linux
from homeport.node.runtime.port import Egress, RuntimeUnavailableError
from homeport.node.stock import CALM_S, Stock

DEFAULT_POOL: Final = "10.87.0.0/16"
INTERFACE_PREFIX: Final = "hpv"
TABLE_PREFIX: Final = "homeport_"
_POOL_SIZE: Final = 8
_POOL_MAX: Final = 64
"""Networks kept ready in quiet and in busy times; each takes some 100 KiB of the kernel."""
_BEFORE: Final = -10
"""Priority of a container's own rules: before those of all containers."""
_BEFORE_ROUTING: Final = -100
_TCP: Final = 6
_UDP: Final = 17
_DNS_PORT: Final = 53
_LINK_LOCAL: Final = "169.254.0.0/16"

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


@dataclass(slots=True)
class Lease:
    """A container's network: ``netns_fd`` to join (-1: the host's), its ``address``, the resolver.

    ``interface`` is the host's end of the pair, empty without one.
    """

    netns_fd: int
    address: str = ""
    interface: str = ""
    number: int = -1
    is_restricted: bool = False
    """Whether there are rules of its own for what it may reach."""


class NetworkProvider(Protocol):
    """Where a runtime gets networks from."""

    async def start(self) -> None:
        """Set up what all containers share. Raises ``RuntimeUnavailableError``."""
        ...

    async def acquire(self, mode: str) -> Lease:
        """A network of ``mode`` (``nat``, ``none``, ``host``). Raises ``RuntimeUnavailableError``."""
        ...

    async def restrict(self, lease: Lease, egress: Egress | None) -> None:
        """Let a container reach this alone; ``None``: all that others may.

        It holds for open connections too; what comes in unasked is not concerned. Raises
        ``RuntimeUnavailableError`` where that cannot be enforced.
        """
        ...

    async def release(self, lease: Lease) -> None:
        """Give it back; its processes are gone."""
        ...

    def resolver(self) -> Resolver:
        """What ``/etc/resolv.conf`` of a container says."""
        ...

    def sweep(self) -> int:
        """Remove what an earlier node of the same name left. Blocks; call it off the loop."""
        ...

    async def close(self) -> None:
        """Remove everything."""
        ...


class VethNetwork:
    """The network of a node that may administrate the host's network (root)."""

    def __init__(
        self,
        tag: str,
        *,
        pool: str = DEFAULT_POOL,
        pool_size: int = _POOL_SIZE,
        name_servers: Sequence[str] = (),
    ) -> None:
        self._prefix = f"{INTERFACE_PREFIX}{tag}"
        self._table = f"{TABLE_PREFIX}{tag}"
        self._tag = tag
        self._pool_network = pool
        self._stock = Stock(pool_size, _POOL_MAX if pool_size else 0)
        self._calm: asyncio.TimerHandle | None = None
        self._block: AddressBlock | None = None
        self._ready: deque[Lease] = deque()
        self._refill: asyncio.Task[None] | None = None
        self._doomed: list[Lease] = []
        self._janitor: asyncio.Task[None] | None = None
        self._live: set[str] = set()
        self._group = 0x40000000 | int.from_bytes(hashlib.sha256(tag.encode()).digest()[:3], "big")
        self._threads = ThreadPoolExecutor(1, "homeport-network")
        self._janitor_thread = ThreadPoolExecutor(1, "homeport-network-janitor")
        self._host = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._route: netlink.Netlink | None = None
        self._started = False
        self._starting = asyncio.Lock()
        self._name_servers = tuple(name_servers)
        self._gate = Gate(lambda: self.resolver().nameservers, pool)
        self._gate_ports = Ports(0, 0, 0)

    @property
    def tag(self) -> str:
        """What names of interfaces and tables of this node contain."""
        return self._tag

    async def start(self) -> None:
        async with self._starting:
            if self._started:
                return
            await self._run(self._set_up)
            await self._gate.serve()
            self._started = True
            self._wake_refill()

    async def acquire(self, mode: str) -> Lease:
        if mode == "host":
            return Lease(-1)
        if mode == "none":
            return await self._run(self._make_isolated)
        if mode != "nat":
            raise RuntimeUnavailableError(f"there is no network mode {mode!r}")
        await self.start()
        if self._ready:
            lease = self._ready.popleft()
            self._wake_refill()
            return lease
        loop = asyncio.get_running_loop()
        self._stock.missed(loop.time())
        if self._calm is None:
            self._calm = loop.call_later(CALM_S, self._calm_down)
        lease = await self._run(self._make_connected)
        self._wake_refill()
        return lease

    async def restrict(self, lease: Lease, egress: Egress | None) -> None:
        if lease.number < 0:
            raise RuntimeUnavailableError("a container without a network has nothing to restrict")
        domains = egress.domains if egress is not None else ()
        if domains:
            self._gate.allow(lease.address, domains)
        try:
            await self._run(lambda: self._restrict(lease, egress))
        except OSError as error:
            raise RuntimeUnavailableError(
                f"what a container may reach cannot be restricted: {error}; it needs a kernel "
                "with nf_tables (nft_ct, nft_reject, nft_redir)"
            ) from error
        if not domains:
            self._gate.forget(lease.address, cut=egress is not None)

    async def release(self, lease: Lease) -> None:
        self._doom(lease)
        if lease.number >= 0 and self._janitor is not None:
            await asyncio.shield(self._janitor)

    def resolver(self) -> Resolver:
        return Resolver(self._name_servers) if self._name_servers else host_resolver()

    def sweep(self) -> int:
        """Remove interfaces and the table of an earlier run of this node."""
        return self._threads.submit(self._sweep).result()

    async def close(self) -> None:
        if self._calm is not None:
            self._calm.cancel()
        if self._refill is not None:
            self._refill.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refill
        if self._janitor is not None:
            await self._janitor
        self._gate.close()
        if self._host >= 0:
            await self._run(self._tear_down)
        self._threads.shutdown(wait=False)
        self._janitor_thread.shutdown(wait=False)

    # --- in the event loop ---

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _doom(self, lease: Lease) -> None:
        if lease.netns_fd >= 0:
            os.close(lease.netns_fd)
            lease.netns_fd = -1
        if lease.number < 0:
            return
        self._gate.forget(lease.address)
        self._doomed.append(lease)
        if self._janitor is None:
            self._janitor = asyncio.get_running_loop().create_task(self._remove_doomed())

    def _wake_refill(self) -> None:
        if self._refill is None or self._refill.done():
            self._refill = asyncio.get_running_loop().create_task(self._fill())

    async def _remove_doomed(self) -> None:
        """Remove interfaces, many at once: the kernel's price is per removal, not per link."""
        try:
            while self._doomed:
                batch, self._doomed = self._doomed, []
                names = [lease.interface for lease in batch]
                restricted = [lease for lease in batch if lease.is_restricted]
                if restricted:
                    await self._run(lambda found=restricted: self._unrestrict_all(found))
                await asyncio.get_running_loop().run_in_executor(
                    self._janitor_thread, self._delete, names
                )
                for lease in batch:
                    self._live.discard(lease.interface)
                    if self._block is not None:
                        self._block.give_back(lease.number)
        finally:
            self._janitor = None

    async def _fill(self) -> None:
        while len(self._ready) < self._stock.wanted:
            try:
                self._ready.append(await self._run(self._make_connected))
            except (OSError, RuntimeUnavailableError) as error:
                _log.warning("no network could be prepared ahead", error=str(error))
                return

    def _calm_down(self) -> None:
        """Keep fewer ready, when nobody had to wait for a while."""
        loop = asyncio.get_running_loop()
        again_s = self._stock.calm(loop.time())
        self._calm = loop.call_later(again_s, self._calm_down) if again_s else None
        surplus: list[Lease] = []
        while len(self._ready) > self._stock.wanted:
            surplus.append(self._ready.popleft())
        for lease in surplus:
            self._doom(lease)

    # --- in the network thread ---

    def _routes(self) -> netlink.Netlink:
        if self._route is None:
            self._route = netlink.Netlink()
        return self._route

    def _set_up(self) -> None:
        self._block = claim_block(self._pool_network, self._tag, self._prefix)
        try:
            _write("/proc/sys/net/ipv4/ip_forward", "1")
            self._gate_ports = self._gate.bind(self._block.gateway)
            self._firewall().apply()
        except OSError as error:
            raise RuntimeUnavailableError(
                f"containers cannot be given a network: {error}; it needs CAP_NET_ADMIN and a "
                "kernel with nf_tables (nft_masq, nft_ct, nft_reject) and veth"
            ) from error

    def _firewall(self) -> netlink.Firewall:
        assert self._block is not None
        rules = netlink.Firewall(self._table)
        ours = netlink.match_interface("in", self._prefix)
        to_ours = netlink.match_interface("out", self._prefix)
        known = netlink.match_known_connection()
        rules.chain("input", "filter", netlink.HOOK_INPUT, 0)
        rules.rule("input", ours, known, netlink.accept())
        for server in self.resolver().nameservers:
            for protocol in (_TCP, _UDP):
                to_server = netlink.match_network("destination", server)
                port = netlink.match_port(protocol, _DNS_PORT)
                rules.rule("input", ours, to_server, port, netlink.accept())
        for to_gate in self._to_gate():
            rules.rule("input", ours, to_gate, netlink.accept())
        rules.rule("input", ours, netlink.reject())
        rules.chain("forward", "filter", netlink.HOOK_FORWARD, 0)
        rules.rule("forward", to_ours, known, netlink.accept())
        rules.rule("forward", to_ours, netlink.reject())
        link_local = netlink.match_network("destination", _LINK_LOCAL)
        rules.rule("forward", ours, link_local, netlink.reject())
        others = netlink.match_interface("out", INTERFACE_PREFIX)
        rules.rule("forward", ours, others, netlink.reject())
        rules.chain("postrouting", "nat", netlink.HOOK_POSTROUTING, 100)
        source = netlink.match_network("source", self._block.network)
        outside = netlink.match_interface("out", INTERFACE_PREFIX, equal=False)
        rules.rule("postrouting", source, outside, netlink.masquerade())
        return rules

    def _to_gate(self) -> list[bytes]:
        """Matches of packets to the ports of the gate, which answers those that it knows."""
        assert self._block is not None
        here = netlink.match_network("destination", self._block.gateway)
        ports = self._gate_ports
        kinds = ((_TCP, ports.tls), (_UDP, ports.names_udp), (_TCP, ports.names_tcp))
        return [here + netlink.match_port(protocol, port) for protocol, port in kinds]

    def _restrict(self, lease: Lease, egress: Egress | None) -> None:
        """A table of its own on the host's side, which the container cannot get round.

        What it lets pass, the common table looks at afterwards: the node and link-local addresses
        stay out of reach.
        """
        if egress is None:
            self._unrestrict(lease)
            return
        rules = netlink.Firewall(self._own_table(lease))
        other = netlink.match_interface("in", f"{lease.interface}\0", equal=False)
        forged = netlink.match_network("source", lease.address, equal=False)
        listed = [
            netlink.match_network("destination", network)
            for network in egress.networks
            if ":" not in network  # containers have no IPv6
        ]
        if egress.domains:
            listed += self._to_gate()
        for chain, hook in (("input", netlink.HOOK_INPUT), ("forward", netlink.HOOK_FORWARD)):
            rules.chain(chain, "filter", hook, _BEFORE)
            rules.rule(chain, other, netlink.accept())
            rules.rule(chain, forged, netlink.reject())  # it would ask in another one's name
            rules.rule(chain, netlink.match_reply(), netlink.accept())
            for match in listed:
                rules.rule(chain, match, netlink.accept())
            rules.rule(chain, netlink.reject())
        if egress.domains:
            self._lead_to_gate(rules, other, egress)
        rules.apply()
        lease.is_restricted = True

    def _lead_to_gate(self, rules: netlink.Firewall, other: bytes, egress: Egress) -> None:
        """Wherever it sends TLS and questions for names: unless to a listed network, they end here."""
        ports = self._gate_ports
        rules.chain("prerouting", "nat", netlink.HOOK_PREROUTING, _BEFORE_ROUTING)
        rules.rule("prerouting", other, netlink.accept())
        for network in egress.networks:
            if ":" not in network:
                to_it = netlink.match_network("destination", network)
                rules.rule("prerouting", to_it, netlink.accept())
        for protocol, port, here in (
            (_TCP, TLS_PORT, ports.tls),
            (_UDP, _DNS_PORT, ports.names_udp),
            (_TCP, _DNS_PORT, ports.names_tcp),
        ):
            match = netlink.match_port(protocol, port)
            rules.rule("prerouting", match, netlink.redirect(here))

    def _unrestrict(self, lease: Lease) -> None:
        if lease.is_restricted:
            netlink.delete_table(self._own_table(lease))
            lease.is_restricted = False

    def _unrestrict_all(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            with contextlib.suppress(OSError):
                self._unrestrict(lease)

    def _own_table(self, lease: Lease) -> str:
        return f"{self._table}_{lease.number}"

    def _make_isolated(self) -> Lease:
        fd, inside = self._new_namespace()
        inside.close()
        return Lease(fd)

    def _make_connected(self) -> Lease:
        assert self._block is not None
        number = self._block.take()
        name = f"{self._prefix}{number}"
        self._live.add(name)
        fd = -1
        try:
            fd, inside = self._new_namespace()
            try:
                self._connect(name, self._block.address(number), fd, inside)
            finally:
                inside.close()
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            self._live.discard(name)
            self._block.give_back(number)
            raise RuntimeUnavailableError(f"a container's network: {error}") from error
        return Lease(fd, self._block.address(number), name, number)

    def _connect(self, name: str, address: str, fd: int, inside: netlink.Netlink) -> None:
        assert self._block is not None
        routes = self._routes()
        try:
            netlink.create_veth(routes, name, "eth0", fd)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            netlink.delete_links(routes, [name], self._group)  # a leftover
            netlink.create_veth(routes, name, "eth0", fd)
        with contextlib.suppress(OSError):  # a kernel without IPv6
            _write(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "1")
        here = routes.index(name)
        netlink.add_address(routes, here, self._block.gateway, address)
        netlink.set_up(routes, here)
        there = inside.index("eth0")
        netlink.add_address(inside, there, address)
        netlink.set_up(inside, there)
        netlink.add_default_route(inside, there, self._block.gateway)

    def _new_namespace(self) -> tuple[int, netlink.Netlink]:
        """A network namespace with ``lo`` up: its descriptor and a socket in it."""
        linux.unshare(linux.CLONE_NEWNET)
        try:
            fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            inside = netlink.Netlink()
            netlink.set_up(inside, inside.index("lo"))
            for path, value in (
                ("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"),
                ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
                ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
            ):
                with contextlib.suppress(OSError):
                    _write(path, value)
            return fd, inside
        finally:
            linux.setns(self._host, linux.CLONE_NEWNET)

    def _delete(self, names: list[str]) -> None:
        routes = netlink.Netlink()
        try:
            netlink.delete_links(routes, names, self._group)
        except OSError as error:
            _log.warning("interfaces stay", names=names, error=str(error))
        finally:
            routes.close()

    def _sweep(self) -> int:
        names = [name for name in interface_names(self._prefix) if name not in self._live]
        if names:
            self._delete(names)
        if not self._started:
            with contextlib.suppress(OSError):
                self._delete_tables()
        return len(names)

    def _delete_tables(self) -> None:
        for name in netlink.table_names():
            if name == self._table or name.startswith(f"{self._table}_"):
                netlink.delete_table(name)

    def _tear_down(self) -> None:
        for lease in self._ready:
            os.close(lease.netns_fd)
        self._ready.clear()
        if self._block is not None:
            with contextlib.suppress(OSError):
                self._delete_tables()
            self._delete(interface_names(self._prefix))
            self._block.release()
            self._block = None
        self._started = False
        if self._route is not None:
            self._route.close()
            self._route = None
        if self._host >= 0:
            os.close(self._host)
            self._host = -1


class UnprivilegedNetwork:
    """The network of a node without CAP_NET_ADMIN: loopback only, or the host's when asked."""

    def resolver(self) -> Resolver:
        return host_resolver()

    async def start(self) -> None:
        return

    async def acquire(self, mode: str) -> Lease:
        if mode == "nat":
            raise RuntimeUnavailableError(
                "a container's own network needs CAP_NET_ADMIN on this machine; run the node as "
                "root, or ask for no network (block_network=True)"
            )
        return Lease(-1)

    async def restrict(self, lease: Lease, egress: Egress | None) -> None:
        raise RuntimeUnavailableError(
            "what a container may reach is restricted by a node that runs as root only"
        )

    async def release(self, lease: Lease) -> None:
        return

    def sweep(self) -> int:
        return 0

    async def close(self) -> None:
        return


def network_tag(node_id: str, run_dir: Path) -> str:
    """Six characters that tell this node's interfaces apart from other nodes' of the machine."""
    return hashlib.sha256(f"{node_id}\0{run_dir.absolute()}".encode()).hexdigest()[:6]


def interface_names(prefix: str = INTERFACE_PREFIX) -> list[str]:
    """Interfaces of this network namespace whose name begins with ``prefix``."""
    return [name for _, name in socket.if_nameindex() if name.startswith(prefix)]


def listen_in_netns(netns: str | int, host: str, port: int, backlog: int = 128) -> socket.socket:
    """A listening TCP socket inside another network namespace, for this process to serve.

    ``netns`` is a path (``Container.netns``) or a descriptor. Raises ``OSError``.
    """

    def listen(listener: socket.socket) -> None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(backlog)

    return socket_in_netns(netns, listen)


def socket_in_netns(
    netns: str | int, prepare: Callable[[socket.socket], None] | None = None
) -> socket.socket:
    """A TCP socket of another network namespace, which it stays in; ``prepare`` runs inside.

    ``netns`` is a path (``Container.netns``) or a descriptor. Raises ``OSError``.
    """

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            if prepare is not None:
                prepare(made)
            made.setblocking(False)
        except BaseException:
            made.close()
            raise
        return made

    return in_netns(netns, make)


def in_netns(netns: str | int, work: Callable[[], _T]) -> _T:
    """What ``work`` gives in another network namespace, in a thread that ends there. Blocks.

    ``netns`` is a path (``Container.netns``) or a descriptor. Raises ``OSError``, and as ``work``.
    """
    result: Future[_T] = Future()

    def run() -> None:
        try:
            _join(netns)
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=run, name="homeport-netns")
    thread.start()
    thread.join()
    return result.result()


def _join(netns: str | int) -> None:
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC) if isinstance(netns, str) else os.dup(netns)
    try:
        linux.setns(fd, linux.CLONE_NEWNET)
    finally:
        os.close(fd)


def _write(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
