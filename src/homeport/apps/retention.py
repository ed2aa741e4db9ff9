"""What is deleted of apps that ended long ago."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from homeport.apps.service import AppService
from homeport.kernel.clock import Clock


class Content(Protocol):
    """A feature that keeps something for apps."""

    async def delete_of_app(self, app_id: str) -> None:
        """Delete what belongs to the app, for good. Idempotent."""
        ...


class Results(Content, Protocol):
    """The feature that keeps results, which outlive their app."""

    def apps_asked_for(self) -> set[str]:
        """Ids of apps with calls that a client may still ask for or that are not finished."""
        ...


class EndedApps:
    """Deletes apps of ``run`` and ``serve`` with their functions, calls and anonymous secrets.

    An app goes ``retention_s`` seconds after its end, and not before the results of its calls:
    ``FunctionCall.from_id`` finds those of a detached app that has ended. Apps that were deployed
    stay: their history can be asked for by name. So do those that ``needed`` names.
    """

    def __init__(
        self,
        apps: AppService,
        results: Results,
        *contents: Content,
        retention_s: float,
        clock: Clock,
        needed: Callable[[], Awaitable[set[str]]],
    ) -> None:
        self._apps = apps
        self._results = results
        self._contents = contents
        self._retention_s = retention_s
        self._clock = clock
        self._needed = needed

    async def prune(self) -> int:
        """Delete what is beyond the retention; how many apps."""
        asked_for = self._results.apps_asked_for() | await self._needed()
        ended = self._apps.ended_before(self._clock.now() - self._retention_s)
        count = 0
        for app in ended:
            if app.deployments or app.app_id in asked_for:
                continue
            # the app last: if this is interrupted, the next round finds it again
            for content in (self._results, *self._contents):
                await content.delete_of_app(app.app_id)
            await self._apps.delete(app.app_id)
            count += 1
        return count
