"""The containers: where they are placed, started, stopped, and what a failed start means."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import structlog

from homeport.kernel import ids
from homeport.kernel.clock import Clock
from homeport.kernel.errors import InvalidError
from homeport.kernel.gpus import fitness
from homeport.kernel.resources import Resources
from homeport.link.messages import (
    STATUS_INIT_FAILURE,
    Result,
    StopTask,
)
from homeport.logs.service import LogService
from homeport.nodes.service import NodeService
from homeport.scheduler.board import Board
from homeport.scheduler.build_functions import BuildFunctions
from homeport.scheduler.launcher import Launcher, start_error
from homeport.scheduler.placement import (
    Spot,
    Want,
    check_gpus,
    clamp,
    demand_of,
    lacks_only_gpus,
    place_many,
)
from homeport.scheduler.pool import Pool, Task, TaskStatus
from homeport.scheduler.reservations import Reservations
from homeport.scheduler.settler import Settler
from homeport.tasks.model import TaskRecord
from homeport.tasks.service import TaskService

log = structlog.get_logger(__name__)

STOP_GRACE_S = 8.0
"""Exit handlers of an interrupted container have that long before it is killed: a client waits 10 s
for the last lines of its app."""
START_BACKOFF_S = 1.0
START_BACKOFF_MAX_S = 60.0
NODE_GONE_S = 0.5
"""A node that went away while a container was prepared for it: another try after that time."""
CRASHES_FREE = 3
"""Containers that may end by themselves in a row before the next is started with a delay."""
START_FAILURES_MAX = 3
"""Failed starts by the platform itself (not by user code) before waiting inputs are failed."""


class Fleet:
    """Starts and stops containers, and knows what they take of each node."""

    def __init__(
        self,
        clock: Clock,
        nodes: NodeService,
        task_records: TaskService,
        logs: LogService,
        launcher: Launcher,
        build_functions: BuildFunctions,
        board: Board,
        settler: Settler,
        reservations: Reservations,
    ) -> None:
        self._clock = clock
        self._nodes = nodes
        self._task_records = task_records
        self._logs = logs
        self._launcher = launcher
        self._build_functions = build_functions
        self._board = board
        self._settler = settler
        self._reservations = reservations
        self._launches: set[asyncio.Task[None]] = set()

    def rest(self) -> None:
        """Launch nothing more; containers are left to their nodes."""
        for launch in list(self._launches):
            launch.cancel()

    def start(self, pool: Pool, count: int) -> int:
        """Start up to ``count`` containers; how many there was room for."""
        reservations = self._reservations
        demand = demand_of(pool.spec, reservations.defaults)
        places = place_many(
            demand, pool.spec.gpus, count, reservations.views(), reservations.defaults
        )
        for spot in places:
            self._start_at(pool, spot)
        if len(places) < count and pool.spec.gpus:
            self._tell_what_is_missing(pool)
        return len(places)

    def _tell_what_is_missing(self, pool: Pool) -> None:
        """Calls of a deployed function wait for a GPU that was taken away: they say so once."""
        try:
            what = f"Function {pool.spec.display_name!r}"
            check_gpus(what, pool.spec.gpus, self._reservations.views())
        except InvalidError as error:
            if not pool.is_told:
                pool.is_told = True
                text = f"{error.message} Its calls wait until there is one.\n"
                self._logs.system(pool.record.app_id, text)
        else:
            pool.is_told = False

    def capacity(self) -> Resources:
        """What all nodes together have."""
        return self._reservations.capacity()

    def room(self) -> Resources:
        """The most there is of each resource on one node (not on the same one, perhaps)."""
        return self._reservations.room()

    def demand(self, pool: Pool) -> Resources:
        """What a container of the function is counted with."""
        return demand_of(pool.spec, self._reservations.defaults)

    def want(self, pool: Pool) -> Want:
        """What one more container of the function needs."""
        return Want(self.demand(pool), pool.spec.gpus)

    def helps(self, want: Want, task: Task) -> bool:
        """Whether the end of ``task`` may make the place that was not found.

        What only lacks a GPU has no use for the room of containers without.
        """
        demand, wishes = want
        if not wishes:
            return True
        views = self._reservations.views()
        if not lacks_only_gpus(demand, wishes, views, self._reservations.defaults):
            return True
        held = [gpu for view in views for gpu in view.gpus if gpu.uuid in task.gpus]
        return any(fitness(wish.type, gpu) is not None for wish in wishes for gpu in held)

    def _start_at(self, pool: Pool, spot: Spot) -> None:
        task = self._task(pool, ids.new(ids.TASK), spot)
        task.inputs_left = 1 if pool.spec.single_use else -1
        self._admit(task)
        self._task_records.created(
            TaskRecord(
                task_id=task.task_id,
                function_id=pool.record.function_id,
                app_id=pool.record.app_id,
                node_id=spot.node_id,
                enqueued_at=self._clock.now(),
                edition=task.edition,
            )
        )
        launch = asyncio.create_task(self._launch(task))
        self._launches.add(launch)
        launch.add_done_callback(self._launches.discard)

    def adopt(
        self,
        pool: Pool,
        node_id: str,
        task_id: str,
        *,
        ready: bool,
        edition: str,
        gpus: Sequence[str] = (),
    ) -> Task:
        """Take a container back that a former server process started, with the GPUs it has."""
        defaults = self._reservations.defaults
        demand = msgspec.structs.replace(demand_of(pool.spec, defaults), gpus=len(gpus))
        amount = clamp(demand, self._reservations.whole(node_id).capacity)
        task = self._task(pool, task_id, Spot(node_id, amount, tuple(gpus)))
        task.status = TaskStatus.READY if ready else TaskStatus.STARTING
        if edition:
            task.outdated = edition != task.edition
            task.edition = edition
        task.idle_since = task.progress_at = task.created_at
        self._admit(task)
        return task

    def _task(self, pool: Pool, task_id: str, spot: Spot) -> Task:
        return Task(
            task_id=task_id,
            pool=pool,
            node_id=spot.node_id,
            edition=self._board.edition(pool.record),
            reserved=spot.amount,
            gpus=spot.gpus,
            memory_limit_mb=self._reservations.memory_limit_mb(
                spot.node_id, pool.spec.memory_mb, pool.spec.memory_mb_max
            ),
            created_at=self._clock.monotonic(),
        )

    def _admit(self, task: Task) -> None:
        self._board.admit(task)
        self._reservations.take(Spot(task.node_id, task.reserved, task.gpus))

    async def _launch(self, task: Task) -> None:
        try:
            message = await self._launcher.prepare(
                task.pool.record, task.task_id, task.memory_limit_mb, task.reserved.milli_cpu
            )
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.warning("container could not be prepared", task_id=task.task_id, error=repr(error))
            self.remove(task, failed=True)
            self.start_failed(task.pool, start_error(error), final=True)
            return
        if task.task_id not in self._board.tasks:
            return
        if task.status is TaskStatus.STOPPING:  # its node was told so before it knew of it
            self.remove(task)
            self._board.step(task.pool)
            return
        message.gpus = list(task.gpus)
        message.commit_layer = self._build_functions.layer_of(message.function_id)
        if not self._nodes.send(task.node_id, message):
            # No failure of what was to start: it starts elsewhere, or when the node is back.
            self.remove(task, failed=True)
            pool = task.pool
            pool.not_before = max(pool.not_before, self._clock.monotonic() + NODE_GONE_S)
            self._board.step(pool)

    def replace(self, pool: Pool) -> None:
        """Containers of earlier definitions make way for those of the present one.

        In a deployed app they serve on until then; otherwise they end when they are done. Those
        that do not serve yet never will.
        """
        edition = self._board.edition(pool.record)
        rolling = self._board.is_deployed(pool.record.app_id)
        for task in list(pool.tasks.values()):
            task.outdated = task.edition != edition
            if task.outdated and not (rolling and task.status is TaskStatus.READY):
                self.stop(task, graceful=True)

    def stop(self, task: Task, *, graceful: bool) -> None:
        if task.status is TaskStatus.STOPPING and (graceful or not task.graceful):
            return
        task.status = TaskStatus.STOPPING
        task.graceful = graceful
        if graceful and task.leases:
            # Its connections are ours, not the container's: it would not wait for them.
            loop = asyncio.get_running_loop()
            task.leaving = loop.call_later(task.pool.spec.timeout_s, self.part, task)
            return
        self.part(task)

    def part(self, task: Task) -> None:
        """Tell the node that a stopping container may go."""
        if task.leaving is not None:
            task.leaving.cancel()
            task.leaving = None
        sent = self._nodes.send(task.node_id, StopTask(task.task_id, task.graceful, STOP_GRACE_S))
        if not sent and task.node_id not in self._nodes.nodes():
            log.debug("stop will be settled when the node returns", task_id=task.task_id)

    def remove(self, task: Task, *, failed: bool = False) -> None:
        if task.leaving is not None:
            task.leaving.cancel()
        if self._board.drop(task):
            self._reservations.give_back(Spot(task.node_id, task.reserved, task.gpus))
        self._task_records.finished(task.task_id, failed=failed)
        task.gone.set()
        self._board.room_made()

    def crashed(self, pool: Pool) -> None:
        """A container that had come up ended by itself: do not start others without end."""
        pool.crashes += 1
        if pool.crashes > CRASHES_FREE:
            steps = min(pool.crashes - CRASHES_FREE - 1, 16)
            delay = min(START_BACKOFF_S * 2**steps, START_BACKOFF_MAX_S)
            pool.not_before = self._clock.monotonic() + delay
            text = (
                f"Containers of {pool.spec.display_name!r} ended by themselves {pool.crashes} times "
                f"in a row; the next one is started in {delay:g} s\n"
            )
            self._logs.system(pool.record.app_id, text)

    def start_failed(
        self, pool: Pool, reason: str, *, final: bool, result: Result | None = None
    ) -> None:
        """A container did not come up: back off, and tell waiting callers when it is no use."""
        pool.start_failures += 1
        delay = min(START_BACKOFF_S * 2 ** (pool.start_failures - 1), START_BACKOFF_MAX_S)
        pool.not_before = self._clock.monotonic() + delay
        self._logs.system(pool.record.app_id, f"Container failed to start: {reason}\n")
        others = pool.tally.ready or any(
            task.status is TaskStatus.READY for task in pool.tasks.values()
        )
        if not others and (final or pool.start_failures >= START_FAILURES_MAX):
            failure = result or Result(
                STATUS_INIT_FAILURE,
                exception=f"Function {pool.spec.display_name!r} could not start: {reason}",
            )
            while (item := pool.pop()) is not None:
                self._settler.finish(item, failure)
        self._board.step(pool)
