"""What the parts of the scheduler share: the pools and the containers there are."""

from __future__ import annotations

from collections.abc import Callable

from homeport.apps.service import AppService
from homeport.functions.model import FunctionRecord
from homeport.kernel.clock import Clock
from homeport.scheduler.pool import Pool, Task


class Board:
    """Every pool by function, every container by task; and how to have a look at them taken."""

    def __init__(self, clock: Clock, apps: AppService) -> None:
        self._clock = clock
        self._apps = apps
        self.pools: dict[str, Pool] = {}
        self.tasks: dict[str, Task] = {}
        self.step: Callable[[Pool], None]
        """Hand out what waits in a pool, see to its containers (set by ``Dispatch``)."""
        self.room_made: Callable[[], None]
        """A container is gone: see who waits for room (set by ``Dispatch``)."""

    def pool(self, record: FunctionRecord) -> Pool:
        """The function's pool; made on first use."""
        pool = self.pools.get(record.function_id)
        if pool is None:
            pool = Pool(record, self._clock.monotonic())
            self.pools[record.function_id] = pool
        return pool

    def app_lives(self, app_id: str) -> bool:
        """Whether the app may run anything."""
        app = self._apps.find(app_id)
        return app is not None and app.is_live
