"""Apps follow what becomes of their environment."""

from __future__ import annotations

import asyncio
from pathlib import Path

from homeport.apps.model import AppState
from homeport.apps.service import AppService
from homeport.apps.store import AppStore
from homeport.environments.service import EnvironmentService
from homeport.kernel.clock import SystemClock
from homeport.storage.database import Database, metadata
from homeport.storage.operations import OperationLog


class Runtime:
    """Notes which apps were stopped."""

    def __init__(self) -> None:
        self.stopped: list[str] = []

    async def stop_app(self, app_id: str, reason: str) -> None:
        self.stopped.append(app_id)

    async def publish(self, app: object) -> None: ...

    def has_work(self, app_id: str) -> bool:
        return False


class Logs:
    def finish(self, app_id: str) -> None: ...

    def reopen(self, app_id: str) -> None: ...


def test_apps_follow_a_rename_and_end_with_their_environment(tmp_path: Path) -> None:
    async def run() -> None:
        database = Database.sqlite(tmp_path / "homeport.db")
        await database.start()
        await database.write(metadata.create_all)
        runtime = Runtime()
        environments = EnvironmentService(
            database, SystemClock(), OperationLog(database, SystemClock())
        )
        await environments.start()
        apps = AppService(
            AppStore(database), runtime, Logs(), SystemClock(), heartbeat_timeout_s=60.0
        )
        environments.on_deleting(apps.environment_deleting)
        environments.on_renamed(apps.environment_renamed)

        async def create(environment: str) -> str:
            app = await apps.create(
                description="x",
                environment=environment,
                state=AppState.DETACHED,
                tags={},
                key=environment,
            )
            return app.app_id

        try:
            await environments.create("dev")
            here, elsewhere = await create("dev"), await create("main")
            await environments.update("dev", new_name="stage")
            assert apps.get(here).environment == "stage"
            assert apps.get(elsewhere).environment == "main"
            await environments.delete("stage")
            assert runtime.stopped == [here]
            assert apps.get(here).state is AppState.STOPPED
            assert apps.get(elsewhere).is_live
        finally:
            await database.stop()

    asyncio.run(run())
