"""Counts that follow every change are what counting anew would give."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.scheduler.test_placement import spec

from homeport.functions.model import FunctionRecord
from homeport.kernel.resources import Resources
from homeport.scheduler.pool import Pool, Task
from homeport.scheduler.tally import TaskStatus

RECORD = FunctionRecord(
    function_id="fu-1",
    app_id="ap-1",
    tag="f",
    handle=b"",
    created_at=0.0,
    spec=spec(max_concurrent=3),
)
CHANGES = ("admit", "ready", "stop", "give", "take", "clear", "stall", "outdate", "last", "drop")


def task(pool: Pool, number: int) -> Task:
    return Task(
        task_id=f"ta-{number}",
        pool=pool,
        node_id="no-1",
        edition="",
        reserved=Resources(),
        memory_limit_mb=0,
        created_at=0.0,
    )


def change(pool: Pool, item: Task, what: str) -> None:
    one: Any = object()
    match what:
        case "admit":
            pool.admit(item)
        case "ready":
            item.status = TaskStatus.READY
        case "stop":
            item.status = TaskStatus.STOPPING
        case "give":
            item.held[f"in-{len(item.held)}"] = one
        case "take":
            item.held.take(f"in-{len(item.held) - 1}")
        case "clear":
            item.held.clear()
        case "stall":
            item.stalled = not item.stalled
        case "outdate":
            item.outdated = not item.outdated
        case "last":
            item.inputs_left = len(item.held) % 2
            item.held.take("")
        case _:
            pool.drop(item)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(CHANGES)), max_size=60))
def test_counts(changes: list[tuple[int, str]]) -> None:
    idle: dict[Any, None] = {}
    pool = Pool(RECORD, 0.0, idle)
    tasks = [task(pool, number) for number in range(6)]
    for number, what in changes:
        change(pool, tasks[number], what)
    tally, there = pool.tally, list(pool.tasks.values())
    going = [each for each in there if each.status is not TaskStatus.STOPPING]
    serving = [each for each in there if each.status is TaskStatus.READY]
    present = [each for each in serving if not each.outdated]
    assert tally.held == sum(len(each.held) for each in there)
    assert tally.running == sum(len(each.held) for each in serving if not each.stalled)
    assert tally.ready == len(present)
    assert tally.stalled == sum(each.stalled for each in present)
    assert tally.starting == sum(
        each.status is TaskStatus.STARTING and not each.outdated for each in going
    )
    assert set(tally.outdated) == {each for each in going if each.outdated}
    open_ = [each for each in serving if not each.stalled and each.inputs_left]
    assert set(pool.idle()) == set(idle) == {each for each in open_ if not each.held}
    assert set(pool.overloaded()) == {each for each in open_ if len(each.held) > 3}
    least = pool.least_loaded(3)
    loads = [(each.outdated, len(each.held)) for each in open_ if len(each.held) < 3]
    assert (least is None) == (not loads)
    if least is not None:
        assert (least.outdated, len(least.held)) == min(loads)


def test_the_one_that_was_busy_last_is_taken_first() -> None:
    pool = Pool(RECORD, 0.0)
    first, second = task(pool, 1), task(pool, 2)
    for each in (first, second):
        pool.admit(each)
        each.status = TaskStatus.READY
    assert pool.least_loaded(3) is second
    first.held["in-1"] = object()  # type: ignore[assignment]
    first.held.clear()
    assert pool.least_loaded(3) is first
    assert list(pool.idle()) == [second, first]
