"""What callers see of failures."""

from __future__ import annotations

import re

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner

PROGRAM = "failures"


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("custom_type", ["OutOfPaperError", "tray two", 3]),
        ("still_works", "fine"),
        ("retries_recover", 3),
        ("retries_count", 4),
        ("policy_recover", 3),
        ("policy_count", 3),
        ("policy_spawn", 2),
        ("policy_map", [2, 2, 2, 2]),
        ("no_retries_count", 1),
        ("in_time", "in time"),
        ("after_death", "alive"),
    ],
)
def test_value(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


@pytest.mark.parametrize(
    ("check", "kind", "message"),
    [
        ("builtin", "KeyError", "missing key"),
        ("chained", "RuntimeError", "the outer one"),
        ("system_exit", "SystemExit", "3"),
        ("spawned", "OutOfPaperError", "tray two"),
        ("retries_exhausted", "RuntimeError", "attempt 4 of b"),
        ("policy_exhausted", "RuntimeError", "attempt 3 of d"),
        ("no_retries", "RuntimeError", "attempt 1 of f"),
        ("enter_raises", "FileNotFoundError", "no weights at /models/none"),
    ],
)
def test_exception(checks: Checks, check: str, kind: str, message: str) -> None:
    error = checks.error(check)
    assert error["type"] == kind
    assert message in error["message"]


def test_remote_traceback_is_part_of_the_exception(checks: Checks) -> None:
    error = checks.error("custom_traceback")
    assert re.search(r'File "<ta-\w+>:/root/failures.py", line \d+, in fail', error["traceback"])
    # The text of the lines comes apart from the frames: the client's CLI alone prints it.
    assert 'raise OutOfPaperError("tray two", 3)' in error["line_cache"]


@pytest.mark.parametrize("check", ["unpicklable", "unpicklable_result"])
def test_what_cannot_be_pickled_is_said(checks: Checks, check: str) -> None:
    error = checks.error(check)
    assert "Error" in error["type"]
    assert "pickle" in error["traceback"] or "serializ" in error["traceback"].lower()


def test_unpicklable_argument(checks: Checks) -> None:
    assert "pickle" in checks.error("unpicklable_argument")["traceback"]


def test_exception_of_a_type_unknown_here(checks: Checks) -> None:
    error = checks.error("unknown_type")
    assert error["type"] == "ExecutionError"
    assert "OnlyThere" in error["message"]
    assert "in fail" in error["message"]


def test_result_of_a_type_unknown_here(checks: Checks) -> None:
    error = checks.error("unknown_result")
    assert "module_of_the_container" in error["traceback"]


@pytest.mark.parametrize("check", ["timeout", "timeout_async", "timeout_spawn", "stubborn"])
def test_timeout(checks: Checks, check: str) -> None:
    error = checks.error(check)
    assert error["type"] == "FunctionTimeoutError"
    assert "2" in error["message"]


def test_startup_timeout(checks: Checks) -> None:
    assert "startup timeout of 3 s" in checks.error("startup_timeout")["message"]


def test_timeout_in_a_map(checks: Checks) -> None:
    first, second, third = checks.value("timeout_map")
    assert (first, third) == ("in time", "in time")
    assert "FunctionTimeoutError" in second


def test_process_that_dies(checks: Checks) -> None:
    error = checks.error("process_dies")
    assert error["type"] in ("RemoteError", "InternalFailure", "ExecutionError")
    assert "3" in error["message"]


@pytest.mark.parametrize("check", ["call", "map"])
def test_module_that_cannot_be_imported(runner: Runner, client: Client, check: str) -> None:
    error = runner.checks(client, "broken_import").error(check)
    assert "this module refuses to be imported" in error["message"]
