"""The map family."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks

PROGRAM = "maps"
SQUARES = [x * x for x in range(60)]
MEBI = 1024 * 1024


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("ordered", SQUARES),
        ("unordered", SQUARES),
        ("order_kept", list(range(20))),
        ("two_iterators", [10, 12, 14, 16, 18]),
        ("kwargs", [0, 20, 40]),
        ("starmap", [3, 7]),
        ("for_each", None),
        ("empty", []),
        ("one", [25]),
        ("generator_input", SQUARES[:7]),
        ("aio", SQUARES[:30]),
        ("starmap_aio", [2, 4]),
        ("early_break", 16),
        ("aio_failures", [1, 2, 4]),
        ("starmap_kwargs", [30, 70]),
        ("method", [0, 3, 6, 9]),
        ("after_break", [0, 1, 4]),
        ("ten_thousand", sum(x * x for x in range(10_000))),
        ("blob_inputs", [3 * MEBI, 3 * MEBI + 1, 3 * MEBI + 2]),
        ("for_each_ignore", None),
        ("spawn_map", [None, True]),
    ],
)
def test_map(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


def test_inputs_spread_over_containers(checks: Checks) -> None:
    assert checks.value("spread") >= 2


@pytest.mark.parametrize("check", ["raises", "for_each_raises"])
def test_first_failure_is_raised(checks: Checks, check: str) -> None:
    error = checks.error(check)
    assert (error["type"], error["message"][1:]) == ("ValueError", " is a multiple of three")


def test_return_exceptions(checks: Checks) -> None:
    three = ["ValueError", "3 is a multiple of three"]
    six = ["ValueError", "6 is a multiple of three"]
    assert checks.value("return_exceptions") == [1, 2, three, 4, 5, six]


def test_first_output_is_there_before_a_slow_one(checks: Checks) -> None:
    assert checks.value("first_of_unordered") != 0


def test_map_of_a_generator(checks: Checks) -> None:
    assert checks.error("of_a_generator")["type"] == "InvalidError"


def test_failing_input_iterator(checks: Checks) -> None:
    error = checks.error("failing_iterator")
    assert "the input iterator broke" in error["message"]


@pytest.mark.since("1.1")
def test_experimental_spawn_map(checks: Checks) -> None:
    found = checks.value("experimental_spawn_map")
    assert found["inputs"] == 70
    assert found["values"] == [x * x for x in range(70)]
    assert found["single"] == 16


@pytest.mark.since("1.1")
def test_iterating_over_a_part(checks: Checks, client: Client) -> None:
    # ``end`` is exclusive.
    assert checks.value("experimental_spawn_map")["part"] == [100, 121]


@pytest.mark.since("1.1")
def test_spawned_map_by_id(checks: Checks) -> None:
    assert checks.value("spawn_map_from_id") == [5, 9]
