"""What the parts of the scheduler share: the pools and the containers there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from homeport.apps.model import AppState
from homeport.apps.service import AppService
from homeport.calls.model import Input
from homeport.functions.model import FunctionRecord
from homeport.kernel.clock import Clock
from homeport.kernel.resources import Resources
from homeport.scheduler.build_functions import BuildFunctions
from homeport.scheduler.pool import Pool, Task
from homeport.scheduler.tally import Counted


class Board:
    """Every pool by function, every container by task; and how to have a look at them taken."""

    def __init__(self, clock: Clock, apps: AppService, build_functions: BuildFunctions) -> None:
        self._clock = clock
        self._apps = apps
        self._build_functions = build_functions
        self.pools: dict[str, Pool] = {}
        self.tasks: dict[str, Task] = {}
        self.used: dict[str, Resources] = {}
        """What each app's containers are counted with."""
        self._idle: dict[Counted, None] = {}
        self.lease: Callable[[Pool, Input], None]
        """Find a connection a place in a pool's containers (set by ``Dispatch``)."""
        self.step: Callable[[Pool], None]
        """Hand out what waits in a pool, see to its containers (set by ``Dispatch``)."""
        self.room_made: Callable[[], None]
        """A container is gone: see who waits for room (set by ``Scheduler``)."""

    def pool(self, record: FunctionRecord) -> Pool:
        """The function's pool; made on first use."""
        pool = self.pools.get(record.function_id)
        if pool is None:
            pool = Pool(record, self._clock.monotonic(), self._idle)
            self.pools[record.function_id] = pool
        return pool

    def admit(self, task: Task) -> None:
        """A container more."""
        self.tasks[task.task_id] = task
        task.pool.admit(task)
        app_id = task.pool.record.app_id
        self.used[app_id] = self.used.get(app_id, Resources()) + task.reserved

    def drop(self, task: Task) -> bool:
        """A container less; whether it was there."""
        task.pool.drop(task)
        if self.tasks.pop(task.task_id, None) is None:
            return False
        app_id = task.pool.record.app_id
        left = self.used[app_id] - task.reserved
        if left == Resources():
            del self.used[app_id]
        else:
            self.used[app_id] = left
        return True

    def pools_of(self, app_id: str) -> list[Pool]:
        """The pools of an app's functions."""
        return [pool for pool in self.pools.values() if pool.record.app_id == app_id]

    def idle(self) -> Iterable[Task]:
        """All containers without inputs, the longest idle first."""
        return cast("dict[Task, None]", self._idle)

    def edition(self, record: FunctionRecord) -> str:
        """What tells containers of the present definition from those to be replaced."""
        app = self._apps.find(record.app_id)
        return f"{record.definition_id}/{app.renewed if app is not None else 0}"

    def is_deployed(self, app_id: str) -> bool:
        """Whether the app serves callers of its own, who are not to notice a new version."""
        app = self._apps.find(app_id)
        return app is not None and app.state is AppState.DEPLOYED

    def may_run(self, record: FunctionRecord) -> bool:
        """Whether the function may run: its app lives, or an image is built by it.

        The latter may be long after its app: nodes delete layers, which are then built again.
        """
        app = self._apps.find(record.app_id)
        if app is None:
            return False
        return app.is_live or bool(self._build_functions.layer_of(record.function_id))
