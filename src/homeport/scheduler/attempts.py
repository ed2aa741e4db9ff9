"""What becomes of an input when one of its attempts ends. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from homeport.functions.model import RetryPolicy
from homeport.link.messages import (
    STATUS_FAILURE,
    STATUS_SUCCESS,
    STATUS_TERMINATED,
    Result,
)

CRASHES_MAX = 3
"""Attempts an input may lose to dying containers before it is failed (out of memory: one)."""


class Verdict(Enum):
    """What to do with the input."""

    FINISH = "finish"
    """The result is final."""
    RETRY = "retry"
    """Try again after a delay: counts against the function's retries."""
    REQUEUE = "requeue"
    """Run it again at once: the attempt's end was not the input's doing."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, with its delay (seconds) or its result."""

    verdict: Verdict
    delay_s: float = 0.0
    result: Result | None = None
    otherwise: Result | None = field(default=None, compare=False)
    """The result, should the input turn out not to be repeatable."""


def after_output(
    result: Result, *, policy: RetryPolicy | None, user_retries: int, cancelled: bool
) -> Decision:
    """An attempt that ended with ``result``."""
    if result.status == STATUS_SUCCESS or cancelled:
        return Decision(Verdict.FINISH, result=result)
    if result.status == STATUS_TERMINATED:
        # The container was told to stop, not the input: nobody cancelled it.
        return Decision(Verdict.REQUEUE)
    if policy is not None and user_retries < policy.retries:
        delay_s = policy.delay_s(user_retries + 1)
        return Decision(Verdict.RETRY, delay_s=delay_s, otherwise=result)
    return Decision(Verdict.FINISH, result=result)


def after_exit(
    *,
    returncode: int,
    oom_killed: bool,
    memory_limit_mb: int,
    was_asked_to_stop: bool,
    reason: str,
    policy: RetryPolicy | None,
    user_retries: int,
    crashes: int,
) -> Decision:
    """An attempt whose container ended under it. ``crashes`` counts this one too."""
    text = reason or crash_text(returncode, oom_killed, memory_limit_mb)
    failure = Result(STATUS_FAILURE, exception=text)
    if was_asked_to_stop and not oom_killed:
        return Decision(Verdict.REQUEUE, otherwise=failure)
    if policy is not None and user_retries < policy.retries:
        delay_s = policy.delay_s(user_retries + 1)
        return Decision(Verdict.RETRY, delay_s=delay_s, otherwise=failure)
    if not oom_killed and crashes < CRASHES_MAX:
        return Decision(Verdict.REQUEUE, otherwise=failure)
    attempts = f" (attempt {crashes})" if crashes > 1 else ""
    return Decision(Verdict.FINISH, result=Result(STATUS_FAILURE, exception=text + attempts))


def crash_text(
    returncode: int, oom_killed: bool, memory_limit_mb: int, *, is_busy: bool = True
) -> str:
    """Why a container ended, for its user."""
    if oom_killed:
        return (
            f"Out of memory: the container used more than its limit of {memory_limit_mb} MiB and "
            "was killed. Ask for more with memory=(request, limit), or use less."
        )
    when = "while it ran this input" if is_busy else "while it had nothing to do"
    if returncode < 0:
        return f"The container was killed by signal {-returncode} {when}"
    return f"The container exited with code {returncode} {when}"
