"""Use cases of apps: create, publish, keep alive, stop, look up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import msgspec
import structlog

from homeport.apps.model import App, AppState, Deployment
from homeport.apps.store import AppStore
from homeport.environments.model import Environment
from homeport.functions.model import Layout
from homeport.functions.service import NO_CHANGE, Switch
from homeport.kernel import ids
from homeport.kernel.clock import Clock
from homeport.kernel.errors import ConflictError, InvalidError, NotFoundError
from homeport.storage.database import Step

log = structlog.get_logger(__name__)

EXPIRY_CHECK_S = 15.0
"""How often silent ephemeral apps are looked for; clients say they are alive every 15 s."""


class AppRuntime(Protocol):
    """What the part that runs things does for apps (the scheduler implements it)."""

    async def stop_app(self, app_id: str, reason: str) -> None:
        """Cancel all inputs of the app, end its containers, wait until they are gone."""
        ...

    async def publish(self, app: App) -> None:
        """The app's layout changed: start minimum containers, retire outdated ones."""
        ...

    def has_work(self, app_id: str) -> bool:
        """Whether inputs of the app are waiting or running."""
        ...


class AppLogs(Protocol):
    """What the log streams do for apps."""

    def finish(self, app_id: str) -> None:
        """No more lines will come: readers are told so."""
        ...

    def reopen(self, app_id: str) -> None:
        """The app runs (again)."""
        ...


class AppService:
    """All apps of the installation, in memory, written through."""

    def __init__(
        self,
        store: AppStore,
        runtime: AppRuntime,
        logs: AppLogs,
        clock: Clock,
        *,
        heartbeat_timeout_s: float,
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._logs = logs
        self._clock = clock
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._apps: dict[str, App] = {}
        self._last_heartbeat: dict[str, float] = {}
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._expiry: asyncio.Task[None] | None = None
        self._on_change: list[Callable[[App], Awaitable[None]]] = []

    def on_change(self, listener: Callable[[App], Awaitable[None]]) -> None:
        """Have ``listener`` called, and waited for, with each app that is published or has ended."""
        self._on_change.append(listener)

    async def _tell(self, app: App) -> None:
        for listener in self._on_change:
            await listener(app)

    async def start(self) -> None:
        """Read the apps of earlier runs; live ephemeral ones get a full heartbeat period."""
        self._apps = {app.app_id: app for app in await self._store.load()}
        now = self._clock.monotonic()
        for app in self._apps.values():
            if app.is_live:
                self._last_heartbeat[app.app_id] = now
                self._logs.reopen(app.app_id)
            else:
                self._logs.finish(app.app_id)
        self._expiry = asyncio.create_task(self._expire_silent_apps())

    async def stop(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        for task in list(self._stopping.values()):
            task.cancel()

    # ── look-ups ────────────────────────────────────────────────────────────────────────────

    def find(self, app_id: str) -> App | None:
        return self._apps.get(app_id)

    def get(self, app_id: str) -> App:
        """The app; raises ``NotFoundError``."""
        app = self._apps.get(app_id)
        if app is None:
            raise NotFoundError(f"App with id {app_id!r} not found")
        return app

    def require_live(self, app_id: str) -> App:
        """The app if it can still run things; raises ``ConflictError`` when it has ended."""
        app = self.get(app_id)
        if not app.is_live:
            raise ConflictError(
                f"App {app.description or app.name!r} ({app_id}) has stopped: "
                "run or deploy it again."
            )
        return app

    def deployed(self, name: str, environment: str) -> App | None:
        """The app currently deployed under ``name``."""
        for app in self._apps.values():
            if (
                app.name == name
                and app.environment == environment
                and app.state in (AppState.DEPLOYED,)
            ):
                return app
        return None

    def all_deployed(self, environment: str) -> Iterable[App]:
        """Every app that is deployed there."""
        return [
            app
            for app in self._apps.values()
            if app.environment == environment and app.state is AppState.DEPLOYED
        ]

    def require_deployed(self, name: str, environment: str) -> App:
        """The deployed app; raises ``NotFoundError`` with what to do."""
        app = self.deployed(name, environment)
        if app is None:
            raise NotFoundError(
                f"App {name!r} not found in environment {environment!r}. Deploy it first "
                f"(`homeport deploy`), or see `homeport app list` for what is deployed."
            )
        return app

    def last_stopped(self, name: str, environment: str) -> App | None:
        """The most recently stopped app of that name."""
        stopped = [
            app
            for app in self._apps.values()
            if app.name == name and app.environment == environment and not app.is_live
        ]
        return max(stopped, key=lambda app: app.stopped_at, default=None)

    def all_live(self) -> Iterable[App]:
        """Every app that can run things."""
        return [app for app in self._apps.values() if app.is_live]

    def ended_before(self, time: float) -> Iterable[App]:
        """Apps that ended before that time (Unix seconds)."""
        return [app for app in self._apps.values() if not app.is_live and app.stopped_at < time]

    def list(self, environment: str) -> list[App]:
        """Apps of an environment, newest first, stopped ones of the last day included."""
        horizon = self._clock.now() - 86400
        return sorted(
            (
                app
                for app in self._apps.values()
                if app.environment == environment and (app.is_live or app.stopped_at > horizon)
            ),
            key=lambda app: app.created_at,
            reverse=True,
        )

    # ── life cycle ──────────────────────────────────────────────────────────────────────────

    async def create(
        self,
        *,
        description: str,
        environment: str,
        state: AppState,
        tags: dict[str, str],
        key: str = "",
        name: str = "",
    ) -> App:
        """A new app; the same ``key`` (idempotency key) gives the same one."""
        app_id = ids.derive(ids.APP, key) if key else ids.new(ids.APP)
        known = self._apps.get(app_id)
        if known is not None:
            return known
        app = App(
            app_id=app_id,
            description=description,
            environment=environment,
            state=state,
            created_at=self._clock.now(),
            name=name,
            tags=tags,
        )
        self._last_heartbeat[app_id] = self._clock.monotonic()
        self._logs.reopen(app_id)
        return await self._save(app)

    async def _save(self, app: App, beside: Sequence[Step] = ()) -> App:
        self._apps[app.app_id] = app
        await self._store.save(app, beside)
        return app

    async def delete(self, app_id: str) -> None:
        """Delete the record of an app that has ended; durable when it returns. Idempotent."""
        self._apps.pop(app_id, None)
        await self._store.delete(app_id)

    def heartbeat(self, app_id: str) -> None:
        """The app's client is alive."""
        self.get(app_id)
        self._last_heartbeat[app_id] = self._clock.monotonic()

    async def publish(
        self,
        app_id: str,
        *,
        state: AppState | None,
        name: str,
        layout: Layout,
        tags: dict[str, str],
        deployment: Deployment | None = None,
        switch: Switch = NO_CHANGE,
        renewed: int | None = None,
    ) -> App:
        """Make ``layout`` the app's content, and ``switch`` the definitions of its functions.

        ``state`` None keeps the state (hot reload). With DEPLOYED, ``name`` becomes the
        app's; an app deployed under it before is stopped. ``renewed`` is the version if its
        containers are to be replaced although their definitions are the same.
        """
        app = self.require_live(app_id)
        changes: dict[str, object] = {"layout": layout, "tags": tags or app.tags}
        if renewed is not None:
            changes["renewed"] = renewed
        if state is not None:
            changes["state"] = state
        if state is AppState.DEPLOYED:
            if not (name or app.name):
                raise InvalidError("a deployment needs a name: modal deploy --name NAME")
            changes["name"] = name or app.name
            changes["description"] = name or app.description
            if deployment is not None:
                app = app.with_deployment(deployment)
            previous = self.deployed(name or app.name, app.environment)
            if previous is not None and previous.app_id != app_id:
                await self.stop_app(previous.app_id, "replaced by a new deployment")
        app = await self._save(msgspec.structs.replace(app, **changes), switch.steps)
        switch.make_live()
        await self._runtime.publish(app)
        await self._tell(app)
        return app

    async def record(self, app_id: str, deployment: Deployment, switch: Switch) -> App:
        """Note a version without making it the live one."""
        app = self.require_live(app_id).with_deployment(deployment)
        return await self._save(app, switch.steps)

    async def set_tags(self, app_id: str, tags: dict[str, str]) -> None:
        await self._save(msgspec.structs.replace(self.get(app_id), tags=tags))

    async def client_disconnected(self, app_id: str, reason: int) -> None:
        """The client that ran the app is gone (RPC ``AppClientDisconnect``).

        Ephemeral apps end with it; detached ones go on while they have work; deployed ones
        are not concerned.
        """
        app = self.find(app_id)
        if app is None or not app.is_live or app.state is AppState.DEPLOYED:
            return
        if app.state is AppState.DETACHED:
            self._last_heartbeat.pop(app_id, None)
            if self._runtime.has_work(app_id):
                return
        # The client waits only for the end of the log stream, so the stop runs behind it.
        self.begin_stop(app_id, f"its client disconnected (reason {reason})")

    def work_finished(self, app_id: str) -> None:
        """Nothing of the app is waiting or running any more: a left detached app ends."""
        app = self._apps.get(app_id)
        if (
            app is not None
            and app.state is AppState.DETACHED
            and app_id not in self._last_heartbeat
        ):
            self.begin_stop(app_id, "its work is done")

    def begin_stop(self, app_id: str, reason: str) -> None:
        """Start stopping the app without waiting for it."""
        if app_id not in self._stopping:
            task = asyncio.create_task(self._stop_app(app_id, reason))
            self._stopping[app_id] = task
            task.add_done_callback(lambda _task: self._stopping.pop(app_id, None))

    async def stop_app(self, app_id: str, reason: str) -> None:
        """Stop the app: cancel its inputs, end its containers, end its log stream. Idempotent."""
        self.get(app_id)
        self.begin_stop(app_id, reason)
        task = self._stopping.get(app_id)
        if task is not None:
            await asyncio.shield(task)

    async def _stop_app(self, app_id: str, reason: str) -> None:
        app = self._apps[app_id]
        if not app.is_live:
            return
        log.info("app stopping", app_id=app_id, reason=reason)
        app = await self._save(
            msgspec.structs.replace(app, state=AppState.STOPPED, stopped_at=self._clock.now())
        )
        self._last_heartbeat.pop(app_id, None)
        try:
            await self._runtime.stop_app(app_id, reason)
            await self._tell(app)
        finally:
            self._logs.finish(app_id)

    # ── environments ────────────────────────────────────────────────────────────────────────

    async def environment_deleting(self, environment: Environment) -> None:
        """Stop all apps of an environment that is being deleted."""
        here = [app for app in self.all_live() if app.environment == environment.name]
        reason = f"its environment {environment.name!r} was deleted"
        await asyncio.gather(*(self.stop_app(app.app_id, reason) for app in here))

    async def environment_renamed(self, old: Environment, new: Environment) -> None:
        """Follow an environment's new name."""
        for app in list(self._apps.values()):
            if app.environment == old.name:
                await self._save(msgspec.structs.replace(app, environment=new.name))

    async def _expire_silent_apps(self) -> None:
        """Stop ephemeral apps whose client no longer says it is alive."""
        while True:
            await asyncio.sleep(EXPIRY_CHECK_S)
            limit = self._clock.monotonic() - self._heartbeat_timeout_s
            for app_id, seen in list(self._last_heartbeat.items()):
                app = self._apps.get(app_id)
                if app is None or seen > limit:
                    continue
                if app.state in (AppState.EPHEMERAL, AppState.INITIALIZING):
                    self.begin_stop(app_id, "its client fell silent")
                elif app.state is AppState.DETACHED:
                    await self.client_disconnected(app_id, 0)
