"""Certificates of a public authority (ACME) for the names under which the server is reached.

They are obtained when a name is first there, kept in files, and renewed when a third of their time
is left. Until one is there, and while the authority fails, the installation's own is shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol

import structlog
from cryptography import x509

from homeport.gateway.tls import PROOF_PROTOCOL, GivenCertificate
from homeport.kernel.certificates import server_context, write_file
from homeport.kernel.clock import Clock
from homeport.kernel.errors import HomeportError, InvalidError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

RETRY_S: Final = (60.0, 6 * 3600.0)
"""Pauses after failures, doubling: authorities count failures and shut out who has too many."""
_PRIVATE: Final = ("localhost", "local", "internal", "test", "invalid", "home.arpa")


class Orders(Protocol):
    """Blocks; see ``acme_orders.Orders``."""

    def obtain(self, name: str, prove: Callable[[str, str, str], None]) -> str: ...


class AcmeCertificates:
    """One certificate a name. ``is_served`` says whether a name still leads to anything."""

    def __init__(
        self, folder: Path, orders: Orders, clock: Clock, *, is_served: Callable[[str], bool]
    ) -> None:
        self._folder = folder
        self._orders = orders
        self._clock = clock
        self._is_served = is_served
        self._kept: dict[str, GivenCertificate] = {}
        self._proofs: dict[str, ssl.SSLContext] = {}
        self._due: dict[str, float] = {}
        """When (Unix seconds) a certificate of each name is to be obtained next."""
        self._pauses: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take up the certificates that are kept, and look after them."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for file in self._folder.glob("*.pem"):
            try:
                self._keep(file.stem, file.read_text())
            except (ValueError, InvalidError) as error:
                log.warning("a kept certificate is of no use", file=str(file), error=str(error))
        self._work = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """An order that is under way is given up."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])

    def want(self, names: Iterable[str]) -> None:
        """Have a certificate for each of these that a public authority can vouch for."""
        for name in names:
            if is_public(name) and name not in self._due:
                self._due[name] = self._clock.now()
        self._wake.set()

    def find(self, name: str) -> GivenCertificate | None:
        """The certificate of a name, once there is one."""
        return self._kept.get(name)

    def proof(self, name: str) -> ssl.SSLContext | None:
        """What to show to the authority that looks whether ``name`` is ours."""
        return self._proofs.get(name)

    def _keep(self, name: str, pem: str) -> None:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        begins = certificate.not_valid_before_utc.timestamp()
        ends = certificate.not_valid_after_utc.timestamp()
        self._kept[name] = GivenCertificate(self._folder / f"{name}.pem")
        self._due[name] = begins + (ends - begins) * 2 / 3

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            now = self._clock.now()
            for name, due in sorted(self._due.items(), key=lambda item: item[1]):
                if due <= now:
                    await self._obtain(name)
            wait_s = min(self._due.values(), default=now + 86400.0) - self._clock.now()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(wait_s, 0.0), 86400.0)):
                    await self._wake.wait()

    async def _obtain(self, name: str) -> None:
        if not self._is_served(name):
            del self._due[name]  # wanted again when it leads somewhere again
            return
        try:
            pem = await _in_thread(lambda: self._orders.obtain(name, self._prove))
            write_file(self._folder / f"{name}.pem", pem.encode(), 0o600)
            self._keep(name, pem)
        except (HomeportError, OSError, ValueError) as error:
            pause = min(self._pauses.get(name, RETRY_S[0] / 2) * 2, RETRY_S[1])
            self._pauses[name] = pause
            self._due[name] = self._clock.now() + pause
            log.warning("no certificate", name=name, error=str(error), again_in_s=int(pause))
        else:
            self._pauses.pop(name, None)
            # Whatever the clocks say, an authority is not asked again at once.
            self._due[name] = max(self._due[name], self._clock.now() + RETRY_S[1])
            log.info("certificate obtained", name=name)
        finally:
            self._proofs.pop(name, None)

    def _prove(self, name: str, certificate: str, key: str) -> None:
        """Called in the order's thread."""
        self._proofs[name] = server_context(certificate, key, [PROOF_PROTOCOL])


def is_public(name: str) -> bool:
    """Whether a public authority may vouch for it: a host name that is not reserved."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return False
    return "." in name and not any(f".{name}".endswith(f".{suffix}") for suffix in _PRIVATE)


async def _in_thread(work: Callable[[], str]) -> str:
    """In a thread that nobody waits for when the process ends, as an order may take minutes."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str] = loop.create_future()

    def settle(result: str, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)

    def run() -> None:
        result, error = "", None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True, name="acme").start()
    return await done
