"""How many inputs in a container, how many containers."""

from __future__ import annotations

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Checks, Runner

PROGRAM = "scaling"


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("min_containers", 1),
        ("concurrent", 1),
        ("concurrent_async", [True] * 4),
        ("one_at_a_time", 1),
        ("batched_single", [3, 1]),
        ("batched_keywords", [3, 1]),
        ("single_use", 4),
        ("scaledown", [True, True]),
        ("buffer_containers", True),
        ("backlog", [True, [1.5] * 4, 0]),
        ("update_autoscaler", [0, True, True]),
    ],
)
def test_scaling(checks: Checks, check: str, expected: object) -> None:
    assert checks.value(check) == expected


def test_batches_answer_each_input(checks: Checks) -> None:
    found = checks.value("batched")
    assert [value for value, _ in found] == [2 * n for n in range(8)]
    sizes = [size for _, size in found]
    assert max(sizes) <= 4
    assert max(sizes) > 1


def test_batches_of_an_async_function(checks: Checks) -> None:
    sizes = checks.value("batched_async")
    assert len(sizes) == 6
    assert 1 < max(sizes) <= 3


def test_failing_batch_fails_each_input(checks: Checks) -> None:
    assert checks.value("batched_failing") == ["ValueError: the whole batch fails"] * 3


def test_batch_of_wrong_length(checks: Checks) -> None:
    found = checks.value("batched_wrong_length")
    assert len(found) == 3
    assert all("Error" in text for text in found)


def test_warm_container_is_used(checks: Checks) -> None:
    assert checks.value("min_containers_used").startswith("ta-")


def test_max_containers(checks: Checks) -> None:
    assert 1 <= checks.value("max_containers") <= 2


@pytest.mark.newest
def test_crash_loop_is_slowed_down(runner: Runner, client: Client) -> None:
    """Containers that end while they have nothing to do are started ever more rarely."""
    started = runner.start(client, "crash_loop.py")
    started.wait_for(lambda output: "times in a row; the next one is started in 2 s" in output)
    ends = started.interrupt(presses=3).output.count("exited with code 3")
    assert ends == 5
