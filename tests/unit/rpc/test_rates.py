"""One caller may make only so many requests; others do not notice."""

from __future__ import annotations

import pytest

from homeport.kernel.errors import ExhaustedError
from homeport.rpc.context import AnonymousIdentity, ClientIdentity, TaskIdentity
from homeport.rpc.rates import BURST_S, CALLERS_MAX, Rates


class _Clock:
    time = 0.0

    def monotonic(self) -> float:
        return self.time

    def now(self) -> float:
        return self.time


def is_refused(rates: Rates, identity: ClientIdentity | TaskIdentity | AnonymousIdentity) -> bool:
    try:
        rates.check(identity)
    except ExhaustedError as error:
        return bool(error.retry_after_s) and "caller_requests_per_s" in error.message
    return False


def taken(rates: Rates, identity: ClientIdentity | TaskIdentity | AnonymousIdentity) -> int:
    """How many requests of that caller are taken now."""
    count = 0
    while not is_refused(rates, identity):
        count += 1
    return count


ONE, OTHER = ClientIdentity("ak-1"), TaskIdentity("ta-1", "ap-1", "main")


def test_a_burst_then_the_rate() -> None:
    clock = _Clock()
    rates = Rates(clock, 10)
    assert taken(rates, ONE) == 10 * BURST_S
    clock.time = 1.0
    assert taken(rates, ONE) == 10
    clock.time = 1e6
    assert taken(rates, ONE) == 10 * BURST_S


def test_callers_do_not_share() -> None:
    rates = Rates(_Clock(), 1)
    for identity in (ONE, OTHER, AnonymousIdentity()):
        assert taken(rates, identity) == BURST_S
        with pytest.raises(ExhaustedError):
            rates.check(identity)


def test_no_limit() -> None:
    rates = Rates(_Clock(), 0)
    for _ in range(1000):
        rates.check(ONE)


def test_what_is_remembered_is_bounded() -> None:
    rates = Rates(_Clock(), 1)
    for number in range(CALLERS_MAX + 10):
        rates.check(ClientIdentity(f"ak-{number}"))
    assert len(rates._callers) == CALLERS_MAX
