"""Whose containers make way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from homeport.kernel.resources import Resources
from homeport.scheduler.fairness import richest, share

WHOLE = Resources(100_000, 100_000, 0)
ONE = Resources(1_000, 500, 0)


def used(**containers: int) -> dict[str, Resources]:
    return {name: Resources(1_000 * n, 500 * n, 0) for name, n in containers.items()}


def test_share_is_of_what_is_scarcest() -> None:
    assert share(Resources(1_000, 50_000, 0), WHOLE) == 0.5
    assert share(Resources(0, 0, 1), Resources(10, 10, 4)) == 0.25
    assert share(ONE, Resources()) == 0


def test_the_one_with_most_gives_way_first() -> None:
    assert richest(used(a=60, b=30, c=10), "d", ONE, WHOLE) == ["a", "b", "c"]


def test_equals_keep_what_they_have() -> None:
    assert richest(used(a=50, b=50), "a", ONE, WHOLE) == []
    assert richest(used(a=51, b=50), "b", ONE, WHOLE) == []
    assert richest(used(a=52, b=50), "b", ONE, WHOLE) == ["a"]


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=2))
def test_giving_way_comes_to_an_end(containers: dict[str, int]) -> None:
    """Apps that all want more end with shares that differ by no more than one container each."""
    for _ in range(300):
        poorest = min(containers, key=lambda name: containers[name])
        givers = richest(used(**containers), poorest, ONE, WHOLE)
        if not givers:
            break
        containers[givers[0]] -= 1
        containers[poorest] += 1
    assert max(containers.values()) - min(containers.values()) <= 1
