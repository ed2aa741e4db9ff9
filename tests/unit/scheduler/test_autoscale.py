"""The autoscaling plan: pure, so each rule is one small table."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeport.functions.model import Autoscaler
from homeport.scheduler.autoscale import (
    BURST_CONTAINERS,
    START_COST_S,
    IdleTask,
    PoolView,
    plan,
)

EMPTY = PoolView(
    now=1000.0,
    waiting=0,
    running=0,
    ready=0,
    stalled=0,
    starting=0,
    idle=(),
    slots=1,
    target_slots=1,
    settings=Autoscaler(),
    input_s=None,
    progress_at=1000.0,
    single_use=False,
    is_live=True,
    keep_min=False,
)


def view(**changes: object) -> PoolView:
    return dataclasses.replace(EMPTY, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"waiting": 1}, 1),
        ({"waiting": 3}, 3),
        ({"waiting": 100}, BURST_CONTAINERS),
        ({"waiting": 100, "starting": BURST_CONTAINERS}, 0),
        ({"waiting": 100, "ready": 8, "running": 8, "input_s": 5.0}, 8),
        ({"waiting": 100, "ready": 8, "running": 8, "input_s": 0.001}, 0),
        ({"waiting": 1, "starting": 1}, 0),
        ({"waiting": 9, "slots": 4, "target_slots": 4}, 3),
        ({"waiting": 9, "settings": Autoscaler(max_containers=2)}, 2),
        ({"waiting": 20, "single_use": True}, 20),
        ({"waiting": 0, "keep_min": True, "settings": Autoscaler(min_containers=2)}, 2),
        ({"waiting": 0, "keep_min": False, "settings": Autoscaler(min_containers=2)}, 0),
        ({"waiting": 1, "settings": Autoscaler(buffer_containers=2)}, 3),
        ({"waiting": 5, "is_live": False}, 0),
        ({"keep_min": True, "settings": Autoscaler(min_containers=2, max_containers=1)}, 1),
    ],
)
def test_starts(changes: dict[str, object], start: int) -> None:
    assert plan(view(**changes)).start == start


def test_containers_that_finish_nothing_are_not_waited_for() -> None:
    quick = {"waiting": 1, "running": 1, "ready": 1, "input_s": 0.001}
    patient = plan(view(**quick, progress_at=999.9))
    assert (patient.start, patient.check_at) == (0, 999.9 + START_COST_S)
    assert plan(view(**quick, progress_at=1000.0 - START_COST_S)).start == 1


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"ready": 1, "stalled": 1}, 1),
        ({"ready": 2, "stalled": 1}, 0),
        ({"ready": 2, "stalled": 2, "starting": 1}, 0),
        # Two of a batch run, two wait: without the stall one container would be enough for them.
        ({"waiting": 2, "ready": 1, "stalled": 1, "slots": 4, "target_slots": 4}, 1),
        ({"ready": 1, "stalled": 1, "settings": Autoscaler(max_containers=1)}, 0),
    ],
)
def test_a_stalled_container_counts_as_full(changes: dict[str, object], start: int) -> None:
    assert plan(view(**{"waiting": 1, "input_s": 0.001, **changes})).start == start


def test_an_idle_container_ends_when_its_window_has_passed() -> None:
    idle = (IdleTask("ta-1", 900.0), IdleTask("ta-2", 990.0))
    result = plan(view(ready=2, idle=idle, settings=Autoscaler(scaledown_window_s=60.0)))
    assert result.stop == ("ta-1",)
    assert result.check_at == 1050.0


def test_minimum_containers_outlive_their_window() -> None:
    idle = (IdleTask("ta-1", 0.0), IdleTask("ta-2", 1.0))
    settings = Autoscaler(min_containers=1, scaledown_window_s=10.0)
    result = plan(view(ready=2, idle=idle, settings=settings, keep_min=True))
    assert result.stop == ("ta-1",)


def test_nothing_ends_while_inputs_wait() -> None:
    result = plan(view(waiting=1, ready=1, running=1, idle=(IdleTask("ta-1", 0.0),)))
    assert result.stop == ()


@given(
    waiting=st.integers(0, 10_000),
    running=st.integers(0, 500),
    ready=st.integers(0, 500),
    starting=st.integers(0, 50),
    slots=st.integers(1, 64),
    max_containers=st.one_of(st.none(), st.integers(1, 100)),
    min_containers=st.one_of(st.none(), st.integers(0, 20)),
    input_s=st.one_of(st.none(), st.floats(0, 1000)),
)
def test_a_plan_never_passes_the_maximum_and_never_starts_and_stops_at_once(
    waiting: int,
    running: int,
    ready: int,
    starting: int,
    slots: int,
    max_containers: int | None,
    min_containers: int | None,
    input_s: float | None,
) -> None:
    settings = Autoscaler(min_containers=min_containers, max_containers=max_containers)
    result = plan(
        view(
            waiting=waiting,
            running=running,
            ready=ready,
            starting=starting,
            slots=slots,
            target_slots=slots,
            settings=settings,
            input_s=input_s,
            keep_min=True,
            idle=tuple(IdleTask(f"ta-{n}", 0.0) for n in range(min(ready, 5))),
        )
    )
    assert result.start >= 0
    if max_containers is not None and result.start:
        assert ready + starting + result.start <= max_containers
    assert not (result.start and result.stop)


BUSY = {"outdated": 3, "running": 3}


@pytest.mark.parametrize(
    ("changes", "start", "retire"),
    [
        # One for those that idle, as many as are busy, and none is let go before one is ready.
        ({"outdated": 1}, 1, 0),
        (BUSY, 3, 0),
        ({**BUSY, "starting": 3}, 0, 0),
        # Each that is ready lets one go.
        ({**BUSY, "starting": 2, "ready": 1}, 0, 1),
        ({**BUSY, "ready": 3}, 0, 3),
        ({"outdated": 3, "ready": 1}, 0, 3),
        # With a maximum one goes first.
        ({"outdated": 1, "running": 1, "settings": Autoscaler(max_containers=1)}, 0, 1),
        ({"outdated": 2, "running": 2, "settings": Autoscaler(max_containers=2)}, 0, 1),
        ({"outdated": 1, "running": 2, "settings": Autoscaler(max_containers=2)}, 1, 0),
        ({"outdated": 1, "ready": 1, "running": 2, "settings": Autoscaler(max_containers=2)}, 0, 1),
        # A version that cannot start replaces nothing for the sake of it.
        ({"outdated": 1, "can_start": False}, 0, 0),
        ({"outdated": 1, "can_start": False, "waiting": 1}, 1, 0),
    ],
)
def test_rolling(changes: dict[str, object], start: int, retire: int) -> None:
    found = plan(view(**changes))
    assert (found.start, found.retire) == (start, retire)


def test_outdated_that_nothing_replaces_end_like_others() -> None:
    idle = (IdleTask("old", 900.0),)
    found = plan(view(outdated=1, can_start=False, idle=idle))
    assert found.stop == ("old",)


@given(
    outdated=st.integers(1, 20),
    ready=st.integers(0, 20),
    starting=st.integers(0, 20),
    running=st.integers(0, 60),
    waiting=st.integers(0, 60),
    maximum=st.integers(0, 20),
)
def test_rolling_keeps_to_its_bounds(
    outdated: int, ready: int, starting: int, running: int, waiting: int, maximum: int
) -> None:
    settings = Autoscaler(max_containers=maximum or None)
    found = plan(
        view(
            outdated=outdated,
            ready=ready,
            starting=starting,
            running=running,
            waiting=waiting,
            settings=settings,
        )
    )
    assert 0 <= found.retire <= outdated
    if not ready:
        assert found.retire <= (1 if maximum else 0)
    before = outdated + ready + starting
    if maximum and before <= maximum:
        assert before - found.retire + found.start <= maximum
