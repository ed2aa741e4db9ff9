"""Memory snapshots on the server: what is recorded, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.feature_home import Home, run
from tests.unit.sandboxes.test_service import APP, World

from homeport.kernel.errors import (
    AlreadyExistsError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnimplementedError,
)
from homeport.link.messages import (
    STATUS_TERMINATED,
    Answer,
    Message,
    SandboxSnapshot,
    SandboxStarted,
    TakeMemory,
    TaskExited,
    TerminalRef,
    VolumeRef,
)
from homeport.sandboxes.memory import MemorySnapshots, MemorySnapshotStore
from homeport.sandboxes.model import SandboxRecord, SandboxSpec, check_spec, result_of

SPEC = SandboxSpec(image_id="im-1", memory_snapshots=True, mount_ids=["mo-1"])


class FakeImages:
    """Remembers what was added."""

    def __init__(self) -> None:
        self.added: dict[str, tuple[str, list[str]]] = {}

    async def add(self, image_id: str, *, base_id: str, layers: list[str], **_: Any) -> None:
        self.added[image_id] = (base_id, list(layers))


class FakeNode:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[Message] = []
        self.failure: Exception | None = None
        self.go = asyncio.Event()

    async def ask(self, node_id: str, make: Callable[[int], Message], timeout_s: float) -> Answer:
        self.asked.append(make(1))
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        return Answer(1)


class MemoryWorld(World):
    def __init__(self, home: Home) -> None:
        super().__init__(home)
        self.images, self.node, self.secrets = FakeImages(), FakeNode(), home.secrets
        self.clock = home.clock
        self.memory = MemorySnapshots(
            MemorySnapshotStore(home.database),
            self.service,
            self.node,
            self.images,
            home.secrets,
            home.clock,
        )
        self.service.use_memory(self.memory.record)

    async def told(self, record: SandboxRecord, snapshot_id: str) -> None:
        """Its node has taken that snapshot of it, and it has ended."""
        layers = ["mounted", "files", "memory"]
        said = SandboxSnapshot(1, record.task_id, snapshot_id, layers, 60.0, memory=True)
        for durable in self.service.said(said) or ():
            await durable
        self.exits(record)


def world(path: Path, scenario: Callable[[MemoryWorld], Awaitable[None]]) -> None:
    async def check(home: Home) -> None:
        made = MemoryWorld(home)
        await made.service.start()
        try:
            await scenario(made)
        finally:
            await made.memory.stop()
            await made.service.stop()

    run(path, check)


def test_a_restored_sandbox_has_what_the_first_one_had(tmp_path: Path) -> None:
    async def scenario(world: MemoryWorld) -> None:
        first = await world.create("one", name="box", spec=SPEC)
        await world.told(first, "sn-1")
        snapshot = await world.memory.get("sn-1")
        assert world.images.added == {
            snapshot.files_image_id: ("im-1", ["mounted", "files"]),
            snapshot.memory_image_id: ("", ["memory"]),
        }
        second = await world.memory.restore(
            "sn-1", name=None, is_v2=True, seed="two", is_repeat=False
        )
        assert second.sandbox_id != first.sandbox_id
        assert (second.app_id, second.name) == (APP, "box")
        assert second.spec.image_id == snapshot.files_image_id
        assert second.spec.memory_image_id == snapshot.memory_image_id
        assert second.spec.mount_ids == []
        (sealed,) = second.spec.secrets
        assert world.secrets.open(second.sandbox_id, sealed.sealed) == {"SECRET": "value"}
        assert world.service.images_in_use() == {*world.images.added}
        again = await world.memory.restore(
            "sn-1", name=None, is_v2=True, seed="two", is_repeat=True
        )
        assert again == second
        with pytest.raises(AlreadyExistsError):
            await world.memory.restore("sn-1", name=None, is_v2=True, seed="3", is_repeat=False)
        third = await world.memory.restore("sn-1", name="", is_v2=False, seed="3", is_repeat=False)
        assert third.name == ""

    world(tmp_path, scenario)


def test_a_snapshot_is_taken_once_and_waited_for(tmp_path: Path) -> None:
    async def scenario(world: MemoryWorld) -> None:
        record = await world.create("one", spec=SPEC)
        world.service.said(SandboxStarted(1, record.task_id, 1.0))
        for _ in range(2):
            await world.memory.begin(record.sandbox_id, "sn-1")
        assert await world.memory.outcome("sn-1", 0.0) is None
        await world.told(record, "sn-1")
        world.node.go.set()
        assert await world.memory.outcome("sn-1", 10.0) == ""
        await world.memory.begin(record.sandbox_id, "sn-1")
        assert world.node.asked == [TakeMemory(1, record.task_id, "sn-1")]

    world(tmp_path, scenario)


def test_why_there_is_none(tmp_path: Path) -> None:
    async def scenario(world: MemoryWorld) -> None:
        plain = await world.create("plain")
        with pytest.raises(InvalidError, match="_experimental_enable_snapshot"):
            await world.memory.begin(plain.sandbox_id, "sn-0")
        with pytest.raises(NotFoundError):
            await world.memory.outcome("sn-0", 0.0)
        record = await world.create("one", spec=SPEC)
        world.node.failure = UnavailableError("no room")
        world.node.go.set()
        await world.memory.begin(record.sandbox_id, "sn-1")
        assert await world.memory.outcome("sn-1", 10.0) == "no room"
        with pytest.raises(NotFoundError):
            await world.memory.restore("sn-1", name=None, is_v2=True, seed="", is_repeat=False)

    world(tmp_path, scenario)


def test_snapshots_go_when_their_time_is_over(tmp_path: Path) -> None:
    async def scenario(world: MemoryWorld) -> None:
        await world.told(await world.create("one", spec=SPEC), "sn-1")
        assert await world.memory.prune() == 0
        world.clock.offset = 61.0
        assert await world.memory.prune() == 1
        with pytest.raises(NotFoundError):
            await world.memory.get("sn-1")

    world(tmp_path, scenario)


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        (SandboxSpec(image_id="im", volumes=[VolumeRef("vo", "/v", False, "")]), "volumes"),
        (SandboxSpec(image_id="im", gpu_count=1), "GPUs"),
        (SandboxSpec(image_id="im", terminal=TerminalRef(24, 80, {})), "terminal"),
    ],
)
def test_what_no_memory_snapshot_is_taken_of(spec: SandboxSpec, what: str) -> None:
    check_spec(spec)
    with pytest.raises(UnimplementedError, match=what):
        check_spec(msgspec.structs.replace(spec, memory_snapshots=True))


def test_the_end_by_a_snapshot_is_told_as_that() -> None:
    ended = TaskExited(1, "ta", -9, False, True, [], [], "", "", cut_short="snapshot")
    result = result_of(ended, terminated=False, spec=SPEC)
    assert result.status == STATUS_TERMINATED
    assert "memory snapshot" in result.exception
