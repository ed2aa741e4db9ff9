"""The state of one function's containers and waiting inputs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from homeport.calls.model import Input, InputState
from homeport.functions.model import Autoscaler, FunctionRecord, FunctionSpec
from homeport.kernel.resources import Resources
from homeport.scheduler.tally import Counted, Shape, Tally, TaskStatus

PREFETCH_INPUT_S = 0.1
"""Inputs that typically take less than this are sent ahead, so that a container finds the next
one waiting; longer ones are not, so that none waits behind a slow one."""
PREFETCH_S = 0.02
"""About as much work is sent ahead; one input at least."""
PREFETCH_MAX = 16
STUCK_S = 0.05
"""A container that ends no input for so long gives back what it has not started, if another could
start it at once."""
_EWMA_WEIGHT = 0.2


class Held(dict[str, Input]):
    """Inputs of a container by id; its pool counts them."""

    __slots__ = ("_changed",)

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__()
        self._changed = changed

    def __setitem__(self, input_id: str, item: Input) -> None:
        super().__setitem__(input_id, item)
        self._changed()

    def __delitem__(self, input_id: str) -> None:
        super().__delitem__(input_id)
        self._changed()

    def take(self, input_id: str) -> Input | None:
        """Remove and return one, if it is there."""
        item = super().pop(input_id, None)
        self._changed()
        return item

    def clear(self) -> None:
        super().clear()
        self._changed()


class Task:
    """A container as the scheduler sees it. Times are monotonic seconds."""

    __slots__ = (
        "_is_outdated",
        "_stalled",
        "_status",
        "address",
        "counted",
        "created_at",
        "edition",
        "gone",
        "gpus",
        "graceful",
        "held",
        "idle_since",
        "init_failed",
        "inputs_left",
        "leases",
        "leaving",
        "memory_limit_mb",
        "node_id",
        "pool",
        "progress_at",
        "reserved",
        "running",
        "task_id",
    )

    def __init__(
        self,
        *,
        task_id: str,
        pool: Pool,
        node_id: str,
        edition: str,
        reserved: Resources,
        memory_limit_mb: int,
        created_at: float,
        gpus: tuple[str, ...] = (),
    ) -> None:
        self.task_id = task_id
        self.pool = pool
        self.node_id = node_id
        self.edition = edition
        """Which definition it runs (see ``Board.edition``)."""
        self.reserved = reserved
        self.gpus = gpus
        """UUIDs of the GPUs of its node that it has."""
        self.memory_limit_mb = memory_limit_mb
        self.created_at = created_at
        self.idle_since = 0.0
        self.progress_at = 0.0
        """When it last became ready, or ended an input."""
        self.held = Held(self._changed)
        """Inputs given to it and not finished."""
        self.running: set[str] = set()
        """Ids of those of ``held`` that its container has begun."""
        self.inputs_left = -1
        """How many more inputs it takes in its life (-1 = any number)."""
        self.init_failed = False
        self.graceful = False
        self.address = ""
        """Of its ``eth0``, for connections past the work loop."""
        self.leases = 0
        """Connections among ``held`` that use it directly."""
        self.leaving: asyncio.TimerHandle | None = None
        """It is to be stopped once its leases are given back, or at this time."""
        self.gone = asyncio.Event()
        self.counted: Shape | None = None
        self._status = TaskStatus.STARTING
        self._stalled = False
        self._is_outdated = False

    def _changed(self) -> None:
        if self.counted is not None:
            self.pool.tally.update(self)

    @property
    def shape(self) -> Shape:
        """What its pool counts of it."""
        return Shape(
            self._status, self._is_outdated, self._stalled, len(self.held), self.inputs_left != 0
        )

    @property
    def status(self) -> TaskStatus:
        return self._status

    @status.setter
    def status(self, status: TaskStatus) -> None:
        self._status = status
        self._changed()

    @property
    def stalled(self) -> bool:
        """It gave inputs back that waited too long behind those it runs, and finished none since."""
        return self._stalled

    @stalled.setter
    def stalled(self, stalled: bool) -> None:
        if stalled != self._stalled:
            self._stalled = stalled
            self._changed()

    @property
    def outdated(self) -> bool:
        """It runs an earlier version: it serves until containers of the present one can."""
        return self._is_outdated

    @outdated.setter
    def outdated(self, outdated: bool) -> None:
        self._is_outdated = outdated
        self._changed()

    @property
    def room(self) -> int:
        """How many inputs could be given to it now."""
        if self.status is not TaskStatus.READY or self.stalled:
            return 0
        spec = self.pool.spec
        room = spec.slots + self.pool.prefetch - len(self.held)
        return min(room, self.inputs_left) if self.inputs_left >= 0 else room

    @property
    def is_idle(self) -> bool:
        return self.status is TaskStatus.READY and not self.held


class Pool:
    """One function (or bound variant): its spec, its waiting inputs, its containers."""

    def __init__(
        self, record: FunctionRecord, now: float, idle_anywhere: dict[Counted, None] | None = None
    ) -> None:
        self.record = record
        self.spec: FunctionSpec = record.require_spec()
        self.waiting: deque[Input] = deque()
        self.waiting_count = 0
        self.delayed = 0
        """Inputs counting down to a retry."""
        self.tasks: dict[str, Task] = {}
        self.tally = Tally({} if idle_anywhere is None else idle_anywhere)
        self.settings = self.spec.autoscaler
        """The scaling settings in force."""
        self._override = Autoscaler()
        self.input_s: float | None = None
        self.progress_at = now
        """When an input last finished, or the first of those waiting came (monotonic seconds)."""
        self.start_failures = 0
        self.crashes = 0
        """Containers that ended by themselves since one last did what it was asked."""
        self.not_before = 0.0
        """No container is started before this time (back-off after failed starts)."""
        self.keep_min = False
        self.is_told = False
        """Its app's log says that no node has the GPU it wants."""
        self.timer: asyncio.TimerHandle | None = None
        self.timer_at = 0.0
        self.scaling: asyncio.TimerHandle | None = None
        self.recall: asyncio.TimerHandle | None = None
        self.is_live = True

    def redefine(self, record: FunctionRecord) -> None:
        """A new definition, which also ends what was overridden of the old one."""
        self.record = record
        self.spec = record.require_spec()
        self._override = Autoscaler()
        self.settings = self.spec.autoscaler
        self.start_failures = 0
        self.crashes = 0
        self.not_before = 0.0

    def override(self, changes: Autoscaler) -> None:
        """Change scaling settings of the present definition."""
        self._override = self._override.merged(changes)
        self.settings = self.spec.autoscaler.merged(self._override)

    @property
    def prefetch(self) -> int:
        """Inputs a container holds beyond what it works on."""
        spec = self.spec
        if spec.is_direct or spec.single_use or spec.batch_max_size > 1 or self.input_s is None:
            return 0
        if self.input_s >= PREFETCH_INPUT_S:
            return 0
        return max(1, min(PREFETCH_MAX, int(PREFETCH_S / max(self.input_s, 1e-6))))

    @property
    def running(self) -> int:
        return self.tally.held

    def admit(self, task: Task) -> None:
        """A container more."""
        self.tasks[task.task_id] = task
        self.tally.update(task)

    def drop(self, task: Task) -> None:
        """A container less."""
        if self.tasks.pop(task.task_id, None) is not None:
            self.tally.drop(task)

    # Whatever is counted here is one of this pool's own containers.

    def idle(self) -> Iterator[Task]:
        """Containers without inputs, the longest idle first."""
        return cast("Iterator[Task]", self.tally.idle())

    def outdated(self) -> Iterable[Task]:
        """Containers of earlier versions that are not told to end."""
        return cast("Iterable[Task]", self.tally.outdated)

    def overloaded(self) -> list[Task]:
        """Containers that hold inputs beyond those they run."""
        return cast("list[Task]", list(self.tally.loaded(self.spec.slots)))

    def least_loaded(self, below: int) -> Task | None:
        """A container with the fewest inputs, fewer than ``below``."""
        return cast("Task | None", self.tally.least_loaded(below))

    def least_busy(self) -> Task | None:
        """The container that will be done first, as far as one can tell."""
        return self.least_loaded(1 << 30)

    @property
    def can_spare(self) -> bool:
        """Whether it has more containers than its minimum."""
        tally = self.tally
        minimum = (self.settings.min_containers or 0) if self.keep_min else 0
        return tally.ready + tally.starting + len(tally.outdated) > minimum

    def rest(self) -> None:
        """Nothing is to happen to it by itself any more."""
        for timer in (self.timer, self.scaling, self.recall):
            if timer is not None:
                timer.cancel()

    def push(self, inputs: Iterable[Input]) -> None:
        for item in inputs:
            item.state = InputState.WAITING
            item.task_id = ""
            self.waiting.append(item)
            self.waiting_count += 1

    def push_front(self, item: Input) -> None:
        """Queue an input that already waited its turn once."""
        item.state = InputState.WAITING
        item.task_id = ""
        self.waiting.appendleft(item)
        self.waiting_count += 1

    def pop(self) -> Input | None:
        """The next input that still wants to run."""
        while self.waiting:
            item = self.waiting.popleft()
            self.waiting_count -= 1
            if item.output is None:
                return item
        return None

    def drop_finished(self) -> None:
        """Forget waiting inputs that have an output (cancelled while they waited)."""
        self.waiting = deque(item for item in self.waiting if item.output is None)
        self.waiting_count = len(self.waiting)

    def observe(self, seconds: float) -> None:
        """Learn from the duration of one finished input."""
        self.crashes = 0
        if self.input_s is None:
            self.input_s = seconds
        else:
            self.input_s += _EWMA_WEIGHT * (seconds - self.input_s)
