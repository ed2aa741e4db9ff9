"""The work loop's rules, event by event, on a clock that the tests move."""

from __future__ import annotations

import pytest

from homeport.link.messages import (
    STATUS_SUCCESS,
    STATUS_TERMINATED,
    STATUS_TIMEOUT,
    InputItem,
    OutputItem,
    Result,
)
from homeport.node.work import (
    BOOT_S,
    CANCEL_GRACE_S,
    EXIT_GRACE_S,
    INTERRUPT_GRACE_S,
    PATIENCE_S,
    SETTLE_S,
    TIMEOUT_GRACE_S,
    Grant,
    Phase,
    WorkLoop,
    WorkRules,
)


class FakeClock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return 1.7e9 + self.time

    def monotonic(self) -> float:
        return self.time


def given(name: str, retry: int = 0, *, method: str = "", final: bool = False) -> InputItem:
    return InputItem(name, f"call-{name}", retry, b"", "", 1, method, 4, final)


def ended(name: str, retry: int = 0, status: int = STATUS_SUCCESS) -> OutputItem:
    return OutputItem(name, retry, Result(status), 1, 1.0, 2.0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def loop(clock: FakeClock, **rules: object) -> WorkLoop:
    return WorkLoop(WorkRules(**rules), clock)  # type: ignore[arg-type]


def names(answer: Grant | float | None) -> list[str]:
    assert isinstance(answer, Grant)
    return [item.input_id for item in answer.items]


# ── handing out ───────────────────────────────────────────────────────────────────────────────


def test_inputs_are_given_one_at_a_time_in_order(clock: FakeClock) -> None:
    work = loop(clock)
    assert work.take() is None
    assert work.deliver([given("a"), given("b")]).wake
    assert names(work.take()) == ["a"]
    work.finish([ended("a")])
    assert names(work.take()) == ["b"]


def test_repeated_delivery_is_ignored_at_every_stage(clock: FakeClock) -> None:
    work = loop(clock)
    work.deliver([given("a"), given("a")])
    work.take()
    work.deliver([given("a")])
    work.finish([ended("a")])
    work.deliver([given("a")])
    assert work.take() is None
    work.deliver([given("a", 1)])
    assert names(work.take()) == ["a"]


def test_answer_that_got_lost_is_given_again_to_a_container_without_concurrency(
    clock: FakeClock,
) -> None:
    work = loop(clock)
    work.deliver([given("a"), given("b")])
    assert names(work.take(1)) == ["a"]
    again = work.take(1)
    assert names(again) == ["a"]
    assert isinstance(again, Grant)
    assert again.repeated
    assert names(work.take(2)) == ["b"]  # with concurrency a second ask is ordinary


def test_two_attempts_of_one_input_never_run_at_once(clock: FakeClock) -> None:
    work = loop(clock, input_timeout_s=5.0)
    work.deliver([given("a", 0)])
    work.take(2)
    clock.time += 5
    work.due()
    work.deliver([given("a", 1), given("b")])
    assert names(work.take(2)) == ["b"]
    work.finish([ended("a", 0, STATUS_TERMINATED)])
    assert names(work.take(2)) == ["a"]


def test_single_use_gives_one_input_and_returns_the_rest(clock: FakeClock) -> None:
    work = loop(clock, single_use=True)
    work.deliver([given("a"), given("b")])
    grant = work.take()
    assert isinstance(grant, Grant)
    assert names(grant) == ["a"]
    assert grant.returned == (("b", 0),)
    assert work.deliver([given("c")]).returned == [("c", 0)]
    work.finish([ended("a")])
    assert isinstance(answer := work.take(), Grant)
    assert answer.is_kill_switch


def test_final_input_is_the_last(clock: FakeClock) -> None:
    work = loop(clock)
    work.deliver([given("a", final=True), given("b")])
    grant = work.take()
    assert isinstance(grant, Grant)
    assert grant.returned == (("b", 0),)


# ── batches ───────────────────────────────────────────────────────────────────────────────────


def test_full_batch_goes_at_once(clock: FakeClock) -> None:
    work = loop(clock, batch_max_size=2, batch_linger_ms=1000)
    work.deliver([given("a"), given("b"), given("c")])
    assert names(work.take()) == ["a", "b"]


def test_partial_batch_waits_for_its_linger_from_the_first_input(clock: FakeClock) -> None:
    work = loop(clock, batch_max_size=3, batch_linger_ms=1000)
    work.deliver([given("a")])
    assert work.take() == pytest.approx(1.0)
    clock.time += 0.6
    work.deliver([given("b")])
    assert work.take() == pytest.approx(0.4)
    clock.time += 0.4
    assert names(work.take()) == ["a", "b"]


def test_inputs_that_waited_while_the_container_was_busy_do_not_linger_again(
    clock: FakeClock,
) -> None:
    work = loop(clock, batch_max_size=3, batch_linger_ms=100)
    work.deliver([given("a")])
    clock.time += 60
    assert names(work.take()) == ["a"]


def test_batch_has_one_method(clock: FakeClock) -> None:
    work = loop(clock, batch_max_size=3, batch_linger_ms=0)
    work.deliver([given("a", method="x"), given("b", method="y"), given("c", method="x")])
    assert names(work.take()) == ["a", "c"]
    work.finish([ended("a"), ended("c")])
    assert names(work.take()) == ["b"]


# ── waiting behind others ─────────────────────────────────────────────────────────────────────


def test_what_waits_too_long_behind_a_running_input_goes_back(clock: FakeClock) -> None:
    work = loop(clock)
    work.deliver([given("a"), given("b"), given("c")])
    work.take()
    assert work.next_deadline() == clock.time + PATIENCE_S
    clock.time += PATIENCE_S
    assert work.due().returned == [("b", 0), ("c", 0)]
    assert work.held() == [("a", 0)]


def test_what_waits_behind_inputs_that_end_stays(clock: FakeClock) -> None:
    work = loop(clock)
    work.deliver([given("a"), given("b"), given("c")])
    clock.time += PATIENCE_S  # the container was not ready yet
    work.take()
    assert work.due().returned == []
    clock.time += PATIENCE_S / 2
    work.finish([ended("a")])
    work.take()
    clock.time += PATIENCE_S / 2
    assert work.due().returned == []


def test_what_waits_for_a_container_that_runs_nothing_stays(clock: FakeClock) -> None:
    work = loop(clock)
    work.deliver([given("a")])
    clock.time += 10 * PATIENCE_S
    assert work.due().returned == []
    assert names(work.take()) == ["a"]


def test_linger_of_a_batch_is_no_waiting(clock: FakeClock) -> None:
    work = loop(clock, batch_max_size=2, batch_linger_ms=3000)
    work.deliver([given("a"), given("b")])
    assert names(work.take()) == ["a", "b"]
    work.deliver([given("c")])
    clock.time += 3.0
    assert work.due().returned == []
    clock.time += PATIENCE_S
    assert work.due().returned == [("c", 0)]


# ── cancellation ──────────────────────────────────────────────────────────────────────────────


def test_cancelling_a_waiting_input_ends_it_here(clock: FakeClock) -> None:
    work = loop(clock)
    work.deliver([given("a"), given("b")])
    effects = work.cancel(["a"])
    assert [(o.input_id, o.result.status) for o in effects.outputs] == [("a", STATUS_TERMINATED)]
    assert not effects.cancel_event
    assert names(work.take()) == ["b"]


def test_cancelling_a_running_input_goes_by_heartbeat_until_it_ends(clock: FakeClock) -> None:
    work = loop(clock)
    work.deliver([given("a")])
    work.take()
    assert work.cancel(["a"]).cancel_event
    assert work.cancelled_ids() == []  # the client has hardly begun with it
    assert work.next_cancel_at() == clock.time + SETTLE_S
    clock.time += SETTLE_S
    assert work.next_cancel_at() is None
    assert work.cancelled_ids() == ["a"]
    assert work.cancelled_ids() == ["a"]
    effects = work.finish([ended("a", 0, STATUS_TERMINATED)])
    assert [o.input_id for o in effects.outputs] == ["a"]
    assert work.cancelled_ids() == []


def test_output_that_beats_its_cancellation_counts(clock: FakeClock) -> None:
    work = loop(clock)
    work.deliver([given("a")])
    work.take()
    work.cancel(["a"])
    effects = work.finish([ended("a")])
    assert effects.outputs[0].result.status == STATUS_SUCCESS


def test_ignored_cancellation_escalates_to_interrupt_and_kill(clock: FakeClock) -> None:
    work = loop(clock)
    work.deliver([given("a"), given("b")])
    work.take()
    work.cancel(["a"])
    assert not work.due().interrupt
    clock.time += CANCEL_GRACE_S
    effects = work.due()
    assert effects.interrupt
    assert not effects.kill
    assert effects.returned == [("b", 0)]
    assert work.phase is Phase.STOPPING
    clock.time += INTERRUPT_GRACE_S
    assert "a was cancelled" in work.due().kill
    end = work.end()
    assert [(o.input_id, o.result.status) for o in end.outputs] == [("a", STATUS_TERMINATED)]
    assert (end.unfinished, end.unstarted) == ([], [])


def test_innocents_of_a_cancelled_batch_come_back(clock: FakeClock) -> None:
    work = loop(clock, batch_max_size=2)
    work.deliver([given("a"), given("b")])
    work.take()
    work.cancel(["a"])
    effects = work.finish([ended("a", 0, STATUS_TERMINATED), ended("b", 0, STATUS_TERMINATED)])
    assert [o.input_id for o in effects.outputs] == ["a"]
    assert effects.returned == [("b", 0)]
    work.deliver([given("b")])
    work.deliver([given("c")])
    assert names(work.take()) == ["b", "c"]


def test_termination_that_nobody_asked_for_is_the_users_own(clock: FakeClock) -> None:
    """User code may raise a cancellation itself; giving it back would run it for ever."""
    work = loop(clock)
    work.deliver([given("a")])
    work.take()
    effects = work.finish([ended("a", 0, STATUS_TERMINATED)])
    assert [o.input_id for o in effects.outputs] == ["a"]


def test_neighbours_of_a_cancelled_thread_are_not_blamed_for_the_exit(clock: FakeClock) -> None:
    work = loop(clock)
    work.deliver([given("a"), given("b")])
    work.take(2)
    work.take(2)
    work.cancel(["a"])
    end = work.end()
    assert [o.input_id for o in end.outputs] == ["a"]
    assert end.unfinished == []
    assert end.unstarted == [("b", 0)]


# ── timeouts ──────────────────────────────────────────────────────────────────────────────────


def test_timeout_counts_from_hand_out_and_is_reported_once(clock: FakeClock) -> None:
    work = loop(clock, input_timeout_s=5.0)
    work.deliver([given("a")])
    clock.time += 60
    work.take()
    assert work.next_deadline() == clock.time + 5
    clock.time += 5
    effects = work.due()
    assert effects.outputs[0].result.status == STATUS_TIMEOUT
    assert "5 s" in effects.outputs[0].result.exception
    assert effects.cancel_event
    assert work.cancelled_ids() == ["a"]
    late = work.finish([ended("a")])
    assert late.outputs == []
    assert late.returned == []
    assert work.take() is None


def test_timed_out_input_that_goes_on_is_interrupted_then_killed(clock: FakeClock) -> None:
    work = loop(clock, input_timeout_s=5.0)
    work.deliver([given("a"), given("b")])
    work.take(2)
    work.take(2)
    work.finish([ended("b")])
    clock.time += 5
    work.due()
    clock.time += TIMEOUT_GRACE_S
    assert work.due().interrupt
    assert isinstance(answer := work.take(), Grant)
    assert answer.is_kill_switch
    clock.time += INTERRUPT_GRACE_S
    assert "a timed out" in work.due().kill
    end = work.end()
    assert (end.outputs, end.unfinished, end.unstarted) == ([], [], [])


def test_only_the_late_attempt_is_ended(clock: FakeClock) -> None:
    work = loop(clock, input_timeout_s=5.0)
    work.deliver([given("a")])
    work.take(2)
    clock.time += 3
    work.deliver([given("b")])
    work.take(2)
    clock.time += 2
    effects = work.due()
    assert [o.input_id for o in effects.outputs] == ["a"]
    assert work.held() == [("b", 0)]


def test_startup_timeout_counts_from_hello_until_the_first_ask(clock: FakeClock) -> None:
    work = loop(clock, startup_timeout_s=10.0)
    assert work.next_deadline() is None
    clock.time += 100  # preparing took long
    work.launched()
    clock.time += 20  # so did the interpreter
    assert not work.due().kill
    work.greeted()
    clock.time += 10
    assert "startup timeout of 10 s" in work.due().kill
    work = loop(clock, startup_timeout_s=10.0)
    work.launched()
    work.greeted()
    assert work.ready()
    assert not work.ready()
    clock.time += 10
    assert not work.due().kill


@pytest.mark.parametrize("startup_timeout_s", [0.0, 1.0])
def test_container_that_never_says_hello_is_ended(
    clock: FakeClock, startup_timeout_s: float
) -> None:
    work = loop(clock, startup_timeout_s=startup_timeout_s)
    work.launched()
    assert work.next_deadline() == clock.time + BOOT_S
    clock.time += BOOT_S
    assert "did not come up" in work.due().kill


# ── ends ──────────────────────────────────────────────────────────────────────────────────────


def test_drained_container_finishes_and_gets_the_kill_switch_alone(clock: FakeClock) -> None:
    work = loop(clock)
    work.deliver([given("a"), given("b")])
    work.take(2)
    effects = work.drain()
    assert effects.returned == [("b", 0)]
    assert effects.wake
    assert not effects.interrupt
    assert isinstance(answer := work.take(2), Grant)
    assert answer.is_kill_switch
    assert work.next_deadline() is None  # the running input may take its time
    assert [o.input_id for o in work.finish([ended("a")]).outputs] == ["a"]
    assert work.next_deadline() == clock.time + EXIT_GRACE_S
    clock.time += EXIT_GRACE_S
    assert "did not exit" in work.due().kill


def test_interrupted_containers_terminations_go_back(clock: FakeClock) -> None:
    work = loop(clock)
    work.deliver([given("a"), given("b")])
    work.take()
    effects = work.stop(7.0, "asked to")
    assert effects.interrupt
    assert effects.returned == [("b", 0)]
    assert work.finish([ended("a", 0, STATUS_TERMINATED)]).returned == [("a", 0)]
    clock.time += 7
    assert work.due().kill == "asked to"


def test_an_interrupted_container_is_not_asked_to_cancel_as_well(clock: FakeClock) -> None:
    work = loop(clock)
    work.deliver([given("a")])
    work.take()
    clock.time += SETTLE_S
    work.cancel(["a"])
    assert work.cancelled_ids() == ["a"]
    work.stop(7.0, "asked to")
    assert work.cancelled_ids() == []
    assert work.next_cancel_at() is None


def test_a_container_that_is_still_starting_is_killed_at_once(clock: FakeClock) -> None:
    work = loop(clock, startup_timeout_s=100.0)
    work.launched()
    work.deliver([given("a")])
    effects = work.stop(7.0, "asked to")
    assert effects.kill == "the container was stopped before it was ready"
    assert not effects.interrupt
    assert effects.returned == [("a", 0)]


def test_an_idle_container_is_interrupted(clock: FakeClock) -> None:
    work = loop(clock)
    work.ready()
    effects = work.stop(7.0, "asked to")
    assert effects.interrupt
    assert not effects.kill


def test_stop_after_drain_still_interrupts(clock: FakeClock) -> None:
    work = loop(clock)
    work.deliver([given("a")])
    work.take()
    work.drain()
    assert work.stop(1.0, "now").interrupt
    assert not work.stop(1.0, "now").interrupt


def test_crash_leaves_started_inputs_unfinished_and_others_unstarted(clock: FakeClock) -> None:
    work = loop(clock)
    work.deliver([given("a"), given("b")])
    work.take()
    end = work.end()
    assert end.unfinished == [("a", 0)]
    assert end.unstarted == [("b", 0)]
    assert end.outputs == []


def test_failed_init_must_end_in_time_without_the_startup_timeout(clock: FakeClock) -> None:
    work = loop(clock, startup_timeout_s=100.0)
    work.launched()
    work.init_failed()
    assert work.next_deadline() == clock.time + EXIT_GRACE_S
    assert work.deliver([given("a")]).returned == [("a", 0)]


def test_forgotten_inputs_leave_without_a_word(clock: FakeClock) -> None:
    work = loop(clock)
    work.deliver([given("a"), given("b"), given("c")])
    work.take()
    effects = work.forget([("a", 0), ("b", 0)])
    assert effects.outputs == []
    assert effects.cancel_event
    assert work.held() == [("c", 0)]
    assert work.finish([ended("a", 0, STATUS_TERMINATED)]).outputs == []
    assert names(work.take()) == ["c"]
    assert work.finish([ended("a")]).outputs == []


def test_concurrency_follows_demand_within_its_bounds(clock: FakeClock) -> None:
    work = loop(clock)
    assert work.concurrency(2, 8) == 2
    assert work.concurrency(0, 0) == 1
    work.deliver([given(str(n)) for n in range(20)])
    assert work.concurrency(2, 8) == 8


def test_output_is_attributed_only_when_alone(clock: FakeClock) -> None:
    work = loop(clock)
    assert work.sole_input() == ("", "")
    work.deliver([given("a"), given("b")])
    work.take(2)
    assert work.sole_input() == ("a", "call-a")
    work.take(2)
    assert work.sole_input() == ("", "")
