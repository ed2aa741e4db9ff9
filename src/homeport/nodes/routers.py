"""The way from clients to the command routers of nodes: addresses, tokens, certificates."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from homeport.kernel.certificates import Authority
from homeport.kernel.clock import Clock
from homeport.kernel.errors import ConflictError, NotFoundError, UnavailableError
from homeport.kernel.signing import Signer
from homeport.link.messages import (
    CONNECT_AUDIENCE,
    RELAY_HOST,
    RELAY_ROUTER_PORT,
    ROUTER_AUDIENCE,
    ConnectScope,
    Message,
    RouterCertificate,
)
from homeport.rpc.context import Context, TaskIdentity
from homeport.rpc.versions import at_least

TOKEN_LIFE_S: Final = 3600.0
"""Clients ask for a new token when theirs is about to expire."""
LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1", "172.21.0.1"})
"""Hosts of the server's URL with which clients trust any router."""
HOSTS_MAX: Final = 100
"""Names in a router's certificate; the ones longest unused go."""
_PYTHON_CLIENTS: Final = frozenset({1, 3})
_TRUSTS_LOCAL_SINCE: Final = (1, 3, 0)
_NEEDS_SINCE: Final = (1, 4, 0)
_PLAIN_SINCE: Final = (1, 5, 0)
_HOST: Final = re.compile(r"[0-9A-Za-z]([0-9A-Za-z.-]{0,251}[0-9A-Za-z])?|[0-9A-Fa-f:]{2,39}")


@dataclass(frozen=True, slots=True)
class RouterAddress:
    """Where a node's router is. Without ``host`` it is where the client found the server."""

    port: int
    host: str = ""


class Routers:
    """Gives clients access to the routers of nodes.

    Each node gets a key of its own, made of ``secret``, to check tokens with.
    """

    def __init__(
        self,
        authority: Authority,
        secret: bytes,
        clock: Clock,
    ) -> None:
        self._authority = authority
        self._secret = secret
        self._clock = clock
        self._nodes: Nodes | None = None
        self._hosts: OrderedDict[str, None] = OrderedDict.fromkeys(sorted(LOCAL_HOSTS))
        self._certificate = authority.issue(self._hosts)

    def use(self, nodes: Nodes) -> None:
        """Name the nodes; called once, while wiring."""
        self._nodes = nodes

    def key(self, node_id: str) -> bytes:
        """What that node checks tokens with."""
        return hmac.new(self._secret, f"router {node_id}".encode(), hashlib.sha256).digest()

    def certificate(self) -> RouterCertificate:
        """What routers show to those who ask for TLS."""
        return RouterCertificate(*self._certificate)

    def access(self, task_id: str, node_id: str | None, ctx: Context) -> tuple[str, str]:
        """URL and token of the router of a container on that node, for the caller.

        Python clients since 1.5 take a URL without TLS where the server is on their own machine;
        all others insist on TLS. Raises ``NotFoundError`` if the container does not run,
        ``UnavailableError`` while its node is away.
        """
        if not node_id:
            raise NotFoundError(f"Container {task_id!r} is not running (any more)")
        host = _authority(ctx)
        plain = ctx.client_type in _PYTHON_CLIENTS and at_least(ctx.client_version, _PLAIN_SINCE)
        address = self._nodes.router(node_id) if self._nodes is not None else None
        if address is None:
            raise UnavailableError(f"the node that runs {task_id} is out of reach; try again")
        name, port = address.host or host_of(host), address.port
        is_local = name in LOCAL_HOSTS
        if isinstance(ctx.identity, TaskIdentity):
            # a container: by the relay of its node
            is_local, name, port = True, RELAY_HOST, RELAY_ROUTER_PORT
        if ctx.client_type in _PYTHON_CLIENTS and needs_no_router(ctx.client_version, is_local):
            raise ConflictError("this client gets along without a command router")
        scheme = "http" if plain and is_local else "https"
        if scheme == "https":
            self._certify(name)
        signer = Signer(self.key(node_id), self._clock)
        token = signer.issue(task_id, ROUTER_AUDIENCE, TOKEN_LIFE_S)
        return f"{scheme}://{name}:{port}", token

    def connect_token(self, task_id: str, node_id: str, life_s: float, scope: ConnectScope) -> str:
        """A token for a sandbox's door on that node."""
        signer = Signer(self.key(node_id), self._clock)
        text = msgspec.json.encode(scope).decode()
        return signer.issue(task_id, CONNECT_AUDIENCE, life_s, scope=text)

    def host(self, node_id: str, ctx: Context) -> str:
        """The host under which the caller reaches that node; its certificate names it.

        Raises ``UnavailableError`` while the node is away.
        """
        address = self._nodes.router(node_id) if self._nodes is not None else None
        if address is None:
            raise UnavailableError("the node is out of reach; try again")
        name = address.host or host_of(_authority(ctx))
        self._certify(name)
        return name

    def own_address(self, name: str) -> tuple[str, str, str]:
        """A loopback address for one tunnel alone, the same for the same name; with a certificate.

        Programs that look at a tunnel's host only, and expect it at the port of HTTPS, find it.
        """
        digest = hashlib.sha256(name.encode()).digest()
        host = f"127.{64 + digest[0] % 63}.{digest[1]}.{1 + digest[2] % 254}"
        return (host, *self._authority.issue([host]))

    def _certify(self, name: str) -> None:
        """Have the routers' certificate name ``name`` before a client sees it."""
        if name in self._hosts:
            self._hosts.move_to_end(name)
            return
        self._hosts[name] = None
        while len(self._hosts) > HOSTS_MAX:
            self._hosts.popitem(last=False)
        self._certificate = self._authority.issue(self._hosts)
        if self._nodes is not None:
            self._nodes.send_all(self.certificate())


def needs_no_router(client_version: str, is_local: bool) -> bool:
    """Whether a client falls back on the control plane, and better does.

    Up to 1.3 a refusal makes it use RPCs of the control plane instead, as its predecessors do:
    nobody need tell it to trust the router's certificate. From 1.3 on it trusts one on the
    server's own machine.
    """
    return not at_least(client_version, _TRUSTS_LOCAL_SINCE if is_local else _NEEDS_SINCE)


class Nodes(Protocol):
    """The connected nodes."""

    def router(self, node_id: str) -> RouterAddress | None: ...

    def send_all(self, message: Message) -> None: ...


def _authority(ctx: Context) -> str:
    """What the caller has for the server: ``host`` or ``host:port``."""
    return ctx.metadata.get("x-modal-host") or ctx.metadata.get(":authority", "")


def host_of(authority: str) -> str:
    """The host of ``host:port``, for a URL; ``localhost`` if there is none that can be used."""
    name = authority.strip()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    if ":" in name:  # clients do not take an IPv6 address in this URL
        return "localhost"
    return name.lower() if _HOST.fullmatch(name) else "localhost"
