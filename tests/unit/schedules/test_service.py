"""The loop that runs what is due, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from homeport.apps.model import App, AppState
from homeport.functions.model import FunctionRecord, Layout
from homeport.schedules.model import Cron, Period, Schedule
from homeport.schedules.service import RUNS_KEPT, ScheduleService
from homeport.schedules.store import ScheduleStore
from homeport.storage.database import Database, Step

START = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC


class Clock:
    """Shows what it is told to."""

    def __init__(self) -> None:
        self.time = START
        self._waiting: list[tuple[float, asyncio.Event]] = []

    def now(self) -> float:
        return self.time

    async def reached(self, when: float) -> None:
        if when > self.time:
            event = asyncio.Event()
            self._waiting.append((when, event))
            await event.wait()

    async def set(self, time: float) -> None:
        went_back, self.time = time < self.time, time
        for when, event in self._waiting:
            if went_back or when <= time:
                event.set()
        self._waiting = [each for each in self._waiting if not each[1].is_set()]
        await asyncio.sleep(0.05)


@dataclass
class Record:
    schedule: Schedule | None
    display_name: str = "job"


@dataclass
class Run:
    call_id: str
    due: float
    unfinished: int = 0


@dataclass
class World:
    """Stand-ins for the features around."""

    database: Database
    clock: Clock = field(default_factory=Clock)
    apps: dict[str, App] = field(default_factory=dict[str, App])
    schedules: dict[str, Schedule | None] = field(default_factory=dict[str, "Schedule | None"])
    runs: list[Run] = field(default_factory=list[Run])
    lines: list[str] = field(default_factory=list[str])
    cleared: list[str] = field(default_factory=list[str])
    unfinished: int = 0
    fail: bool = False

    async def started(self) -> ScheduleService:
        service = ScheduleService(
            ScheduleStore(self.database),
            self,
            _Functions(self),
            self,
            self,
            self.clock,  # pyright: ignore[reportArgumentType]
        )
        await service.start()
        await asyncio.sleep(0.05)
        return service

    def app(self, state: AppState = AppState.DEPLOYED, app_id: str = "ap-1") -> App:
        layout = Layout({name: name for name in self.schedules})
        app = App(
            app_id=app_id,
            description="",
            environment="main",
            state=state,
            created_at=0.0,
            layout=layout,
        )
        self.apps[app_id] = app
        return app

    def find(self, app_id: str) -> App | None:
        return self.apps.get(app_id)

    def all_live(self) -> list[App]:
        return [app for app in self.apps.values() if app.is_live]

    async def create_recorded(
        self, *, function_id: str, app_id: str, key: str, beside: Sequence[Step]
    ) -> Run:
        if self.fail:
            raise OSError("disk full")
        await self.database.append_all(beside)
        run = Run(key, float(key.split()[-1]), self.unfinished)
        self.runs.append(run)
        return run

    def clear(self, call_id: str) -> None:
        self.cleared.append(call_id)

    def system(self, app_id: str, text: str, *, task_id: str = "", function_id: str = "") -> None:
        self.lines.append(text)

    def due(self) -> list[float]:
        """Seconds after the start of the runs there were."""
        return [run.due - START for run in self.runs]


class _Functions:
    def __init__(self, world: World) -> None:
        self._world = world

    def find(self, function_id: str) -> FunctionRecord | None:
        @dataclass
        class Found:
            spec: Record

        return Found(Record(self._world.schedules[function_id]))  # type: ignore[return-value]


def in_world(tmp_path: Path, scenario) -> World:
    async def main() -> World:
        database = Database.sqlite(tmp_path / "x.db")
        await database.start()
        world = World(database)
        try:
            async with asyncio.timeout(20):
                await scenario(world)
        finally:
            await database.stop()
        return world

    return asyncio.run(main())


def test_runs_at_its_moments(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.schedules["f"] = Period(minutes=10)
        service = await world.started()
        await service.app_changed(world.app())
        for minute in (5, 10, 15, 20, 30):
            await world.clock.set(START + 60 * minute)
        await service.stop()

    assert in_world(tmp_path, scenario).due() == [600, 1200, 1800]


@pytest.mark.parametrize("state", [AppState.EPHEMERAL, AppState.DETACHED])
def test_only_deployed_apps_run_by_the_clock(tmp_path: Path, state: AppState) -> None:
    async def scenario(world: World) -> None:
        world.schedules["f"] = Period(minutes=1)
        service = await world.started()
        await service.app_changed(world.app(state))
        await world.clock.set(START + 600)
        await service.stop()

    assert in_world(tmp_path, scenario).runs == []


def test_redeploy_keeps_the_phase_of_an_unchanged_period(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.schedules["f"] = Period(hours=1)
        service = await world.started()
        await service.app_changed(world.app())
        await world.clock.set(START + 1800)
        await service.app_changed(world.app())
        await world.clock.set(START + 3600)
        world.schedules["f"] = Period(hours=2)
        await service.app_changed(world.app())
        await world.clock.set(START + 3600 + 7200)
        await service.stop()

    assert in_world(tmp_path, scenario).due() == [3600, 3600 + 7200]


def test_stopped_app_runs_no_more(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.schedules["f"] = Period(minutes=1)
        service = await world.started()
        await service.app_changed(world.app())
        await world.clock.set(START + 60)
        await service.app_changed(world.app(AppState.STOPPED))
        await world.clock.set(START + 600)
        assert service.find("f") is None
        await service.stop()

    assert in_world(tmp_path, scenario).due() == [60]


def test_missed_runs_while_the_server_was_down(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.schedules["f"] = Cron("0 * * * *")
        service = await world.started()
        await service.app_changed(world.app())
        await service.stop()
        await world.clock.set(START + 5 * 3600 + 60)
        service = await world.started()
        await service.stop()
        service = await world.started()  # and not once more
        await service.stop()

    world = in_world(tmp_path, scenario)
    assert world.due() == [5 * 3600]
    assert "were missed" in world.lines[0]


def test_clock_set_back_and_forth(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.schedules["f"] = Cron("0 * * * *")
        service = await world.started()
        await service.app_changed(world.app())
        for hours in (1.0, 0.5, 1.0, 1.5, 2.0, 90_000.0, 3.0, 4.0):
            await world.clock.set(START + hours * 3600)
        await service.stop()

    hours = [due / 3600 for due in in_world(tmp_path, scenario).due()]
    assert hours == [1.0, 2.0, 90_000.0, 4.0]


def test_app_that_ended_while_the_server_was_down(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.schedules["f"] = Period(minutes=1)
        service = await world.started()
        await service.app_changed(world.app())
        await service.stop()
        world.app(AppState.STOPPED)
        await world.clock.set(START + 600)
        service = await world.started()
        assert service.find("f") is None
        await service.stop()

    assert in_world(tmp_path, scenario).runs == []


def test_slow_function_does_not_pile_up_runs(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        world.schedules["f"] = Period(minutes=1)
        world.unfinished = 1
        service = await world.started()
        await service.app_changed(world.app())
        for minute in range(RUNS_KEPT + 3):
            await world.clock.set(START + 60 * (minute + 1))
        world.runs[0].unfinished = 0
        await world.clock.set(START + 60 * (RUNS_KEPT + 4))
        await service.stop()

    world = in_world(tmp_path, scenario)
    assert len(world.runs) == RUNS_KEPT + 1
    assert len(world.lines) == 3
    assert "is left out" in world.lines[0]
    assert world.cleared == [world.runs[0].call_id]


def test_a_run_that_cannot_be_recorded_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homeport.schedules.service._RETRY_S", 0.01)

    async def scenario(world: World) -> None:
        world.schedules["f"] = Period(minutes=1)
        service = await world.started()
        await service.app_changed(world.app())
        world.fail = True
        await world.clock.set(START + 60)
        world.fail = False
        await asyncio.sleep(0.1)
        await service.stop()

    assert in_world(tmp_path, scenario).due() == [60]
