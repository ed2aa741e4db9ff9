"""Memory snapshots: containers of a function that says so are prepared as far as its snapshot."""

from __future__ import annotations

import pytest
from tests.conformance.harness.programs import Checks, Runner

PROGRAM = "snapshots"
RESTORED = ("restored", "restored again", "restored with a parameter")


@pytest.fixture(scope="module")
def runner(waiting_runner: Runner) -> Runner:
    """A server that keeps containers waiting."""
    return waiting_runner


def test_the_first_container_does_all_of_it_itself(checks: Checks) -> None:
    found = checks.value("first")
    assert found["imported by"] == found["loaded by"] == found["restored by"] == found["task"]
    assert found["events"] == ["loaded", "restored"]


def test_later_ones_have_been_loaded_before_there_was_a_task(checks: Checks) -> None:
    for name in RESTORED:
        found = checks.value(name)
        assert found["imported by"] == found["loaded by"] != found["task"], name
        assert found["events"] == ["loaded", "restored"], name


def test_what_follows_the_snapshot_runs_in_each(checks: Checks) -> None:
    tasks = {checks.value(name)["restored by"] for name in RESTORED}
    assert tasks == {checks.value(name)["task"] for name in RESTORED}
    assert len(tasks) == len(RESTORED)


def test_each_has_files_threads_and_randomness_of_its_own(checks: Checks) -> None:
    values = [checks.value(name) for name in ("first", *RESTORED)]
    assert len({value["random"] for value in values}) == len(values)
    for value in values:
        assert value["thread lives"]
        assert value["file"] == value["name"]
        assert not value["local"]


def test_parameters_are_part_of_a_snapshot(checks: Checks) -> None:
    assert checks.value("restored")["name"] == "plain"
    assert checks.value("with a parameter")["name"] == "other"
    assert checks.value("restored with a parameter")["name"] == "other"


def test_what_was_printed_before_the_snapshot_is_in_the_log(checks: Checks) -> None:
    checks.value("restored with a parameter")
    assert checks.completed.output.count("loading other") >= 2


def test_volumes_are_as_new_as_the_task(checks: Checks) -> None:
    assert checks.value("stored again")["before"] in (str(checks.value("written last")), "end")


def test_a_program_that_cannot_be_snapshotted_starts_from_nothing_and_says_so(
    checks: Checks,
) -> None:
    for found in checks.value("unwilling"):
        assert found["loaded by"] == found["task"]
    words = "starts from nothing, not from its memory snapshot: its program ended with 3"
    assert words in checks.completed.output.replace("\n", " ")
    assert "this program cannot be snapshotted" in checks.completed.output


def test_functions_are_snapshotted_after_their_imports(checks: Checks) -> None:
    found = checks.value("function")
    assert found["loaded by"] != found["task"]
