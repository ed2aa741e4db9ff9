"""All containers of a node: what the server says reaches the right one, and what is held is known."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import structlog

from homeport import __version__
from homeport.kernel.clock import Clock
from homeport.kernel.resources import Resources
from homeport.link.messages import (
    PROTOCOL,
    BuildImage,
    CancelBuild,
    CancelInputs,
    DeliverInputs,
    DropLayers,
    Hello,
    InputsReturned,
    RecallInputs,
    RunningTask,
    ServerMessage,
    StartTask,
    StopTask,
    Welcome,
)
from homeport.node.link import NodeLink
from homeport.node.prepare import Preparer
from homeport.node.task import Relay, Task
from homeport.node.work import Key

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

LOST_GRACE_S = 10.0
"""How long a task the server gave up may take to end."""


class Builds(Protocol):
    """Image builds of this node."""

    def start(self, message: BuildImage) -> None: ...

    def cancel(self, build_id: str) -> None: ...

    async def stop(self) -> None: ...


class Room(Protocol):
    """The image layers of this node, as ``LayerRoom`` keeps them."""

    def keys(self) -> list[str]: ...

    async def drop(self, keys: Sequence[str], *, others: bool = False) -> None: ...


class Supervisor:
    """The node's tasks; the ``LinkHandler`` of its link."""

    def __init__(
        self,
        *,
        node_id: str,
        capacity: Resources,
        runtimes: list[str],
        gpu_type: str,
        link: NodeLink,
        preparer: Preparer,
        relay: Relay | None,
        builds: Builds | None,
        clock: Clock,
        room: Room | None = None,
    ) -> None:
        self._node_id = node_id
        self._capacity = capacity
        self._runtimes = runtimes
        self._gpu_type = gpu_type
        self._link = link
        self._preparer = preparer
        self._relay = relay
        self._builds = builds
        self._clock = clock
        self._room = room
        self._drops: set[asyncio.Task[None]] = set()
        self._tasks: dict[str, Task] = {}
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._said: dict[str, set[Key]] = {}
        self._stopping = False

    # ── LinkHandler ───────────────────────────────────────────────────────────────────────────

    def hello(self) -> Hello:
        """What this node is and has.

        A task whose end is not acknowledged is still named, with what its reports are about:
        they follow on the same connection, and the server need not take it for lost.
        """
        for task in self._tasks.values():
            task.flush()
        unacknowledged = self._link.unacknowledged()
        running: list[RunningTask] = []
        for task in self._tasks.values():
            entry = task.running()
            entry.inputs = _unique(entry.inputs + unacknowledged.pop(task.task_id, []))
            running.append(entry)
        for task_id, keys in unacknowledged.items():
            running.append(RunningTask(task_id, True, _unique(keys)))
        self._said = {entry.task_id: set(entry.inputs) for entry in running}
        return Hello(
            protocol=PROTOCOL,
            node_id=self._node_id,
            version=__version__,
            capacity=self._capacity,
            runtimes=self._runtimes,
            gpu_type=self._gpu_type,
            running=running,
            layers=self._room.keys() if self._room is not None else [],
        )

    def welcomed(self, welcome: Welcome) -> None:
        """Drop what the server no longer wants of what ``Hello`` named."""
        wanted: dict[str, set[Key]] = defaultdict(set)
        for task_id, input_id, retry_count in welcome.known_inputs:
            wanted[task_id].add((input_id, retry_count))
        for task_id, said in self._said.items():
            task = self._tasks.get(task_id)
            if task is None:
                continue
            if task_id in welcome.lost_tasks:
                task.forget(list(said))
                task.stop(
                    graceful=False, grace_s=LOST_GRACE_S, reason="the server gave this task up"
                )
            else:
                task.forget(list(said - wanted[task_id]))
                task.introduce()
        self._said = {}

    def handle(self, message: ServerMessage) -> None:
        """Carry out a message; a defect in one of them must not end the link."""
        try:
            self._handle(message)
        except Exception:
            log.exception("a message was not carried out", message=type(message).__name__)

    def _handle(self, message: ServerMessage) -> None:
        match message:
            case StartTask():
                self._start_task(message)
            case DeliverInputs():
                self._deliver(message)
            case CancelInputs():
                self._cancel(message)
            case RecallInputs():
                self._recall(message)
            case StopTask():
                self._stop_task(message)
            case BuildImage():
                self._build(message)
            case CancelBuild():
                self._cancel_build(message)
            case DropLayers():
                self._drop_layers(message)
            case _:
                log.error("a message with no handler", message=type(message).__name__)

    # ── messages ──────────────────────────────────────────────────────────────────────────────

    def _start_task(self, message: StartTask) -> None:
        if message.task_id in self._tasks or self._stopping:
            return
        task = Task(message, self._link, self._preparer, self._relay, self._clock)
        self._tasks[message.task_id] = task
        run = asyncio.create_task(task.run(), name=message.task_id)
        self._runs[message.task_id] = run
        run.add_done_callback(lambda _: self._ended(message.task_id))

    def _ended(self, task_id: str) -> None:
        self._tasks.pop(task_id, None)
        self._runs.pop(task_id, None)

    def _deliver(self, message: DeliverInputs) -> None:
        task = self._tasks.get(message.task_id)
        if task is None:
            keys = [(item.input_id, item.retry_count) for item in message.inputs]
            self._link.send(InputsReturned(message.task_id, keys))
            return
        task.deliver(message.inputs)

    def _cancel(self, message: CancelInputs) -> None:
        task = self._tasks.get(message.task_id)
        if task is not None:
            task.cancel(message.input_ids, gentle=message.gentle)

    def _recall(self, message: RecallInputs) -> None:
        task = self._tasks.get(message.task_id)
        if task is not None:
            task.recall(message.inputs)

    def _stop_task(self, message: StopTask) -> None:
        task = self._tasks.get(message.task_id)
        if task is not None:
            task.stop(graceful=message.graceful, grace_s=message.grace_s)

    def _build(self, message: BuildImage) -> None:
        if self._builds is not None:
            self._builds.start(message)

    def _cancel_build(self, message: CancelBuild) -> None:
        if self._builds is not None:
            self._builds.cancel(message.build_id)

    def _drop_layers(self, message: DropLayers) -> None:
        if self._room is not None:
            drop = asyncio.create_task(self._room.drop(message.keys, others=message.others))
            self._drops.add(drop)
            drop.add_done_callback(self._drops.discard)

    # ── the end ───────────────────────────────────────────────────────────────────────────────

    @property
    def task_ids(self) -> list[str]:
        """The tasks there are."""
        return list(self._tasks)

    async def stop(self, grace_s: float) -> None:
        """End all containers: interrupt, kill after ``grace_s``; returns when nothing is left."""
        self._stopping = True
        for task in self._tasks.values():
            task.stop(graceful=False, grace_s=grace_s, reason="the node is stopping")
        if self._builds is not None:
            await self._builds.stop()
        runs = list(self._runs.values())
        if runs:
            _done, late = await asyncio.wait(runs, timeout=grace_s + 10.0)
            for run in late:
                run.cancel()
            if late:
                await asyncio.wait(late, timeout=10.0)


def _unique(keys: list[Key]) -> list[Key]:
    return list(dict.fromkeys(keys))
