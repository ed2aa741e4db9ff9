"""When certificates of a public authority are obtained, kept, renewed and given up."""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from homeport.gateway.acme import RETRY_S, AcmeCertificates, is_public
from homeport.kernel.certificates import Authority
from homeport.kernel.clock import SystemClock
from homeport.kernel.errors import UnavailableError

NAME = "one.example.org"


class FakeOrders:
    """Certificates of another authority of ours; ``error`` makes it refuse."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.from_folder(folder)
        self.asked: list[str] = []
        self.error = ""
        self.go_on = threading.Event()
        self.go_on.set()

    def obtain(self, name: str, prove: Callable[[str, str, str], None]) -> str:
        self.asked.append(name)
        certificate, key = self.authority.issue([name])
        prove(name, certificate, key)
        self.go_on.wait(10)
        if self.error:
            raise UnavailableError(self.error)
        return key + certificate


class LateClock(SystemClock):
    """The machine's, and ``later`` seconds on."""

    later = 0.0

    def now(self) -> float:
        return super().now() + self.later


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_certificate_is_obtained_once_and_kept(tmp_path: Path) -> None:
    orders = FakeOrders(tmp_path / "theirs")

    async def scenario() -> None:
        acme = AcmeCertificates(tmp_path, orders, LateClock(), is_served=lambda _: True)
        acme.start()
        orders.go_on.clear()
        acme.want([NAME, "x.localhost", "127.0.0.1", "plain"])
        await until(lambda: acme.proof(NAME))
        assert acme.find(NAME) is None
        orders.go_on.set()
        await until(lambda: acme.find(NAME))
        assert acme.proof(NAME) is None
        acme.want([NAME])
        await acme.stop()
        again = AcmeCertificates(tmp_path, orders, LateClock(), is_served=lambda _: True)
        again.start()
        again.want([NAME])
        await asyncio.sleep(0.05)
        kept = again.find(NAME)
        assert kept is not None
        assert kept.covers(NAME)
        await again.stop()

    asyncio.run(scenario())
    assert orders.asked == [NAME]
    assert (tmp_path / f"{NAME}.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("served", [True, False])
def test_it_is_renewed_while_the_name_leads_somewhere(tmp_path: Path, served: bool) -> None:
    orders, clock = FakeOrders(tmp_path / "theirs"), LateClock()

    async def scenario() -> None:
        names = {NAME}
        acme = AcmeCertificates(tmp_path, orders, clock, is_served=lambda name: name in names)
        acme.start()
        acme.want([NAME])
        await until(lambda: acme.find(NAME))
        clock.later = datetime.timedelta(days=300).total_seconds()
        if not served:
            names.clear()
        acme.want([])  # what waits looks at the time again
        if served:
            await until(lambda: len(orders.asked) == 2)
        else:
            await asyncio.sleep(0.05)
            names.add(NAME)
            acme.want([NAME])
            await until(lambda: len(orders.asked) == 2)
        await acme.stop()

    asyncio.run(scenario())


def test_a_failure_is_tried_again_later(tmp_path: Path) -> None:
    orders, clock = FakeOrders(tmp_path / "theirs"), LateClock()
    orders.error = "the name leads elsewhere"

    async def scenario() -> None:
        acme = AcmeCertificates(tmp_path, orders, clock, is_served=lambda _: True)
        acme.start()
        acme.want([NAME])
        await until(lambda: orders.asked and acme.proof(NAME) is None)
        acme.want([NAME])
        await asyncio.sleep(0.05)
        assert len(orders.asked) == 1
        orders.error = ""
        clock.later = RETRY_S[0] + 1
        acme.want([])
        await until(lambda: acme.find(NAME))
        await acme.stop()

    asyncio.run(scenario())


def test_a_broken_file_is_obtained_anew(tmp_path: Path) -> None:
    orders = FakeOrders(tmp_path / "theirs")
    (tmp_path / f"{NAME}.pem").write_text("nonsense")

    async def scenario() -> None:
        acme = AcmeCertificates(tmp_path, orders, LateClock(), is_served=lambda _: True)
        acme.start()
        acme.want([NAME])
        await until(lambda: acme.find(NAME))
        await acme.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("apps.example.org", True),
        ("localhost", False),
        ("a.localhost", False),
        ("box.local", False),
        ("10.0.0.1", False),
        ("::1", False),
        ("intranet", False),
    ],
)
def test_which_names_an_authority_may_vouch_for(name: str, expected: bool) -> None:
    assert is_public(name) is expected
