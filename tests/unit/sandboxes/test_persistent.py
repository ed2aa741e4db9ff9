"""Persistent sandboxes: which session runs, and with which files the next begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.feature_home import Home, run

from homeport.kernel.errors import InvalidError, NotFoundError, UnavailableError
from homeport.sandboxes.model import (
    SandboxRecord,
    SandboxResult,
    SandboxSpec,
    exit_image_id,
    new_ids,
)
from homeport.sandboxes.persistent import PersistentSandboxes, PersistentStore

SPEC = SandboxSpec(image_id="im-base", mount_ids=["mo-1"])
APP = "ap-1"


class FakeSandboxes:
    """Sandboxes that end when they are told to, leaving files or not."""

    def __init__(self) -> None:
        self.made: dict[str, SandboxRecord] = {}
        self.sources: list[Any] = []

    async def create(
        self, app_id: str, spec: SandboxSpec, *, seed: str, sources: Any, **_: Any
    ) -> SandboxRecord:
        sandbox_id, task_id = new_ids(seed, is_v2=True)
        self.sources.append(sources)
        record = SandboxRecord(
            sandbox_id=sandbox_id,
            task_id=task_id,
            app_id=app_id,
            is_v2=True,
            name="",
            tags={},
            spec=spec,
            created_at=1.0,
        )
        return self.made.setdefault(sandbox_id, record)

    async def find(self, sandbox_id: str) -> SandboxRecord | None:
        return self.made.get(sandbox_id)

    async def exit_snapshot(self, sandbox_id: str, timeout_s: float) -> str | None:
        record = self.made[sandbox_id]
        if not record.is_over:
            return None
        if not record.exit_image_id:
            raise NotFoundError("it left nothing")
        return record.exit_image_id

    async def terminate(self, sandbox_id: str) -> SandboxResult | None:
        self.change(sandbox_id, terminated_at=2.0)
        return None

    def change(self, sandbox_id: str, **changes: Any) -> None:
        self.made[sandbox_id] = msgspec.structs.replace(self.made[sandbox_id], **changes)

    def end(self, sandbox_id: str, *, leaves: bool = True) -> None:
        image_id = exit_image_id(self.made[sandbox_id].task_id) if leaves else ""
        self.change(sandbox_id, result=SandboxResult(3, 137), exit_image_id=image_id)


async def opened(
    home: Home, sandboxes: FakeSandboxes, images: tuple[str, ...] = ()
) -> PersistentSandboxes:
    service = PersistentSandboxes(
        PersistentStore(home.database), sandboxes, lambda image_id: image_id in images
    )
    await service.start()
    return service


def test_sessions_follow_each_other_with_the_files(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        sandboxes = FakeSandboxes()
        service = await opened(home, sandboxes)
        made = await service.create(APP, SPEC, ["st-1"], seed="s", is_repeat=False)
        again = await service.create(APP, SPEC, ["st-1"], seed="s", is_repeat=True)
        assert again == made
        assert len(sandboxes.made) == 1
        first = made.session_id
        assert sandboxes.made[first].spec.exit_snapshot
        assert await service.running(made.persistent_id) == first
        assert await service.resume(made.persistent_id) == first

        await sandboxes.terminate(first)
        assert await service.running(made.persistent_id) == ""
        with pytest.raises(UnavailableError):
            await service.resume(made.persistent_id)

        sandboxes.end(first)
        second = await service.resume(made.persistent_id)
        begun = sandboxes.made[second].spec
        assert begun.image_id == exit_image_id(sandboxes.made[first].task_id)
        assert begun.mount_ids == []
        assert sandboxes.sources == [["st-1"], ["st-1"]]
        assert begun.image_id in service.images_in_use()

        sandboxes.end(second, leaves=False)  # lost with its node
        third = await service.resume(made.persistent_id)
        assert sandboxes.made[third].spec.image_id == begun.image_id

    run(tmp_path, scenario)


def test_they_outlast_the_server_and_the_records_of_their_sessions(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        sandboxes = FakeSandboxes()
        made = await (await opened(home, sandboxes)).create(APP, SPEC, [], seed="", is_repeat=False)
        sandboxes.end(made.session_id)
        left = exit_image_id(sandboxes.made.pop(made.session_id).task_id)
        service = await opened(home, sandboxes, images=(left,))
        session = await service.resume(made.persistent_id)
        assert sandboxes.made[session].spec.image_id == left

    run(tmp_path, scenario)


def test_the_end_is_for_good(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        sandboxes = FakeSandboxes()
        service = await opened(home, sandboxes)
        made = await service.create(APP, SPEC, [], seed="", is_repeat=False)
        await service.terminate(made.persistent_id)
        assert sandboxes.made[made.session_id].terminated_at
        with pytest.raises(InvalidError):
            await service.resume(made.persistent_id)
        assert service.images_in_use() == set()
        assert await service.prune() == 0
        sandboxes.made.clear()
        assert await service.prune() == 1
        with pytest.raises(NotFoundError):
            await (await opened(home, sandboxes)).running(made.persistent_id)

    run(tmp_path, scenario)
