"""Use cases of environments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from homeport.environments.model import Environment, check_name, web_suffix_for
from homeport.environments.service import EnvironmentService
from homeport.kernel.clock import SystemClock
from homeport.kernel.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    NotFoundError,
    UnimplementedError,
)
from homeport.storage.database import Database, metadata
from homeport.storage.operations import OperationLog


@asynccontextmanager
async def opened(home: Path) -> AsyncIterator[EnvironmentService]:
    database = Database.sqlite(home / "homeport.db")
    await database.start()
    await database.write(metadata.create_all)
    service = EnvironmentService(database, SystemClock(), OperationLog(database, SystemClock()))
    await service.start()
    try:
        yield service
    finally:
        await database.stop()


def run(home: Path, program: Callable[[EnvironmentService], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened(home) as service:
            await program(service)

    asyncio.run(main())


def test_an_installation_starts_with_main_as_default(tmp_path: Path) -> None:
    async def program(service: EnvironmentService) -> None:
        assert [(e.name, e.is_default, e.web_suffix) for e in service.list()] == [
            ("main", True, "")
        ]
        assert service.resolve("") is service.default

    run(tmp_path, program)


def test_resolves_a_name_then_the_callers_default_then_the_workspaces(tmp_path: Path) -> None:
    async def program(service: EnvironmentService) -> None:
        await service.create("dev")
        await service.create("stage")
        assert service.resolve("dev", "stage").name == "dev"
        assert service.resolve("", "stage").name == "stage"
        assert service.resolve("").name == "main"
        with pytest.raises(NotFoundError, match="'prod' not found; there are: main, dev, stage"):
            service.resolve("prod")

    run(tmp_path, program)


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    before: list[Environment] = []

    async def first(service: EnvironmentService) -> None:
        await service.create("dev")
        await service.update("dev", web_suffix="d", image_builder_version="2024.10")
        await service.set_default("dev")
        before.extend(service.list())

    async def second(service: EnvironmentService) -> None:
        assert service.list() == before
        assert service.default.name == "dev"

    run(tmp_path, first)
    run(tmp_path, second)


def test_creating_the_same_once_more_needs_the_same_id(tmp_path: Path) -> None:
    async def program(service: EnvironmentService) -> None:
        made = await service.create("dev", environment_id="en-1234567890123456789012")
        again = await service.create("dev", environment_id="en-1234567890123456789012")
        assert again is made
        with pytest.raises(AlreadyExistsError):
            await service.create("dev")

    run(tmp_path, program)


def test_ensure_finds_or_creates(tmp_path: Path) -> None:
    async def program(service: EnvironmentService) -> None:
        assert (await service.ensure("")).name == "main"
        first, second = await asyncio.gather(service.ensure("dev"), service.ensure("dev"))
        assert first == second

    run(tmp_path, program)


def test_web_suffixes_stay_unique(tmp_path: Path) -> None:
    async def program(service: EnvironmentService) -> None:
        assert (await service.create("My_Env")).web_suffix == "my-env"
        assert (await service.create("my-env")).web_suffix == "my-env-2"
        with pytest.raises(AlreadyExistsError, match="'My_Env' has the web suffix"):
            await service.update("my-env", web_suffix="my-env")
        with pytest.raises(InvalidError, match="cannot be a web suffix"):
            await service.update("my-env", web_suffix="Not A Host")

    run(tmp_path, program)


def test_a_rename_keeps_the_id_and_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []

    async def renamed(old: Environment, new: Environment) -> None:
        told.append((old.name, new.name))

    async def program(service: EnvironmentService) -> None:
        service.on_renamed(renamed)
        made = await service.create("dev")
        await service.update("dev", image_builder_version="")
        changed = await service.update("dev", new_name="stage")
        assert changed.environment_id == made.environment_id
        assert service.resolve("stage") == changed
        with pytest.raises(NotFoundError):
            service.resolve("dev")
        with pytest.raises(AlreadyExistsError):
            await service.update("stage", new_name="main")
        await service.update("main", new_name="home")
        assert service.default.name == "home"

    run(tmp_path, program)
    assert told == [("dev", "stage"), ("main", "home")]


def test_deleting_asks_what_it_holds_first(tmp_path: Path) -> None:
    async def program(service: EnvironmentService) -> None:
        asked: list[str] = []

        async def deleting(environment: Environment) -> None:
            asked.append(environment.name)
            if len(asked) == 1:
                raise ConflictError("an app still runs")

        service.on_deleting(deleting)
        await service.create("dev")
        with pytest.raises(ConflictError, match="an app still runs"):
            await service.delete("dev")
        assert service.resolve("dev")
        await service.delete("dev")
        assert [e.name for e in service.list()] == ["main"]
        with pytest.raises(ConflictError, match="default one"):
            await service.delete("main")

    run(tmp_path, program)


def test_nothing_is_left_behind_by_a_change_that_nobody_follows(tmp_path: Path) -> None:
    async def program(service: EnvironmentService) -> None:
        await service.create("dev")
        with pytest.raises(UnimplementedError, match="cannot rename"):
            await service.update("dev", new_name="stage")
        with pytest.raises(UnimplementedError, match="cannot delete"):
            await service.delete("dev")

    run(tmp_path, program)


@pytest.mark.parametrize("name", ["a", "A1", "my-env_2", "x" * 64])
def test_good_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "-a", "_a", "a b", "a.b", "ä", "en-x", "x" * 65, "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidError):
        check_name(name)


@pytest.mark.parametrize(
    ("name", "suffix"), [("dev", "dev"), ("My_Env", "my-env"), ("a--b", "a-b"), ("a_", "a")]
)
def test_suffixes_are_host_names(name: str, suffix: str) -> None:
    assert web_suffix_for(name) == suffix
