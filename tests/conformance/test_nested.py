"""Calls from inside containers."""

from __future__ import annotations

import pytest
from tests.conformance.harness.programs import Checks

PROGRAM = "nested"


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("function", 11),
        ("map", [2 * n for n in range(12)]),
        ("starmap", [0, 2, 4, 6]),
        ("generator", "abcd"),
        ("async", 8),
        ("class", [6, 20]),
        ("method_to_function", 11),
        ("method_to_method", 21),
        ("method_local", 22),
        ("recursion", 120),
        ("recursion_warm", [1, 1, 1, 1, 1, 24]),
        ("caught", "nothing under y"),
        ("own_type", "top"),
        ("gather", [2, 4]),
        ("cancelled_caller", 0),
        ("handle_argument", 16),
        ("map_of_calls", [2 * n + 1 for n in range(6)]),
        ("blob", 5 * 1024 * 1024),
        ("spawned_inside", [42, 42]),
    ],
)
def test_nested(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


def test_exception_passes_through_two_containers(checks: Checks) -> None:
    error = checks.error("failing")
    assert (error["type"], error["message"]) == ("LookupError", "nothing under x")
    assert "in fail" in error["traceback"]


def test_cancel_inside(checks: Checks) -> None:
    assert checks.value("cancel") in ("RemoteError", "InputCancellation")


def test_unknown_app_inside(checks: Checks) -> None:
    error = checks.error("unknown_app")
    assert "NotFoundError" in error["bases"]
    assert "no-such-app-anywhere" in error["message"]
