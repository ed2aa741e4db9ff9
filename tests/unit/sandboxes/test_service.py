"""The life of sandboxes on the server: waiting for room, adoption, losses, repeats."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from tests.unit.feature_home import Home, run

from homeport.kernel.errors import AlreadyExistsError, InvalidError, NotFoundError, UnavailableError
from homeport.kernel.resources import Limits, Resources
from homeport.link.messages import (
    PROTOCOL,
    STATUS_INIT_FAILURE,
    STATUS_INTERNAL_FAILURE,
    STATUS_SUCCESS,
    STATUS_TERMINATED,
    Answer,
    Hello,
    Message,
    RunningTask,
    SandboxStarted,
    StartSandbox,
    StopTask,
    TaskExited,
)
from homeport.sandboxes.model import SandboxRecord, SandboxSpec
from homeport.sandboxes.service import SandboxService
from homeport.sandboxes.store import SandboxStore
from homeport.scheduler.placement import Spot
from homeport.tasks.service import TaskService
from homeport.tasks.store import TaskStore

APP = "ap-1"
NODE = "no-1"
SPEC = SandboxSpec(image_id="im-1")


class FakeRoom:
    """Room for ``size`` sandboxes on one node."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.machine_mb = 1000
        self.taken: set[str] = set()
        self.counted: dict[str, list[str]] = {}
        """The GPUs of sandboxes that ran already."""
        self.idle: list[str] = []

    def check(self, spec: SandboxSpec) -> None: ...

    def reserve(self, task_id: str, spec: SandboxSpec) -> Spot | None:
        size = 1 if self.is_oversized(spec) else self.size
        if len(self.taken) >= size:
            return None
        self.taken.add(task_id)
        return Spot(NODE, Resources(50, 128, spec.gpu_count), ("GPU-new",) * spec.gpu_count)

    def count(self, task_id: str, spec: SandboxSpec, node_id: str, gpus: Sequence[str]) -> Spot:
        self.taken.add(task_id)
        self.counted[task_id] = list(gpus)
        return Spot(node_id, Resources(50, 128, len(gpus)), tuple(gpus))

    def free(self, task_id: str) -> None:
        self.taken.discard(task_id)

    def memory_limit_mb(self, spec: SandboxSpec, node_id: str) -> int:
        return 256

    def is_oversized(self, spec: SandboxSpec) -> bool:
        return spec.memory_mb > self.machine_mb

    def wanted(self, spec: SandboxSpec) -> None: ...

    def work_finished(self, app_id: str) -> None:
        self.idle.append(app_id)


class FakeNodes:
    """A node that remembers what it was told."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def send(self, node_id: str, message: Message) -> bool:
        self.sent.append(message)
        return True

    async def ask(self, node_id: str, make: Callable[[int], Message]) -> Answer:
        self.sent.append(make(1))
        return Answer(1)

    def of(self, kind: type[Message]) -> list[str]:
        return [cast("Any", each).task_id for each in self.sent if isinstance(each, kind)]


class FakeLauncher:
    """Prepares at once, or fails."""

    failure: Exception | None = None

    async def check(self, sandbox_id: str, spec: SandboxSpec) -> None: ...

    async def prepare(
        self, record: SandboxRecord, memory_limit_mb: int, milli_cpu: int
    ) -> StartSandbox:
        if self.failure is not None:
            raise self.failure
        return StartSandbox(
            task_id=record.task_id,
            sandbox_id=record.sandbox_id,
            app_id=record.app_id,
            command=[],
            layers=[],
            mounts=[],
            env={},
            workdir="/",
            limits=Limits(),
            runtime="",
            timeout_s=1.0,
            idle_timeout_s=0.0,
            block_network=False,
        )


class World:
    """The service with fakes around it."""

    def __init__(self, home: Home, *, room: int = 10) -> None:
        self.room = FakeRoom(room)
        self.nodes = FakeNodes()
        self.launcher = FakeLauncher()
        self.tasks = TaskService(TaskStore(home.database), home.clock)
        self.service = SandboxService(
            SandboxStore(home.database),
            self.nodes,
            self.tasks,
            home.logs,
            home.secrets,
            cast("Any", self.launcher),
            cast("Any", None),
            home.clock,
        )
        apps = SimpleNamespace(require_live=lambda app_id: None)
        self.service.use(cast("Any", apps), self.room)

    async def create(
        self, key: str = "", *, name: str = "", repeat: bool = False, spec: SandboxSpec = SPEC
    ) -> SandboxRecord:
        record = await self.service.create(
            APP,
            spec,
            name=name,
            tags={},
            sources=[{"SECRET": "value"}],
            bucket_credentials={},
            is_v2=True,
            seed=key,
            is_repeat=repeat,
        )
        await asyncio.sleep(0)
        return record

    def exits(self, record: SandboxRecord, returncode: int = 0) -> None:
        self.service.said(SandboxStarted(1, record.task_id, 1.0))
        self.service.said(TaskExited(1, record.task_id, returncode, False, True, [], [], "", ""))


def hello(running: Sequence[SandboxRecord]) -> Hello:
    tasks = [RunningTask(each.task_id, True, []) for each in running]
    return Hello(PROTOCOL, NODE, "", Resources(), [], [], tasks)


def world(path: Path, scenario: Callable[[World], Awaitable[None]], *, room: int = 10) -> None:
    async def check(home: Home) -> None:
        made = World(home, room=room)
        await made.service.start()
        try:
            await scenario(made)
        finally:
            await made.service.stop()

    run(path, check)


def test_a_result_is_waited_for_and_kept(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        record = await world.create()
        waiting = asyncio.create_task(world.service.wait(record.sandbox_id, 10.0))
        await asyncio.sleep(0)
        world.exits(record)
        ended = await waiting
        assert ended.result is not None
        assert ended.result.status == STATUS_SUCCESS
        assert world.room.taken == set()
        assert world.room.idle == [APP]
        again = await world.service.wait(record.sandbox_id, 10.0)
        assert again.result == ended.result

    world(tmp_path, scenario)


def test_those_without_room_wait_their_turn(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        first = await world.create()
        second, third = await world.create(), await world.create()
        assert first.node_id == NODE
        assert (second.node_id, third.node_id) == ("", "")
        world.exits(first)
        world.service.serve_waiting()
        placed = await world.service.placed(second.sandbox_id, 10.0)
        assert placed.node_id == NODE
        assert (await world.service.placed(third.sandbox_id, 0)).node_id == ""
        await world.service.terminate(third.sandbox_id)
        ended = await world.service.wait(third.sandbox_id, 0)
        assert ended.result is not None
        assert ended.result.status == STATUS_TERMINATED
        await asyncio.sleep(0)
        assert world.nodes.of(StartSandbox) == [first.task_id, second.task_id]
        assert world.nodes.of(StopTask) == []

    world(tmp_path, scenario, room=1)


def test_a_repeated_creation_is_the_same_sandbox(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        record = await world.create("one call")
        again = await world.create("one call", repeat=True)
        world.exits(record)
        late = await world.create("one call", repeat=True)
        assert record.sandbox_id == again.sandbox_id == late.sandbox_id
        assert late.is_over
        assert world.nodes.of(StartSandbox) == [record.task_id]

    world(tmp_path, scenario)


def test_a_name_is_free_as_soon_as_its_sandbox_is_ended(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        first = await world.create(name="n")
        with pytest.raises(AlreadyExistsError):
            await world.create(name="n")
        await world.service.terminate(first.sandbox_id)
        second = await world.create(name="n")
        assert (await world.service.named(APP, "n", ended_too=False)) == second
        world.exits(first, -9)
        assert (await world.service.named(APP, "n", ended_too=False)).task_id == second.task_id
        world.exits(second)
        with pytest.raises(NotFoundError):
            await world.service.named(APP, "n", ended_too=False)
        latest = await world.service.named(APP, "n", ended_too=True)
        assert latest.sandbox_id == second.sandbox_id

    world(tmp_path, scenario)


def test_what_cannot_be_prepared_says_why(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.launcher.failure = UnavailableError("the image is gone")
        record = await world.create()
        ended = await world.service.wait(record.sandbox_id, 10.0)
        assert ended.result is not None
        assert ended.result.status == STATUS_INIT_FAILURE
        assert "the image is gone" in ended.result.exception

    world(tmp_path, scenario)


def test_a_restarted_server_takes_its_sandboxes_back(tmp_path: Path) -> None:
    async def check(home: Home) -> None:
        before = World(home, room=3)
        runs, ends, never_sent = [await before.create(name=name) for name in ("a", "b", "c")]
        waits = await before.create(name="d")
        before.service.said(SandboxStarted(1, runs.task_id, 1.0))
        await before.service.terminate(ends.sandbox_id)

        after = World(home, room=3)
        await after.tasks.start()
        await after.service.start()
        claimed = after.service.joined(NODE, hello([runs, ends]))
        assert claimed == {runs.task_id, ends.task_id}
        await asyncio.sleep(0)
        assert after.nodes.of(StopTask) == [ends.task_id]
        assert after.nodes.of(StartSandbox) == [never_sent.task_id]
        assert after.room.taken == {runs.task_id, ends.task_id, never_sent.task_id}
        assert (await after.service.named(APP, "a", ended_too=False)).started_at == 1.0
        assert (await after.service.placed(waits.sandbox_id, 0)).node_id == ""
        after.exits(runs)
        after.service.serve_waiting()
        assert (await after.service.placed(waits.sandbox_id, 1.0)).node_id == NODE
        await after.service.stop()
        await before.service.stop()

    run(tmp_path, check)


WITH_GPU = SandboxSpec(image_id="im-1", gpu_type="T4", gpu_count=1)


def test_a_restarted_server_is_told_which_gpus_are_in_use(tmp_path: Path) -> None:
    async def check(home: Home) -> None:
        before = World(home)
        runs, never_sent = [await before.create(name=name, spec=WITH_GPU) for name in ("a", "b")]
        before.service.said(SandboxStarted(1, runs.task_id, 1.0))

        after = World(home)
        await after.tasks.start()
        await after.service.start()
        running = RunningTask(runs.task_id, True, [], gpus=["GPU-1"])
        after.service.joined(NODE, Hello(PROTOCOL, NODE, "", Resources(), [], [], [running]))
        assert after.room.counted == {runs.task_id: ["GPU-1"]}
        await asyncio.sleep(0)
        assert after.nodes.of(StartSandbox) == [], "its GPU may be another's now"
        after.service.serve_waiting()
        await after.service.placed(never_sent.sandbox_id, 1.0)
        await asyncio.sleep(0)
        (start,) = (each for each in after.nodes.sent if isinstance(each, StartSandbox))
        assert (start.task_id, start.gpus) == (never_sent.task_id, ["GPU-new"])
        await after.service.stop()
        await before.service.stop()

    run(tmp_path, check)


def test_who_waits_for_a_gpu_is_in_nobody_elses_way(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.room.size = 0
        first = await world.create("1", spec=WITH_GPU)
        other = msgspec.structs.replace(WITH_GPU, gpu_type="L4")
        world.room.size = 2
        behind = await world.create("2", spec=WITH_GPU)
        plain, elsewhere = await world.create("3"), await world.create("4", spec=other)
        assert (first.node_id, behind.node_id) == ("", "")
        assert (plain.node_id, elsewhere.node_id) == (NODE, NODE)
        assert [spec.gpu_type for spec in world.service.waiting_for_gpus()] == ["T4", "T4"]

    world(tmp_path, scenario)


def test_who_waits_for_a_whole_machine_is_in_nobody_elses_way(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        small, large = SPEC, msgspec.structs.replace(SPEC, memory_mb=64_000)
        first = await world.create("1", spec=small)
        waits, behind = await world.create("2", spec=large), await world.create("3", spec=large)
        passes, late = await world.create("4", spec=small), await world.create("5", spec=small)
        assert [each.node_id for each in (waits, behind, passes, late)] == ["", "", NODE, ""]
        world.exits(first)
        world.service.serve_waiting()
        assert (await world.service.placed(late.sandbox_id, 1.0)).node_id == NODE
        world.exits(passes)
        world.service.serve_waiting()
        assert (await world.service.placed(waits.sandbox_id, 0)).node_id == ""
        world.exits(late)
        world.service.serve_waiting()
        assert (await world.service.placed(waits.sandbox_id, 1.0)).node_id == NODE
        assert (await world.service.placed(behind.sandbox_id, 0)).node_id == ""

    world(tmp_path, scenario, room=2)


@pytest.mark.parametrize("how", ["restarted", "lost"])
def test_what_went_with_its_node_is_reported(tmp_path: Path, how: str) -> None:
    async def scenario(world: World) -> None:
        record = await world.create()
        world.service.said(SandboxStarted(1, record.task_id, 1.0))
        if how == "restarted":
            assert world.service.joined(NODE, hello([])) == set()
        else:
            world.service.node_lost(NODE)
        ended = await world.service.wait(record.sandbox_id, 0)
        assert ended.result is not None
        assert ended.result.status == STATUS_INTERNAL_FAILURE
        assert "node" in ended.result.exception
        assert world.room.taken == set()

    world(tmp_path, scenario)


def test_lists_are_newest_first_and_paged(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        made = [await world.create() for _ in range(5)]
        await world.service.set_tags(made[1].sandbox_id, {"k": "v"})
        world.exits(made[2])
        alive = await world.service.list([APP], tags={}, before=0.0, ended_too=False)
        order = [record.sandbox_id for record in alive]
        assert order == [made[index].sandbox_id for index in (4, 3, 1, 0)]
        older = await world.service.list([APP], tags={}, before=made[3].created_at, ended_too=True)
        assert [each.sandbox_id for each in older] == [made[i].sandbox_id for i in (2, 1, 0)]
        tagged = await world.service.list([APP], tags={"k": "v"}, before=0.0, ended_too=True)
        assert [each.sandbox_id for each in tagged] == [made[1].sandbox_id]
        assert await world.service.list(["ap-2"], tags={}, before=0.0, ended_too=True) == []

    world(tmp_path, scenario)


def test_an_app_s_end_waits_for_its_sandboxes(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        record = await world.create()
        stopping = asyncio.create_task(world.service.stop_app(APP))
        with suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.shield(stopping)
        assert not stopping.done()
        assert world.nodes.of(StopTask) == [record.task_id]
        world.exits(record, -9)
        await stopping

    world(tmp_path, scenario)


def test_a_secret_without_an_id_is_refused(tmp_path: Path) -> None:
    """It is not taken for one that was sent along."""

    async def scenario(world: World) -> None:
        with pytest.raises(InvalidError, match="no id"):
            world.service.sealed("sb-1", ["", {"SECRET": "value"}])

    world(tmp_path, scenario)
