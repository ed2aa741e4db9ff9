"""The state of one function's containers and waiting inputs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from homeport.calls.model import Input, InputState
from homeport.functions.model import Autoscaler, FunctionRecord, FunctionSpec
from homeport.kernel.resources import Resources

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


class TaskStatus(Enum):
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


@dataclass(slots=True, eq=False)
class Task:
    """A container as the scheduler sees it. Times are monotonic seconds."""

    task_id: str
    pool: Pool
    node_id: str
    edition: str
    """Which definition it runs (see ``Board.edition``)."""
    reserved: Resources
    memory_limit_mb: int
    created_at: float
    status: TaskStatus = TaskStatus.STARTING
    idle_since: float = 0.0
    progress_at: float = 0.0
    """When it last became ready, or ended an input."""
    held: dict[str, Input] = field(default_factory=dict[str, Input])
    """Inputs given to it and not finished, by id."""
    running: set[str] = field(default_factory=set[str])
    """Those of ``held`` that its container has begun."""
    inputs_left: int = -1
    """How many more inputs it takes in its life (-1 = any number)."""
    stalled: bool = False
    """It gave inputs back that waited too long behind those it runs, and finished none since."""
    init_failed: bool = False
    outdated: bool = False
    """It runs an earlier version: it serves until containers of the present one can."""
    graceful: bool = False
    address: str = ""
    """Of its ``eth0``, for connections past the work loop."""
    leases: int = 0
    """Connections among ``held`` that use it directly."""
    leaving: asyncio.TimerHandle | None = None
    """It is to be stopped once its leases are given back, or at this time."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def room(self) -> int:
        """How many inputs could be given to it now."""
        if self.status is not TaskStatus.READY or self.stalled:
            return 0
        spec = self.pool.spec
        room = spec.slots + self.pool.prefetch - len(self.held)
        return min(room, self.inputs_left) if self.inputs_left >= 0 else room

    @property
    def is_outdated(self) -> bool:
        """Whether it is of an earlier version and not yet told to end."""
        return self.outdated and self.status is not TaskStatus.STOPPING

    @property
    def is_idle(self) -> bool:
        return self.status is TaskStatus.READY and not self.held


class Pool:
    """One function (or bound variant): its spec, its waiting inputs, its containers."""

    def __init__(self, record: FunctionRecord, now: float) -> None:
        self.record = record
        self.spec: FunctionSpec = record.require_spec()
        self.waiting: deque[Input] = deque()
        self.waiting_count = 0
        self.delayed = 0
        """Inputs counting down to a retry."""
        self.tasks: dict[str, Task] = {}
        self.settings = self.spec.autoscaler
        """The scaling settings in force."""
        self._override = Autoscaler()
        self.input_s: float | None = None
        self.progress_at = now
        """When an input last finished, or the first of those waiting came (monotonic seconds)."""
        self.start_failures = 0
        self.not_before = 0.0
        """No container is started before this time (back-off after failed starts)."""
        self.keep_min = False
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
        return sum(len(task.held) for task in self.tasks.values())

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
        if self.input_s is None:
            self.input_s = seconds
        else:
            self.input_s += _EWMA_WEIGHT * (seconds - self.input_s)
