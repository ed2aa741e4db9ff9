"""Ended apps go with all that is theirs, when nobody can ask for it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.unit.feature_home import SettableClock

from homeport.apps.model import App, AppState, Deployment
from homeport.apps.retention import EndedApps
from homeport.apps.service import AppService
from homeport.apps.store import AppStore
from homeport.calls.model import CallType, Cursor, Input, Invocation, Output
from homeport.calls.service import CallService, InputSpec
from homeport.calls.store import CallStore
from homeport.environments.model import Environment
from homeport.environments.service import EnvironmentService
from homeport.functions.model import ClassRecord, FunctionRecord, Layout
from homeport.functions.service import FunctionService
from homeport.functions.store import FunctionStore
from homeport.kernel.errors import NotFoundError
from homeport.link.messages import STATUS_SUCCESS, Result
from homeport.secrets.crypt import SecretBox
from homeport.secrets.service import SecretService
from homeport.secrets.store import SecretStore
from homeport.storage.database import Database
from homeport.storage.operations import OperationLog

DAY_S = 86400.0
RETENTION_S = 7 * DAY_S
TABLES = ("apps", "functions", "classes", "calls", "inputs", "outputs", "secrets")


class Idle:
    """Runs nothing."""

    async def stop_app(self, app_id: str, reason: str) -> None: ...

    async def publish(self, app: App) -> None: ...

    def has_work(self, app_id: str) -> bool:
        return False

    def enqueue(self, inputs: Sequence[Input]) -> None: ...

    def cancel(self, inputs: Sequence[Input], *, terminate_containers: bool) -> None: ...

    def work_finished(self, app_id: str) -> None: ...

    def finish(self, app_id: str) -> None: ...

    def reopen(self, app_id: str) -> None: ...


@dataclass
class Installation:
    """The features that keep something for apps."""

    clock: SettableClock
    database: Database
    environment: Environment
    apps: AppService
    functions: FunctionService
    calls: CallService
    secrets: SecretService
    ended: EndedApps
    needed: set[str]

    async def app(self, state: AppState = AppState.EPHEMERAL) -> App:
        """An app with a function, a class, a secret and a call with a result."""
        app = await self.apps.create(description="x", environment="main", state=state, tags={})
        name = app.app_id.removeprefix("ap-")
        await self.functions.save(
            FunctionRecord(
                function_id=f"fu-{name}",
                app_id=app.app_id,
                tag="f",
                handle=b"",
                created_at=self.clock.now(),
            )
        )
        await self.functions.save_class(ClassRecord(f"cs-{name}", app.app_id))
        await self.secrets.create_anonymous(self.environment, {"A": "1"}, app_id=app.app_id)
        await self.call(app)
        return app

    async def call(self, app: App, *, finished: bool = True) -> str:
        call = await self.calls.create(
            function_id=app.app_id.replace("ap-", "fu-"),
            app_id=app.app_id,
            type_=CallType.UNARY,
            invocation=Invocation.ASYNC,
            parent_input_id="",
            inputs=[InputSpec(0, b"args", "", 1, "")],
            key="",
        )
        if finished:
            now = self.clock.now()
            outputs = [
                (item, Output(item.input_id, 0, Result(STATUS_SUCCESS), 1, "ta-1", now, now))
                for item in call.inputs.values()
            ]
            await asyncio.gather(*self.calls.finish(outputs))
        return call.call_id

    async def rows(self) -> dict[str, int]:
        def read(connection: sa.Connection) -> dict[str, int]:
            return {
                name: connection.execute(sa.text(f"SELECT count(*) FROM {name}")).scalar_one()
                for name in TABLES
            }

        return await self.database.read(read)


def run(path: Path, scenario: Callable[[Installation], Awaitable[None]]) -> None:
    async def main() -> None:
        clock, idle = SettableClock(), Idle()
        database = Database.sqlite(path / "homeport.db")
        await database.start()
        environments = EnvironmentService(database, clock, OperationLog(database, clock))
        await environments.start()
        apps = AppService(AppStore(database), idle, idle, clock, heartbeat_timeout_s=120.0)
        functions = FunctionService(FunctionStore(database))
        calls = CallService(
            CallStore(database),
            idle,
            clock,
            inputs_pending_max=100,
            result_retention_s=RETENTION_S,
            abandoned_call_s=10,
        )
        secrets = SecretService(
            SecretStore(database), SecretBox(b"s" * 32), OperationLog(database, clock), clock=clock
        )
        needed: set[str] = set()

        async def needed_apps() -> set[str]:
            return needed

        ended = EndedApps(
            apps,
            calls,
            functions,
            secrets,
            retention_s=RETENTION_S,
            clock=clock,
            needed=needed_apps,
        )
        await apps.start()
        await calls.start()
        environment = environments.default
        try:
            await scenario(
                Installation(
                    clock, database, environment, apps, functions, calls, secrets, ended, needed
                )
            )
        finally:
            await calls.stop()
            await apps.stop()
            await database.stop()

    asyncio.run(main())


def test_an_ended_app_goes_with_all_that_is_its_own(tmp_path: Path) -> None:
    async def scenario(here: Installation) -> None:
        kept, gone = await here.app(), await here.app()
        await here.secrets.create(here.environment, "named", {"B": "2"}, if_exists="fail")
        await here.apps.stop_app(gone.app_id, "done")
        here.clock.offset = RETENTION_S - DAY_S
        assert await here.ended.prune() == 0
        here.clock.offset = RETENTION_S + 1.0
        assert await here.ended.prune() == 1
        assert await here.rows() == {**dict.fromkeys(TABLES, 1), "secrets": 2}
        assert [record.app_id for record in here.functions.of_app(kept.app_id)] == [kept.app_id]
        assert here.functions.of_app(gone.app_id) == []
        with pytest.raises(NotFoundError):
            here.apps.get(gone.app_id)
        assert await here.ended.prune() == 0

    run(tmp_path, scenario)


def test_results_outlive_the_end_of_a_detached_app(tmp_path: Path) -> None:
    async def scenario(here: Installation) -> None:
        app = await here.app(AppState.DETACHED)
        await here.apps.stop_app(app.app_id, "done")
        here.clock.offset = DAY_S  # a last result, reported late
        call_id = await here.call(app)
        here.clock.offset = RETENTION_S + 1.0
        assert await here.ended.prune() == 0
        outputs, _, unfinished = await here.calls.outputs_after(call_id, Cursor(), 0.0)
        assert (len(outputs), unfinished) == (1, 0)
        assert here.functions.of_app(app.app_id)
        here.clock.offset = RETENTION_S + DAY_S + 1.0
        assert await here.ended.prune() == 1
        assert set((await here.rows()).values()) == {0}

    run(tmp_path, scenario)


def test_unfinished_work_keeps_its_app(tmp_path: Path) -> None:
    async def scenario(here: Installation) -> None:
        app = await here.app()
        await here.call(app, finished=False)
        await here.apps.stop_app(app.app_id, "done")
        here.clock.offset = 10 * RETENTION_S
        assert await here.ended.prune() == 0

    run(tmp_path, scenario)


def test_what_something_else_needs_keeps_its_app(tmp_path: Path) -> None:
    async def scenario(here: Installation) -> None:
        app = await here.app()
        await here.apps.stop_app(app.app_id, "done")
        here.clock.offset = 10 * RETENTION_S
        here.needed.add(app.app_id)
        assert await here.ended.prune() == 0
        secret = await here.secrets.create_anonymous(
            here.environment, {"A": "1"}, app_id=app.app_id
        )
        named = await here.secrets.create(here.environment, "named", {}, if_exists="fail")
        assert await here.secrets.apps_of([secret.id, named.id, "st-gone"]) == {app.app_id}
        here.needed.clear()
        assert await here.ended.prune() == 1

    run(tmp_path, scenario)


def test_apps_that_were_deployed_stay(tmp_path: Path) -> None:
    async def scenario(here: Installation) -> None:
        app = await here.app(AppState.INITIALIZING)
        await here.apps.publish(
            app.app_id,
            state=AppState.DEPLOYED,
            name="shop",
            layout=Layout(),
            tags={},
            deployment=Deployment(0, 1.0, "1.6.4", ""),
        )
        await here.apps.stop_app(app.app_id, "done")
        here.clock.offset = 10 * RETENTION_S
        assert await here.ended.prune() == 0
        assert here.apps.last_stopped("shop", "main") is not None

    run(tmp_path, scenario)


def test_what_was_deleted_is_not_there_after_a_restart(tmp_path: Path) -> None:
    async def first(here: Installation) -> None:
        app = await here.app()
        await here.apps.stop_app(app.app_id, "done")
        here.clock.offset = RETENTION_S + 1.0
        assert await here.ended.prune() == 1

    async def second(here: Installation) -> None:
        assert set((await here.rows()).values()) == {0}
        assert here.calls.apps_asked_for() == set()

    run(tmp_path, first)
    run(tmp_path, second)
