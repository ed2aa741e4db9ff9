"""Certificates for the server's port: the given one for its names, the installation's own for others.

A connection that begins with TLS names the host it wants (SNI), and gets a certificate for it; those
of the installation's own authority are made when they are first asked for.
"""

from __future__ import annotations

import ssl
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import structlog
from cryptography import x509

from homeport.kernel.certificates import Authority, server_context
from homeport.kernel.clock import Clock
from homeport.kernel.errors import InvalidError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

WEB_PROTOCOLS: Final = ["h2", "http/1.1"]
SERVER_PROTOCOLS: Final = ["http/1.1", "h2"]
"""Under the server's own names HTTP/2 is for the clients that speak nothing else: those of gRPC."""
PROOF_PROTOCOL: Final = "acme-tls/1"
"""ALPN of a connection by which a public authority looks whether a name is ours (RFC 8737)."""
NAMES_MAX: Final = 1000
"""Certificates of our own that are kept; the ones longest unused go, and are made again."""
RENEW_S: Final = 200 * 86400.0
"""Our own are made anew after that time; they hold longer."""


class PublicCertificates(Protocol):
    """Certificates by which a public authority vouches for names."""

    def find(self, name: str) -> GivenCertificate | None: ...
    def proof(self, name: str) -> ssl.SSLContext | None: ...


class _Made(NamedTuple):
    context: ssl.SSLContext
    at: float


class Certificates:
    """What the port shows to those who ask for TLS.

    ``hosts`` are the server's own names and addresses; ``is_ours`` says which other names it
    serves. ``given`` is the user's certificate, ``public`` are those of a public authority.
    """

    def __init__(
        self,
        authority: Authority,
        clock: Clock,
        *,
        hosts: Iterable[str],
        is_ours: Callable[[str], bool],
        given: GivenCertificate | None = None,
        public: PublicCertificates | None = None,
    ) -> None:
        self._authority = authority
        self._clock = clock
        self._hosts = tuple(dict.fromkeys(hosts))
        self._is_ours = is_ours
        self._given = given
        self._public = public
        self._proving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._proving.set_alpn_protocols([PROOF_PROTOCOL])
        self._proving.sni_callback = self._proved
        self._made: OrderedDict[str, _Made] = OrderedDict()

    def context(self, address: str, hello: bytes = b"") -> ssl.SSLContext:
        """What to greet a connection with that came to ``address``, an address of this machine.

        ``hello`` is what it began with: an authority that wants a proof says so in there.
        """
        if self._public is not None and PROOF_PROTOCOL.encode() in hello:
            return self._proving
        context = self._own("" if address in self._hosts else address)
        if self._given is not None and self._given.covers(address):
            context = self._given.context()
        context.sni_callback = self._named
        return context

    def _named(self, connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        if not name:
            return
        name = name.lower().rstrip(".")
        if self._given is not None and self._given.covers(name):
            connection.context = self._given.context(is_web=self._is_ours(name))
        elif self._public is not None and (kept := self._public.find(name)) is not None:
            connection.context = kept.context(is_web=self._is_ours(name))
        elif name not in self._hosts and self._is_ours(name):
            connection.context = self._own(name)

    def _proved(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        proof = self._public.proof((name or "").lower()) if self._public is not None else None
        if proof is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        connection.context = proof
        return None

    def _own(self, name: str) -> ssl.SSLContext:
        """For the server's own names, and ``name``."""
        made = self._made.get(name)
        now = self._clock.now()
        if made is None or now - made.at > RENEW_S:
            is_web = bool(name) and self._is_ours(name)
            names = [name] if is_web else filter(None, (name, *self._hosts))
            protocols = WEB_PROTOCOLS if is_web else SERVER_PROTOCOLS
            made = _Made(server_context(*self._authority.issue(names), protocols), now)
            self._made[name] = made
            while len(self._made) > NAMES_MAX:
                self._made.popitem(last=False)
        self._made.move_to_end(name)
        return made.context


class GivenCertificate:
    """The user's certificate (PEM, with its chain) and key; read again whenever the files change.

    Without ``key`` it is in the certificate's file. Raises ``InvalidError`` if they do not fit.
    """

    def __init__(self, certificate: Path, key: Path | None = None) -> None:
        self._certificate = certificate
        self._key = key or certificate
        try:
            self._seen = self._stamp()
            self._read()
        except (OSError, ValueError) as error:
            raise InvalidError(
                f"the certificate in the setting tls_certificate ({certificate}) cannot be used "
                f"with the key in {self._key}: {error}"
            ) from None

    def covers(self, name: str) -> bool:
        """Whether it is for that host name or address."""
        return name in self._names or f"*.{name.partition('.')[2]}" in self._names

    def context(self, *, is_web: bool = False) -> ssl.SSLContext:
        """What greets connections with it, those for web functions or others."""
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp
                self._read()
                log.info("certificate renewed", file=str(self._certificate))
        except (OSError, ValueError) as error:  # half written, perhaps: the next change tells
            log.warning("certificate not renewed", file=str(self._certificate), error=str(error))
        return self._contexts[is_web]

    def _stamp(self) -> tuple[int, int]:
        return self._certificate.stat().st_mtime_ns, self._key.stat().st_mtime_ns

    def _read(self) -> None:
        pem = self._certificate.read_bytes()
        names = _names(x509.load_pem_x509_certificate(pem))
        key = "" if self._key == self._certificate else self._key.read_text()
        self._contexts = {
            True: server_context(pem.decode(), key, WEB_PROTOCOLS),
            False: server_context(pem.decode(), key, SERVER_PROTOCOLS),
        }
        self._names = names


def _names(certificate: x509.Certificate) -> frozenset[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ValueError("it names no hosts (subjectAltName)") from None
    names = found.get_values_for_type(x509.DNSName)
    addresses = found.get_values_for_type(x509.IPAddress)
    return frozenset([*(name.lower() for name in names), *map(str, addresses)])
