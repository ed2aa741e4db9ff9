"""Versions of deployed apps: publish, roll back, roll over, promote."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from homeport.apps.model import App, AppState, Deployment
from homeport.apps.service import AppService
from homeport.functions.model import FunctionRecord, Layout
from homeport.functions.service import FunctionService
from homeport.kernel.clock import Clock
from homeport.kernel.errors import ConflictError, InvalidError, NotFoundError

Rebinding = Callable[[FunctionRecord, FunctionRecord], FunctionRecord]
"""A variant and the function it is to be one of → the variant of that."""


class Deployments:
    """Makes one set of definitions the live one, and remembers the others.

    The app's record and the definitions of its functions change in one commit.
    """

    def __init__(
        self, apps: AppService, functions: FunctionService, clock: Clock, *, rebound: Rebinding
    ) -> None:
        self._apps = apps
        self._functions = functions
        self._clock = clock
        self._rebound = rebound

    async def publish(
        self,
        app_id: str,
        *,
        state: AppState | None,
        name: str,
        layout: Layout,
        definitions: dict[str, str],
        tags: dict[str, str],
        deployment: Deployment,
        staged: bool = False,
    ) -> tuple[App, bool]:
        """Make ``layout`` the app's content (RPC ``AppPublish``); whether that changed anything.

        ``state`` None keeps the state (hot reload). With DEPLOYED, ``name`` becomes the app's, and
        one deployed under it before is stopped. A ``staged`` version is only recorded.
        """
        app = self._apps.require_live(app_id)
        definitions = self._complete(layout, definitions)
        switch = await self._functions.switch(definitions, self._rebound)
        if state is not AppState.DEPLOYED:
            switch = switch._replace(steps=switch.steps[:1])  # no version to come back to
            app = await self._apps.publish(
                app_id, state=state, name=name, layout=layout, tags=tags, switch=switch
            )
            return app, True
        deployment = msgspec.structs.replace(
            deployment,
            version=app.latest_version + 1,
            deployed_at=self._clock.now(),
            layout=layout,
            definitions=definitions,
            is_staged=staged,
        )
        if staged:
            if app.state is not AppState.DEPLOYED:
                raise ConflictError(
                    "The first version of an app cannot be staged: deploy it without --staged."
                )
            switch = switch._replace(steps=switch.steps[1:], make_live=lambda: None)
            return await self._apps.record(app_id, deployment, switch), True
        if _is_the_same(app, deployment, tags):
            return app, False
        app = await self._apps.publish(
            app_id,
            state=state,
            name=name,
            layout=layout,
            tags=tags,
            deployment=deployment,
            switch=switch,
        )
        await self._forget(app)
        return app, True

    def _complete(self, layout: Layout, definitions: dict[str, str]) -> dict[str, str]:
        """A definition for each function: what the client does not name stays as it is."""
        return {
            function_id: definitions.get(function_id)
            or self._functions.get(function_id).definition_id
            for function_id in layout.function_ids.values()
        }

    async def roll_back(self, app_id: str, version: int, client_version: str) -> App:
        """Deploy an earlier version again, as a new one (RPC ``AppRollback``).

        ``version`` counts from the first one, or back from the present one if it is negative; what
        was only staged was never deployed and does not count then.
        Raises ``ConflictError``, ``InvalidError`` or ``NotFoundError``.
        """
        app = self._require_deployed(app_id)
        if version == 0:
            raise InvalidError("name a version to roll back to: v3, say")
        wanted = version if version > 0 else _before(app, -version)
        if wanted == app.version:
            raise InvalidError(f"v{wanted} is the version that is deployed")
        return await self._again(app, _find(app, wanted), client_version)

    async def promote(self, app_id: str, version: int, client_version: str) -> App:
        """Deploy a staged version (RPC ``AppPromote``); raises as ``roll_back``."""
        app = self._require_deployed(app_id)
        staged = _find(app, version)
        if not staged.is_staged:
            raise InvalidError(
                f"v{version} is not staged: it was deployed, and can be rolled back to "
                f"(modal app rollback {app.name} v{version})"
            )
        return await self._again(app, staged, client_version)

    async def roll_over(self, app_id: str, client_version: str) -> App:
        """The same version in new containers, as a new one (RPC ``AppRollover``)."""
        app = self._require_deployed(app_id)
        present = _find(app, app.version)
        return await self._again(app, present, client_version, is_rollover=True)

    async def _again(
        self, app: App, old: Deployment, client_version: str, *, is_rollover: bool = False
    ) -> App:
        switch = await self._functions.switch(old.definitions or {}, self._rebound)
        version = app.latest_version + 1
        deployment = msgspec.structs.replace(
            old,
            version=version,
            deployed_at=self._clock.now(),
            client_version=client_version,
            rollback_version=0 if is_rollover else old.version,
            is_staged=False,
        )
        app = await self._apps.publish(
            app.app_id,
            state=AppState.DEPLOYED,
            name=app.name,
            layout=old.layout,
            tags={},
            deployment=deployment,
            switch=switch,
            renewed=version if is_rollover else None,
        )
        await self._forget(app)
        return app

    def _require_deployed(self, app_id: str) -> App:
        app = self._apps.require_live(app_id)
        if app.state is not AppState.DEPLOYED or not app.deployments:
            raise ConflictError(f"App {app.name or app.description!r} ({app_id}) is not deployed")
        return app

    async def definition_of(self, app: App, version: int, tag: str) -> FunctionRecord | None:
        """A function as it was in a version of the app; ``None`` if it was not in it.

        Raises ``NotFoundError`` for versions there are none of, or none any more.
        """
        deployment = _find(app, version)
        function_id = deployment.layout.function_ids.get(tag)
        if function_id is None:
            return None
        return await self._functions.version(
            function_id, (deployment.definitions or {})[function_id]
        )

    async def _forget(self, app: App) -> None:
        await self._functions.forget_versions(app.app_id, set(_definitions(app.deployments)))


def _definitions(deployments: Iterable[Deployment]) -> Iterable[tuple[str, str]]:
    for deployment in deployments:
        yield from (deployment.definitions or {}).items()


def _before(app: App, steps: int) -> int:
    """The version that was deployed so many before the present one. Raises ``NotFoundError``."""
    live = [item.version for item in app.deployments if not item.is_staged]
    if steps >= len(live):
        raise NotFoundError(
            f"App {app.name!r} has no version to roll back to: v{app.version} is the first one."
        )
    return live[-1 - steps]


def _find(app: App, version: int) -> Deployment:
    found = next((item for item in app.deployments if item.version == version), None)
    if found is None:
        raise NotFoundError(
            f"App {app.name!r} has no version v{version} (the latest is v{app.latest_version}); "
            f"`modal app history {app.name}` lists them."
        )
    if found.definitions is None:
        raise NotFoundError(
            f"Version v{version} of app {app.name!r} is too old: its definitions are not kept "
            "any more. Deploy that code again."
        )
    return found


def _is_the_same(app: App, deployment: Deployment, tags: dict[str, str]) -> bool:
    """Whether publishing it would change nothing that anyone could see."""
    if app.state is not AppState.DEPLOYED or not app.deployments:
        return False
    present = app.deployed
    return (
        present is not None
        and present.layout == deployment.layout
        and present.definitions == deployment.definitions
        and present.tag == deployment.tag
        and (not tags or tags == app.tags)
    )
