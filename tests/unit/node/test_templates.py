"""Containers that wait for their tasks: whose they may be, how many there are, how they end."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from homeport.kernel.resources import Limits
from homeport.link.messages import (
    BucketRef,
    MountRef,
    RpcRequest,
    StartTask,
    StopTask,
    TaskExited,
    TaskReady,
    VolumeRef,
)
from homeport.node.runtime.port import ContainerStartError
from homeport.node.templates import memory, pool
from homeport.node.templates.key import template_key
from homeport.node.templates.template import MEMORY_MB, Template

from .harness import WAIT_S, Node, PlainContainer, function, item, start_task, value

Scenario = Callable[[Node], Awaitable[None]]
ENTRYPOINT = ["python", "-m", "modal._container_entrypoint"]


def task(name: str = "surroundings", **changes: Any) -> StartTask:
    return start_task(function(name), **{"command": ENTRYPOINT, "deployed": True, **changes})


@pytest.fixture
def run() -> Iterator[Callable[..., None]]:
    """Runs a scenario on a node that keeps containers waiting; afterwards nothing is left."""

    def go(scenario: Scenario, templates_max: int = 4) -> None:
        async def main() -> None:
            async with Node(Path(folder), templates_max=templates_max) as node:
                await scenario(node)

        asyncio.run(main())

    with tempfile.TemporaryDirectory(prefix="node-") as folder:
        yield go


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def used(node: Node, start: StartTask, argument: object = ()) -> Any:
    """What one input gives in a container of its own, which is then stopped."""
    exits = len(node.server.all(TaskExited))
    node.start(start)
    one = item(argument)
    node.server.deliver(start.task_id, one)
    (output,) = await node.server.done(one.input_id)
    node.server.send(StopTask(start.task_id, True, 5.0))
    await node.server.first(TaskExited, exits + 1)
    return value(output)


def waiting(node: Node) -> list[PlainContainer]:
    found = node.runtime.containers
    return [one for one in found if one.id.startswith("tp-") and not one.removed]


async def waits(node: Node, count: int = 1) -> None:
    assert node.templates is not None
    templates = node.templates
    await until(lambda: templates.count == count)


# ── whose it may be ───────────────────────────────────────────────────────────────────────────


def test_the_next_task_of_a_kind_gets_the_waiting_container(run) -> None:
    async def scenario(node: Node) -> None:
        names = ["MODAL_TASK_ID", "MODAL_SERVER_URL", "MINE"]
        first, second = task(env={"MINE": "1"}), task(env={"MINE": "1"})
        cold = await used(node, first, names)
        await waits(node)
        (container,) = waiting(node)
        warm = await used(node, second, names)
        assert warm["pid"] == container.pid
        assert cold["pid"] != warm["pid"]
        assert warm["env"]["MODAL_TASK_ID"] == second.task_id
        assert warm["env"]["MINE"] == "1"
        assert container.env["MODAL_TASK_ID"] == second.task_id
        for name in ("argv", "stdin", "main", "left over"):
            assert warm[name] == cold[name], name
        for seen in (cold, warm):
            assert seen["path"][0] == seen["cwd"]
        assert warm["path"][1:] == cold["path"][1:]

    run(scenario)


def test_each_task_has_a_container_of_its_own(run) -> None:
    async def scenario(node: Node) -> None:
        pids = [(await used(node, task(), []))["pid"]]
        for _ in range(3):
            await waits(node)
            pids.append((await used(node, task(), []))["pid"])
        assert len(set(pids)) == 4

    run(scenario)


def test_what_it_printed_and_prints_is_the_tasks(run) -> None:
    async def scenario(node: Node) -> None:
        await used(node, task("double"), 1)
        await waits(node)
        second = task("double")
        await used(node, second, 21)
        entries = [entry.data for entry in node.server.entries()]
        assert "doubling 21\n" in "".join(entries)

    run(scenario)


@pytest.mark.parametrize(
    "changes",
    [
        {"env": {"MODAL_ENVIRONMENT": "other"}},
        {"env": {"MODAL_ENVIRONMENT": "main", "SECRET": "x"}},
        {"layers": ["other"]},
        {"mounts": [MountRef("other")]},
        {"workdir": "/elsewhere"},
        {"limits": Limits(memory_mb=7)},
        {"python": "3.13"},
        {"block_network": True},
        {"untrusted": True},
        {"volumes": [VolumeRef("vo-1", "/data", False, "")]},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_what_makes_another_kind(changes: dict[str, Any]) -> None:
    common = {"env": {"MODAL_ENVIRONMENT": "main"}}
    one, same = task(**common), task(**common)
    assert template_key(one) == template_key(same) != ""
    assert template_key(task(**{**common, **changes})) not in ("", template_key(one))


def test_functions_of_one_image_are_one_kind() -> None:
    assert template_key(task("double")) == template_key(task("fail", input_timeout_s=3.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"command": ["/entry.sh", *ENTRYPOINT]},
        {"commit_layer": "x"},
        {"volumes": [VolumeRef("vo-1", "/root", False, "")]},
        {"volumes": [VolumeRef("vo-1", "/lib/", False, "")], "env": {"PYTHONPATH": "/lib/python"}},
        {"buckets": [BucketRef(bucket="b", path="/b")]},
        {"runtime": "runsc"},
    ],
    ids=["entry point", "layer", "volume over source", "volume over path", "bucket", "gVisor"],
)
def test_what_no_waiting_container_can_serve(changes: dict[str, Any]) -> None:
    assert template_key(task(**changes)) == ""


# ── how many ──────────────────────────────────────────────────────────────────────────────────


def test_there_are_never_more_than_the_bound_and_the_newest_kinds_have_them(run) -> None:
    async def scenario(node: Node) -> None:
        assert node.templates is not None
        starts = [task(env={"KIND": str(number)}) for number in range(3)]
        for start in starts:
            await used(node, start, [])
            await until(lambda: {one.id for one in waiting(node)} and node.templates)
        await waits(node, 2)
        kinds = {spec.env["KIND"] for spec in node.runtime.specs if spec.id.startswith("tp-")}
        await until(lambda: len(waiting(node)) == 2)
        left = {one.id for one in waiting(node)}
        now = {spec.env["KIND"] for spec in node.runtime.specs if spec.id in left}
        assert now == {"1", "2"}
        assert kinds == {"0", "1", "2"}

    run(scenario, 2)


def test_a_burst_is_prepared_for(run) -> None:
    async def scenario(node: Node) -> None:
        starts = [task("sleep") for _ in range(3)]
        for start in starts:
            node.start(start)
        items = [item(0) for _ in starts]
        for start, one in zip(starts, items, strict=True):
            node.server.deliver(start.task_id, one)
        await node.server.done(*(one.input_id for one in items))
        await waits(node, 3)

    run(scenario)


def test_what_is_only_run_has_shown_that_it_is_run_again(run) -> None:
    async def scenario(node: Node) -> None:
        once, again = task(deployed=False), task(deployed=False)
        assert template_key(once) == template_key(task())
        await used(node, once, [])
        await used(node, task(env={"OTHER": "1"}), [])  # made after it would have been
        await waits(node)
        await used(node, again, [])
        await waits(node, 2)

    run(scenario)


def test_a_small_machine_keeps_fewer(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "memory_mb", lambda: (500, 1000 * MEMORY_MB * 2 // 400))

    async def scenario(node: Node) -> None:
        for number in range(3):
            await used(node, task(env={"KIND": str(number)}), [])
            await waits(node)
            await until(lambda: len(waiting(node)) == 1)

    run(scenario)


def test_all_is_given_back_when_memory_runs_short(run) -> None:
    async def scenario(node: Node) -> None:
        assert node.templates is not None
        await used(node, task(), [])
        await waits(node)
        node.templates.pressed()  # by a container that has reached its own limit
        assert node.templates.count == 1
        node.memory_is_short = True
        node.templates.pressed()
        await waits(node, 0)
        await until(lambda: not waiting(node))
        cold = len(node.runtime.containers)
        await used(node, task(), [])
        assert len(node.runtime.containers) == cold + 1
        assert node.templates.count == 0
        node.memory_is_short = False
        await used(node, task(), [])
        await waits(node)

    run(scenario)


def test_it_is_looked_now_and_then_whether_memory_runs_short(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "EXPIRY_S", 0.05)

    async def scenario(node: Node) -> None:
        await used(node, task(), [])
        await waits(node)
        node.memory_is_short = True
        await waits(node, 0)

    run(scenario)


def test_nothing_waits_when_it_is_switched_off(run) -> None:
    async def scenario(node: Node) -> None:
        await used(node, task(), [])
        await used(node, task(), [])
        assert not [spec for spec in node.runtime.specs if spec.id.startswith("tp-")]

    run(scenario, 0)


def test_what_the_kernel_says_of_memory() -> None:
    available, total = memory.memory_mb()
    assert 0 < available <= total
    assert not memory.is_short(lambda: (500, 1000))
    assert memory.is_tight(lambda: (2400, 10_000))
    assert not memory.is_tight(lambda: (2600, 10_000))
    assert memory.is_short(lambda: (255, 1000))
    assert not memory.is_short(lambda: (0, 0))
    assert memory.is_short(lambda: (500, 6000))
    assert not memory.is_short(lambda: (3000, 1_000_000))


def test_the_kernel_takes_the_wish_to_be_told_of_pressure() -> None:
    async def scenario() -> None:
        watch = memory.PressureWatch(lambda: None)
        watch.start()
        try:
            assert watch.is_watching
        finally:
            watch.stop()
            watch.stop()

    if not os.access("/proc/pressure/memory", os.W_OK):
        pytest.skip("this kernel has no pressure information")
    asyncio.run(scenario())


def test_a_kernel_without_pressure_information_is_asked_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "_PRESSURE", tmp_path / "none")

    async def scenario() -> None:
        watch = memory.PressureWatch(lambda: None)
        watch.start()
        assert not watch.is_watching
        watch.stop()

    asyncio.run(scenario())


# ── how they end ──────────────────────────────────────────────────────────────────────────────


def test_killing_one_is_harmless(run) -> None:
    async def scenario(node: Node) -> None:
        await used(node, task(), [])
        await waits(node)
        (container,) = waiting(node)
        os.kill(container.pid, signal.SIGKILL)
        await container.wait()
        assert (await used(node, task(), []))["pid"] != container.pid
        await until(lambda: container.removed)
        await waits(node)
        (other,) = waiting(node)
        assert (await used(node, task(), []))["pid"] == other.pid

    run(scenario)


def test_one_that_cannot_be_made_is_not_tried_for_ever(run) -> None:
    async def scenario(node: Node) -> None:
        start = node.runtime.start
        refused: list[str] = []

        async def refuse(spec: Any) -> Any:
            if spec.id.startswith("tp-"):
                refused.append(spec.id)
                raise ContainerStartError("not today")
            return await start(spec)

        node.runtime.start = refuse  # type: ignore[method-assign]
        for _ in range(5):
            await used(node, task(), [])
        assert len(refused) == 3

    run(scenario)


def test_one_that_can_never_be_used_is_not_made_for_ever(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> None:
        raise ContainerStartError("no volume can be mounted here")

    monkeypatch.setattr(Template, "hand_over", refuse)

    async def scenario(node: Node) -> None:
        for _ in range(3):
            await used(node, task(), [])
            await waits(node)
        for _ in range(2):
            await used(node, task(), [])
        assert len([spec for spec in node.runtime.specs if spec.id.startswith("tp-")]) == 3
        await until(lambda: not waiting(node))

    run(scenario)


def test_a_task_that_is_stopped_before_it_goes_on_takes_its_container_with_it(run) -> None:
    async def scenario(node: Node) -> None:
        await used(node, task(), [])
        await waits(node)
        (container,) = waiting(node)
        start = task()
        node.start(start)
        node.server.send(StopTask(start.task_id, False, 0.0))
        await node.server.first(TaskExited, 2)
        await until(lambda: container.removed or container in waiting(node))

    run(scenario)


# ── memory snapshots ──────────────────────────────────────────────────────────────────────────


def snapped(**changes: Any) -> StartTask:
    definition = function("Snapped.*", "classes", is_class=True, is_checkpointing_function=True)
    return start_task(definition, **{"memory_snapshot": True, "deployed": True, **changes})


async def restored(node: Node, start: StartTask) -> Any:
    exits = len(node.server.all(TaskExited))
    node.start(start)
    one = item(1, method="add")
    node.server.deliver(start.task_id, one)
    (output,) = await node.server.done(one.input_id)
    node.server.send(StopTask(start.task_id, False, 10.0))
    await node.server.first(TaskExited, exits + 1)
    return value(output)


def test_a_task_goes_on_where_its_program_took_its_snapshot(run) -> None:
    async def scenario(node: Node) -> None:
        first = snapped()
        _, loaded_by, restored_by = await restored(node, first)
        assert loaded_by == restored_by == first.task_id
        pids: set[int] = set()
        for _ in range(2):
            await waits(node)
            (container,) = waiting(node)
            task_ = snapped()
            pid, loaded_by, restored_by = await restored(node, task_)
            assert pid == container.pid
            assert loaded_by.startswith("ta-")
            assert loaded_by != restored_by == task_.task_id
            pids.add(pid)
        assert len(pids) == 2
        assert node.server.text(1).count("loaded") == 3

    run(scenario)


def test_what_is_asked_before_a_snapshot_is_asked_by_a_task_that_runs(run, tmp_path: Path) -> None:
    async def scenario(node: Node) -> None:
        go = tmp_path / "go"
        first, second = (snapped(env={"WAITS": str(go)}) for _ in range(2))
        node.start(first)
        await until(lambda: waiting(node))  # it runs in the name of the first, and will ask
        node.start(second)
        await node.server.first(TaskReady, 2)
        node.server.send(StopTask(first.task_id, False, 5.0))
        await node.server.first(TaskExited)
        go.touch()
        asked = await node.server.first(RpcRequest)
        assert asked.task_id == second.task_id
        await waits(node)

    run(scenario)


def test_one_that_does_not_fit_beside_others_is_not_tried_for_ever(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainContainer, "memory_bytes", lambda _: 90 * 2**20)
    monkeypatch.setattr(pool, "memory_mb", lambda: (500, 1000))  # two fit, three do not

    async def scenario(node: Node) -> None:
        old = snapped(env={"KIND": "old"})
        node.start(old)
        await waits(node)
        for kind in ("new", "newest"):
            await restored(node, snapped(env={"KIND": kind}))
        await waits(node, 2)
        made = len([spec for spec in node.runtime.specs if spec.id.startswith("tp-")])
        one = item(1, method="add")
        node.server.deliver(old.task_id, one)
        await node.server.done(one.input_id)
        await restored(node, snapped(env={"KIND": "newest"}))
        await waits(node, 2)
        assert len([spec for spec in node.runtime.specs if spec.id.startswith("tp-")]) <= made + 2

    run(scenario)


def test_snapshots_are_of_one_function_with_its_parameters() -> None:
    keys = {
        template_key(start)
        for start in (
            snapped(),
            snapped(),
            snapped(function_id="fu-other"),
            task(),
            snapped(volumes=[VolumeRef("vo-1", "/data")]),
            snapped(volumes=[VolumeRef("vo-1", "/other")]),
        )
    }
    assert len(keys) == 5
    assert "" not in keys


def test_a_program_that_cannot_be_snapshotted_is_left_alone_and_its_log_says_why(run) -> None:
    async def scenario(node: Node) -> None:
        for _ in range(5):
            start = snapped(env={"FAILS": "1"})
            _, loaded_by, restored_by = await restored(node, start)
            assert loaded_by == restored_by == start.task_id
            assert node.templates is not None
            await until(lambda: not waiting(node))
        tried = [spec for spec in node.runtime.specs if spec.id.startswith("tp-")]
        assert len(tried) <= 3
        text = "".join(entry.data for entry in node.server.entries() if entry.fd == 3)
        assert "starts from nothing, not from its memory snapshot" in text

    run(scenario)


def test_what_takes_too_much_memory_is_not_kept(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlainContainer, "memory_bytes", lambda _: 2**50)

    async def scenario(node: Node) -> None:
        for _ in range(2):
            await restored(node, snapped())
            await until(
                lambda: any(one.removed for one in node.runtime.containers if "tp-" in one.id)
            )
        assert node.templates is not None
        assert node.templates.count == 0
        text = "".join(entry.data for entry in node.server.entries() if entry.fd == 3)
        assert "are kept waiting" in text

    run(scenario)
