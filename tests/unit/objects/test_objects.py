"""Named and ephemeral objects, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy.engine import Connection
from tests.unit.feature_home import Home, run

from homeport.environments.model import Environment
from homeport.kernel import ids
from homeport.kernel.errors import AlreadyExistsError, InvalidError, NotFoundError
from homeport.objects.model import Creation, Kind, StoredObject
from homeport.objects.service import Objects
from homeport.objects.store import ObjectStore
from homeport.storage.operations import OperationLog

BOX = Kind("box", ids.DICT, "Box")


class Erased:
    """The feature's own deletion."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.failing = False

    def __call__(self, _connection: Connection, gone: Sequence[str]) -> None:
        if self.failing:
            raise OSError("disk full")
        self.ids.extend(gone)


async def opened(
    home: Home, erase: Erased | None = None, *, timeout_s: float = 900.0, kind: Kind = BOX
) -> Objects:
    objects = Objects(
        kind,
        ObjectStore(home.database),
        home.clock,
        erase=erase or Erased(),
        operations=OperationLog(home.database, home.clock),
        ephemeral_timeout_s=timeout_s,
    )
    await objects.start()
    return objects


async def made(objects: Objects, environment: Environment, name: str) -> StoredObject:
    return await objects.get_or_create(environment, name, Creation.FAIL_IF_EXISTS)


def test_names_and_creation(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        objects, main = await opened(home), home.environments.default
        with pytest.raises(NotFoundError, match=r"Box 'a' not found in environment 'main'"):
            await objects.get_or_create(main, "a", Creation.LOOK_UP)
        first = await objects.get_or_create(main, "a", Creation.IF_MISSING, created_by="ak-1")
        assert first.id.startswith("di-")
        assert first.created_by == "ak-1"
        assert await objects.get_or_create(main, "a", Creation.LOOK_UP) == first
        assert await objects.get_or_create(main, "a", Creation.IF_MISSING) == first
        with pytest.raises(AlreadyExistsError, match="Box 'a' already exists"):
            await made(objects, main, "a")
        other = await home.environments.create("other")
        assert (await made(objects, other, "a")).id != first.id
        for name in ("", "a b", "x" * 65, "ap-" + "a" * 22, "ä"):
            with pytest.raises(InvalidError, match="not a Box name"):
                await made(objects, main, name)

    run(tmp_path, scenario)


def test_a_repeated_creation_finds_the_first(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        objects, main = await opened(home), home.environments.default
        for creation in (Creation.FAIL_IF_EXISTS, Creation.EPHEMERAL):
            object_id = ids.new(ids.DICT)
            first = await objects.get_or_create(main, "a", creation, object_id=object_id)
            again = await objects.get_or_create(main, "a", creation, object_id=object_id)
            assert again == first

    run(tmp_path, scenario)


def test_creations_at_once_make_one(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        objects, main = await opened(home), home.environments.default
        found = await asyncio.gather(
            *(objects.get_or_create(main, "a", Creation.IF_MISSING) for _ in range(20))
        )
        assert len({item.id for item in found}) == 1

    run(tmp_path, scenario)


def test_kinds_do_not_see_each_other(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        main = home.environments.default
        boxes = await opened(home)
        await made(boxes, main, "a")
        crates = await opened(home, kind=Kind("crate", ids.QUEUE, "Crate"))
        assert crates.all() == []
        await made(crates, main, "a")

    run(tmp_path, scenario)


def test_listing_pages_newest_first(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        objects, main = await opened(home), home.environments.default
        for number in range(25):
            await made(objects, main, f"n{number}")
        await objects.get_or_create(main, "", Creation.EPHEMERAL)
        names: list[str] = []
        before = home.clock.now() - 30  # a client's clock that is behind
        while True:
            page = objects.list(main, created_before=before, count=10)
            names += [item.name for item in page]
            if len(page) < 10:
                break
            before = page[-1].created_at
        assert names == [f"n{number}" for number in reversed(range(25))]
        assert len(objects.list(main, created_before=0.0, count=0)) == 25
        assert objects.list(main, created_before=home.clock.now() - 3600, count=10) == []

    run(tmp_path, scenario)


def test_creation_times_differ_even_if_the_clock_stands(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        objects, main = await opened(home), home.environments.default
        times: list[float] = []
        for number in range(5):
            home.clock.offset -= 10
            times.append((await made(objects, main, f"n{number}")).created_at)
        assert times == sorted(set(times))

    run(tmp_path, scenario)


def test_rename(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        objects, main = await opened(home), home.environments.default
        item, other = await made(objects, main, "a"), await made(objects, main, "b")
        with pytest.raises(AlreadyExistsError):
            await objects.rename(item.id, "b")
        with pytest.raises(InvalidError):
            await objects.rename(item.id, "no name")
        await objects.rename(item.id, "c")
        assert objects.named(main, "c").id == item.id
        with pytest.raises(NotFoundError):
            objects.named(main, "a")
        await objects.rename(other.id, "a")
        again = await opened(home)
        assert {box.name for box in again.all()} == {"a", "c"}

    run(tmp_path, scenario)


def test_delete_takes_the_features_rows_along(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        erase = Erased()
        objects, main = await opened(home, erase), home.environments.default
        told: list[str] = []

        async def gone(items: Sequence[StoredObject]) -> None:
            told.extend(item.id for item in items)

        objects.on_gone(gone)
        item = await made(objects, main, "a")
        erase.failing = True
        with pytest.raises(OSError, match="disk full"):
            await objects.delete(item.id)
        assert objects.get(item.id) == item
        assert told == []
        erase.failing = False
        await objects.delete(item.id)
        assert erase.ids == told == [item.id]
        with pytest.raises(NotFoundError, match="not found"):
            await objects.delete(item.id)
        assert (await opened(home)).all() == []

    run(tmp_path, scenario)


def test_an_environment_goes_with_its_objects(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        objects, main = await opened(home), home.environments.default
        other = await home.environments.create("other")
        kept = await made(objects, main, "a")
        await made(objects, other, "a")
        await objects.get_or_create(other, "", Creation.EPHEMERAL)
        home.environments.on_deleting(objects.delete_of_environment)
        await home.environments.delete("other")
        assert objects.all() == [kept]

    run(tmp_path, scenario)


def test_silent_ephemeral_objects_go(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        objects, main = await opened(home, timeout_s=1.0), home.environments.default
        gone = asyncio.Event()

        async def tell(items: Sequence[StoredObject]) -> None:
            assert [item.id for item in items] == [silent.id]
            gone.set()

        objects.on_gone(tell)
        silent = await objects.get_or_create(main, "", Creation.EPHEMERAL)
        alive = await objects.get_or_create(main, "", Creation.EPHEMERAL)
        assert alive.name == ""

        async def beat() -> None:
            while not gone.is_set():
                objects.heartbeat(alive.id)
                await asyncio.sleep(0.05)

        beating = asyncio.create_task(beat())
        async with asyncio.timeout(30):
            await gone.wait()
        await beating
        assert objects.all() == [alive]
        with pytest.raises(NotFoundError):
            objects.heartbeat(silent.id)
        await objects.stop()

    run(tmp_path, scenario)
