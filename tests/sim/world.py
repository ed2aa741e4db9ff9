"""The scheduler's own classes, with nodes and callers that are made up.

Only what lies beyond the scheduler is stood in for: nodes start containers and run inputs in virtual
time, records are not written. What is decided, and how, is the code that runs in a server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

import msgspec

from homeport.apps.model import AppState
from homeport.calls.model import Call, CallType, Input, InputState, Invocation, Output
from homeport.functions.model import Autoscaler, FunctionRecord, FunctionSpec
from homeport.kernel.resources import Resources
from homeport.link.messages import (
    STATUS_SUCCESS,
    DeliverInputs,
    InputsReturned,
    InputsStarted,
    OutputItem,
    Outputs,
    RecallInputs,
    Result,
    RunningTask,
    StopTask,
    TaskExited,
    TaskReady,
)
from homeport.scheduler.board import Board
from homeport.scheduler.dispatch import Dispatch
from homeport.scheduler.fleet import Fleet
from homeport.scheduler.pool import Pool
from homeport.scheduler.recovery import Recovery
from homeport.scheduler.reports import Reports
from homeport.scheduler.reservations import Reservations
from homeport.scheduler.settler import Settler
from homeport.settings import Settings

from .loop import LoopClock

START_S = 0.7
"""From the order to the first input that a container could take."""
NODE = Resources(milli_cpu=64_000, memory_mb=256 * 1024)


class _Anything:
    """Takes any call and answers nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@dataclass(slots=True, eq=False)
class Container:
    """What a node does with one task."""

    task_id: str
    slots: int
    ready: bool = False
    draining: bool = False
    waiting: deque[tuple[str, int]] = field(default_factory=deque[tuple[str, int]])
    running: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    since: float = 0.0
    busy_s: float = 0.0
    """Input-seconds it worked."""


class Nodes:
    """All nodes: they do as they are told, after a while."""

    def __init__(self, world: World, number: int, capacity: Resources) -> None:
        self._world = world
        self._sessions: dict[str, Any] = {
            f"no-{n}": SimpleNamespace(capacity=capacity, gpus=()) for n in range(number)
        }
        self.containers: dict[str, Container] = {}
        self._places: dict[str, str] = {}
        """The node of each task."""
        self._cut: dict[str, tuple[Any, list[Any]]] = {}
        """Nodes without a connection, and their numbered messages that wait for the next one."""
        self._seq = count(1)
        self.paid_s = 0.0
        """Container-seconds so far."""
        self.worked_s = 0.0
        """Input-seconds so far, as parts of the slots of a container."""

    def nodes(self) -> dict[str, Any]:
        return self._sessions

    def send(self, node_id: str, message: Any) -> bool:
        if node_id not in self._sessions:
            return False
        match message:
            case DeliverInputs():
                self._deliver(self.containers[message.task_id], message)
            case RecallInputs():
                self._recall(self.containers[message.task_id], message)
            case StopTask():
                if (container := self.containers.get(message.task_id)) is not None:
                    self._drain(container)
            case _:
                self._start(node_id, message.task_id)
        return True

    def die(self, node_id: str) -> None:
        """A node goes away with all that runs on it."""
        del self._sessions[node_id]
        for task in list(self._world.board.tasks.values()):
            if task.node_id == node_id and task.task_id in self.containers:
                self._end(self.containers[task.task_id])
        self._world.recovery.lost(node_id)

    def cut(self, node_id: str) -> None:
        """The connection is lost: what runs there goes on, and what is said is kept or lost."""
        self._cut[node_id] = (self._sessions.pop(node_id), [])

    def connect(self, node_id: str) -> None:
        """A new connection: both sides say what they know, as in ``node.supervisor``."""
        self._sessions[node_id], kept = self._cut.pop(node_id)
        here = [c for c in self.containers.values() if self._places[c.task_id] == node_id]
        held = {c.task_id: [*c.running, *c.waiting] for c in here}
        for message in kept:
            keys = [(item.input_id, item.retry_count) for item in getattr(message, "items", [])]
            held[message.task_id] = [*keys, *held.get(message.task_id, [])]
        running = [
            RunningTask(task_id, c.ready if (c := self.containers.get(task_id)) else True, keys)
            for task_id, keys in held.items()
        ]
        hello: Any = SimpleNamespace(running=running)
        adoption = self._world.recovery.joined(node_id, hello)
        for message in kept:
            self._world.reports.said(message)
        wanted = {(input_id, attempt) for _, input_id, attempt in adoption.known_inputs}
        for container in here:
            if container.task_id in adoption.lost_tasks:
                self._end(container)
                continue
            unwanted = {*held[container.task_id]} - wanted
            container.waiting = deque(key for key in container.waiting if key not in unwanted)
            container.running -= unwanted
            if container.ready:
                self._say(TaskReady(container.task_id, self._world.clock.now()))
            self._work(container)

    def _later(self, seconds: float, what: Any, *arguments: Any) -> None:
        asyncio.get_running_loop().call_later(seconds, what, *arguments)

    def _say(self, message: Any) -> None:
        if (away := self._cut.get(self._places[message.task_id])) is None:
            self._world.reports.said(message)
        elif isinstance(message, Outputs | TaskExited):
            away[1].append(message)

    def _start(self, node_id: str, task_id: str) -> None:
        task = self._world.board.tasks[task_id]
        container = Container(task_id, task.pool.spec.slots, since=self._world.clock.now())
        self.containers[task_id] = container
        self._places[task_id] = node_id
        self._later(self._world.start_s, self._ready, container)

    def _ready(self, container: Container) -> None:
        if container.task_id in self.containers:
            container.ready = True
            self._say(TaskReady(container.task_id, self._world.clock.now()))
            if container.draining:
                self._exit(container)

    def _deliver(self, container: Container, message: DeliverInputs) -> None:
        container.waiting.extend((item.input_id, item.retry_count) for item in message.inputs)
        self._work(container)

    def _work(self, container: Container) -> None:
        begun: list[tuple[str, int]] = []
        while container.waiting and len(container.running) < container.slots:
            key = container.waiting.popleft()
            container.running.add(key)
            begun.append(key)
            duration = self._world.durations[key[0]]
            self._later(duration, self._done, container, key, self._world.clock.now())
        if begun:
            self._say(InputsStarted(container.task_id, begun, self._world.clock.now()))

    def _done(self, container: Container, key: tuple[str, int], since: float) -> None:
        if key not in container.running:
            return
        container.running.discard(key)
        now = self._world.clock.now()
        self.worked_s += (now - since) / container.slots
        output = OutputItem(key[0], key[1], Result(STATUS_SUCCESS), 1, since, now)
        self._work(container)
        self._say(Outputs(next(self._seq), container.task_id, [output]))
        if container.draining and not container.running and not container.waiting:
            self._exit(container)

    def _recall(self, container: Container, message: RecallInputs) -> None:
        wanted = set(message.inputs)
        back = [key for key in container.waiting if key in wanted]
        container.waiting = deque(key for key in container.waiting if key not in wanted)
        if back:
            self._say(InputsReturned(container.task_id, back))

    def _drain(self, container: Container) -> None:
        container.draining = True
        back, container.waiting = list(container.waiting), deque()
        if back:
            self._say(InputsReturned(container.task_id, back))
        if container.ready and not container.running:
            self._exit(container)

    def _exit(self, container: Container) -> None:
        self._later(0.0, self._gone, container)

    def _gone(self, container: Container) -> None:
        if container.task_id in self.containers:
            self._end(container)
            self._say(
                TaskExited(next(self._seq), container.task_id, 0, False, True, [], [], "", "")
            )

    def _end(self, container: Container) -> None:
        del self.containers[container.task_id]
        container.running.clear()
        self.paid_s += self._world.clock.now() - container.since


@dataclass(slots=True)
class Arrival:
    """An input that comes at ``at`` and runs ``seconds``."""

    at: float
    function_id: str
    seconds: float


class World:
    """Functions, callers and ``nodes`` nodes."""

    def __init__(
        self, nodes: int = 4, capacity: Resources = NODE, *, start_s: float = START_S
    ) -> None:
        self.start_s = start_s
        self.clock = LoopClock()
        self.records: dict[str, FunctionRecord] = {}
        self.durations: dict[str, float] = {}
        self._inputs: dict[str, tuple[Input, float]] = {}
        self._numbers = count(1)
        self.waits: dict[str, list[float]] = {}
        """By function: seconds from each input's arrival to its start (of the run that ended it)."""
        self.unfinished = 0
        self._changed = asyncio.Event()
        nothing: Any = _Anything()
        functions: Any = SimpleNamespace(find=self.records.get, get=self.records.__getitem__)
        calls: Any = SimpleNamespace(find_input=self._find_input, finish=self._finish)
        self.app = SimpleNamespace(is_live=True, state=AppState.DEPLOYED, renewed=0)
        apps: Any = SimpleNamespace(find=lambda _: self.app)
        build_functions: Any = SimpleNamespace(layer_of=lambda _: "", exited=lambda *_: None)
        launcher: Any = SimpleNamespace(prepare=self._prepare)
        settings = msgspec.convert({"home": "/"}, Settings, dec_hook=lambda kind, v: kind(v))
        self.nodes = Nodes(self, nodes, capacity)
        those: Any = self.nodes
        self.board = board = Board(self.clock, apps, build_functions)
        self.settler = Settler(self.clock, functions, calls, board)
        reservations = Reservations(settings, those)
        self.fleet = Fleet(
            self.clock,
            those,
            nothing,
            nothing,
            launcher,
            build_functions,
            board,
            self.settler,
            reservations,
        )
        self.dispatch = Dispatch(self.clock, those, board, self.fleet)
        board.room_made = self.dispatch.serve_starved
        self.reports = Reports(
            self.clock,
            nothing,
            functions,
            nothing,
            calls,
            build_functions,
            board,
            self.settler,
            self.fleet,
            self.dispatch,
            nothing,
        )
        sandboxes: Any = SimpleNamespace(
            joined=lambda *_: set(), serve_waiting=nothing.serve_waiting, node_lost=nothing.lost
        )
        records: Any = SimpleNamespace(list=list, alive=lambda _: None)
        self.recovery = Recovery(
            self.clock,
            those,
            records,
            functions,
            apps,
            board,
            self.settler,
            self.fleet,
            sandboxes,
        )

    # ── what is around ──────────────────────────────────────────────────────────────────────

    async def _prepare(self, record: FunctionRecord, task_id: str, *_: Any) -> Any:
        return SimpleNamespace(task_id=task_id, function_id=record.function_id, commit_layer="")

    def _find_input(self, input_id: str) -> Input | None:
        return self._inputs[input_id][0] if input_id in self._inputs else None

    def _finish(self, outputs: Sequence[tuple[Input, Output]]) -> list[Any]:
        for item, output in outputs:
            assert item.output is None, "finished twice"
            assert output.result.status == STATUS_SUCCESS, output.result
            item.output, item.state = output, InputState.DONE
            _, arrived = self._inputs.pop(item.input_id)
            self.waits[item.call.function_id].append(output.started_at - arrived)
            self.unfinished -= 1
        self._changed.set()
        return []

    # ── for scenarios ───────────────────────────────────────────────────────────────────────

    def function(self, function_id: str, app_id: str = "", **fields: Any) -> FunctionSpec:
        """Define a function; the same id again is a new version of it."""
        defaults: dict[str, Any] = dict.fromkeys(("client_version", "image_id", "gpu_type"), "") | {
            name: [] for name in ("mount_ids", "secret_ids")
        }
        flags = (
            "single_use",
            "is_class",
            "is_server",
            "is_generator",
            "block_network",
            "untrusted",
        )
        numbers = ("milli_cpu_max", "memory_mb_max", "gpu_count", "batch_max_size")
        defaults |= dict.fromkeys(flags, False) | dict.fromkeys(numbers, 0)
        defaults |= {
            "milli_cpu": 1000,
            "memory_mb": 1024,
            "timeout_s": 300.0,
            "startup_timeout_s": 300.0,
            "retry_policy": None,
            "autoscaler": Autoscaler(),
            "max_concurrent": 0,
            "target_concurrent": 0,
            "batch_linger_ms": 0,
        }
        app_id = app_id or function_id
        spec = FunctionSpec(
            **{
                **defaults,
                **fields,
                "function_id": function_id,
                "app_id": app_id,
                "tag": function_id,
            }
        )
        known = self.records.get(function_id)
        record = FunctionRecord(
            function_id=function_id,
            app_id=app_id,
            tag=function_id,
            handle=b"",
            created_at=0.0,
            spec=spec,
            definition_id=str(next(self._numbers)),
        )
        self.records[function_id] = record
        self.waits.setdefault(function_id, [])
        pool = self.board.pools.get(function_id)
        if known is not None and pool is not None:
            pool.redefine(record)
            self.fleet.replace(pool)
            self.dispatch.step(pool)
        return spec

    def pool(self, function_id: str) -> Pool:
        return self.board.pool(self.records[function_id])

    def call(self, function_id: str, seconds: float, number: int = 1) -> None:
        """``number`` inputs of one call that run for ``seconds`` each."""
        call = Call(
            call_id=f"fc-{next(self._numbers)}",
            function_id=function_id,
            app_id=self.records[function_id].app_id,
            type=CallType.MAP,
            invocation=Invocation.SYNC,
            parent_input_id="",
            created_at=self.clock.now(),
        )
        items = [
            Input(f"in-{next(self._numbers)}", call, index, b"", "", 1, "")
            for index in range(number)
        ]
        for item in items:
            self.durations[item.input_id] = seconds
            self._inputs[item.input_id] = (item, self.clock.now())
        self.unfinished += number
        self.settler.enqueue(items)

    async def play(self, arrivals: Iterable[Arrival]) -> None:
        """Let the arrivals come, in the order of their times."""
        for arrival in arrivals:
            pause = arrival.at - self.clock.now()
            if pause > 0:
                await asyncio.sleep(pause)
            self.call(arrival.function_id, arrival.seconds)

    async def all_done(self) -> None:
        """Wait until no input is without an output."""
        while self.unfinished:
            self._changed.clear()
            await self._changed.wait()

    def containers_of(self, app_id: str) -> int:
        """How many containers the app has that are not told to end."""
        return sum(
            pool.tally.ready + pool.tally.starting + len(pool.tally.outdated)
            for pool in self.board.pools_of(app_id)
        )
