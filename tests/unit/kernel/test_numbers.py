"""Numbers from outside: unknown ones are refused by name, waits are bounded."""

from __future__ import annotations

import math

import pytest

from homeport.apps.model import AppState
from homeport.kernel.errors import InvalidError
from homeport.kernel.numbers import member, wait_s


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
