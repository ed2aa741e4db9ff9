"""Which name servers a container can ask: the host's, seen from inside a network namespace."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_UPSTREAM: Final = (
    Path("/run/systemd/resolve/resolv.conf"),
    Path("/run/NetworkManager/no-stub-resolv.conf"),
    Path("/var/run/NetworkManager/resolv.conf"),
)
_SERVERS_MAX: Final = 3  # what C libraries read


@dataclass(frozen=True, slots=True)
class Resolver:
    """``nameservers`` (IPv4) and search domains; ``problem`` says why there are none."""

    nameservers: tuple[str, ...]
    search: str = ""
    problem: str = ""


def host_resolver(path: Path = _RESOLV_CONF, upstream: tuple[Path, ...] = _UPSTREAM) -> Resolver:
    """The host's name servers that are not on its loopback.

    A local stub resolver (127.0.0.53) cannot be reached from a container: then the files are read
    in which systemd-resolved and NetworkManager keep the real servers.
    """
    search = ""
    for file in (path, *upstream):
        servers, domains = _read(file)
        search = search or domains
        usable = [server for server in servers if _reachable(server)]
        if usable:
            return Resolver(tuple(usable[:_SERVERS_MAX]), search)
    return Resolver(
        (),
        search,
        f"{path} names only resolvers on this machine's loopback, which containers cannot reach; "
        "add a name server with a network address to it",
    )


def _read(path: Path) -> tuple[list[str], str]:
    servers: list[str] = []
    search = ""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return servers, search
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            servers.append(words[1])
        elif len(words) >= 2 and words[0] in ("search", "domain"):
            search = " ".join(words[1:])
    return servers, search


def _reachable(server: str) -> bool:
    try:
        address = ipaddress.ip_address(server)
    except ValueError:
        return False
    return address.version == 4 and not address.is_loopback
