"""Classes."""

from __future__ import annotations

import pytest
from tests.conformance.harness.programs import Checks

PROGRAM = "classes"


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("state", [101, 106]),
        ("after_error", 106),
        ("attribute", "class attribute"),
        ("method_map", list(range(10))),
        ("method_spawn", "x"),
        ("inheritance", ["inherited by Child", "own"]),
        ("parameters", "small:3"),
        ("parameters_all", "ab" * 7),
        ("typed", [True, [1, 2]]),
        ("parameter_pools", [True, False]),
        ("options_none", None),
        ("options_secret", "by with_options"),
        ("options_concurrency", [True] * 4),
        ("options_batching", [5] * 5),
    ],
)
def test_class(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


def test_enter_hooks_ran_once(checks: Checks) -> None:
    total, hooks = checks.value("hooks")
    assert total == 106
    assert sorted(hooks) == ["async enter", "enter"]


def test_exit_hook_runs_at_the_end(checks: Checks) -> None:
    assert checks.value("exit_hook") == "worked"
    assert "left properly" in checks.completed.output


def test_method_error(checks: Checks) -> None:
    assert checks.error("method_error")["type"] == "KeyError"


@pytest.mark.parametrize(
    ("check", "name"), [("missing_parameter", "name"), ("unknown_parameter", "colour")]
)
def test_wrong_parameters(checks: Checks, check: str, name: str) -> None:
    assert name in checks.error(check)["message"]


def test_timeout_of_a_variant(checks: Checks) -> None:
    assert checks.error("options_timeout")["type"] == "FunctionTimeoutError"
