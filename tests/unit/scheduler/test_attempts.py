"""What becomes of an input when an attempt of it ends."""

from __future__ import annotations

import pytest

from homeport.functions.model import RetryPolicy
from homeport.link.messages import (
    STATUS_FAILURE,
    STATUS_SUCCESS,
    STATUS_TERMINATED,
    STATUS_TIMEOUT,
    Result,
)
from homeport.scheduler.attempts import CRASHES_MAX, Verdict, after_exit, after_output

TWICE = RetryPolicy(retries=2, initial_delay_s=1.0, backoff=2.0, max_delay_s=60.0)


@pytest.mark.parametrize(
    ("status", "policy", "user_retries", "cancelled", "verdict", "delay_s"),
    [
        (STATUS_SUCCESS, None, 0, False, Verdict.FINISH, 0.0),
        (STATUS_FAILURE, None, 0, False, Verdict.FINISH, 0.0),
        (STATUS_FAILURE, TWICE, 0, False, Verdict.RETRY, 1.0),
        (STATUS_FAILURE, TWICE, 1, False, Verdict.RETRY, 2.0),
        (STATUS_FAILURE, TWICE, 2, False, Verdict.FINISH, 0.0),
        (STATUS_TIMEOUT, TWICE, 0, False, Verdict.RETRY, 1.0),
        (STATUS_FAILURE, TWICE, 0, True, Verdict.FINISH, 0.0),
        (STATUS_TERMINATED, None, 0, True, Verdict.FINISH, 0.0),
        (STATUS_TERMINATED, None, 0, False, Verdict.REQUEUE, 0.0),
    ],
)
def test_after_output(
    status: int,
    policy: RetryPolicy | None,
    user_retries: int,
    cancelled: bool,
    verdict: Verdict,
    delay_s: float,
) -> None:
    decision = after_output(
        Result(status), policy=policy, user_retries=user_retries, cancelled=cancelled
    )
    assert (decision.verdict, decision.delay_s) == (verdict, delay_s)


def exit_decision(**changes: object):
    arguments: dict[str, object] = {
        "returncode": 3,
        "oom_killed": False,
        "memory_limit_mb": 256,
        "was_asked_to_stop": False,
        "reason": "",
        "policy": None,
        "user_retries": 0,
        "crashes": 1,
    }
    arguments.update(changes)
    return after_exit(**arguments)  # type: ignore[arg-type]


def test_a_crash_is_tried_again_until_the_limit_and_then_told() -> None:
    assert exit_decision().verdict is Verdict.REQUEUE
    last = exit_decision(crashes=CRASHES_MAX)
    assert last.verdict is Verdict.FINISH
    assert "exited with code 3" in last.result.exception


def test_out_of_memory_is_told_at_once_with_the_limit() -> None:
    decision = exit_decision(oom_killed=True, returncode=-9)
    assert decision.verdict is Verdict.FINISH
    assert "256 MiB" in decision.result.exception


def test_a_container_that_was_asked_to_stop_costs_its_input_nothing() -> None:
    assert exit_decision(was_asked_to_stop=True, crashes=99).verdict is Verdict.REQUEUE


def test_the_functions_own_retries_come_first() -> None:
    decision = exit_decision(policy=TWICE, crashes=CRASHES_MAX)
    assert (decision.verdict, decision.delay_s) == (Verdict.RETRY, 1.0)
