"""Numbers from outside: unknown ones are refused by name, waits are bounded."""

from __future__ import annotations

import math

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from homeport.apps.model import AppState
from homeport.kernel.errors import InvalidError
from homeport.kernel.numbers import member, time_ns, wait_s


def test_a_known_number_is_its_member() -> None:
    assert member(AppState, 3, "app_state") is AppState.DEPLOYED


def test_an_unknown_number_is_refused_by_name() -> None:
    with pytest.raises(InvalidError, match=r"app_state cannot be 77; .*3 \(deployed\)"):
        member(AppState, 77, "app_state")


@pytest.mark.parametrize(
    ("asked", "given"),
    [(5.0, 5.0), (-1.0, 0.0), (math.nan, 0.0), (math.inf, 60.0), (-math.inf, 0.0), (1e308, 60.0)],
)
def test_waits_have_a_bound(asked: float, given: float) -> None:
    assert wait_s(asked, 60.0) == given


def test_a_time() -> None:
    assert time_ns(Timestamp(seconds=1, nanos=5), "since") == 1_000_000_005


@pytest.mark.parametrize("seconds", [0, 10**18])
@pytest.mark.parametrize("nanos", [-1, 2**31 - 1])
def test_what_is_no_time_is_named(seconds: int, nanos: int) -> None:
    with pytest.raises(InvalidError, match="since"):
        time_ns(Timestamp(seconds=seconds, nanos=nanos), "since")
