"""Agreeing with nodes on what runs, after either side was away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from homeport.apps.service import AppService
from homeport.calls.model import Input, InputState
from homeport.functions.model import FunctionRecord
from homeport.functions.service import FunctionService
from homeport.kernel.clock import Clock
from homeport.link.messages import (
    CancelInputs,
    Hello,
)
from homeport.nodes.service import Adoption, NodeService
from homeport.sandboxes.service import SandboxService
from homeport.scheduler.board import Board
from homeport.scheduler.fleet import Fleet
from homeport.scheduler.pool import Task, TaskStatus
from homeport.scheduler.settler import Settler
from homeport.tasks.model import TaskRecord
from homeport.tasks.service import TaskService

log = structlog.get_logger(__name__)

RECOVERY_WAIT_S = 5.0
"""After a restart, inputs wait that long for the nodes that may still be running them."""


class Recovery:
    """Takes back containers and inputs that outlived a server, a node or their connection."""

    def __init__(
        self,
        clock: Clock,
        nodes: NodeService,
        task_records: TaskService,
        functions: FunctionService,
        apps: AppService,
        board: Board,
        settler: Settler,
        fleet: Fleet,
        sandboxes: SandboxService,
    ) -> None:
        self._clock = clock
        self._nodes = nodes
        self._task_records = task_records
        self._functions = functions
        self._apps = apps
        self._board = board
        self._settler = settler
        self._fleet = fleet
        self._sandboxes = sandboxes
        self._recovering: dict[str, Input] = {}
        self._nodes_awaited: set[str] = set()

    def forget(self, input_id: str) -> None:
        """The input is not to run again."""
        self._recovering.pop(input_id, None)

    def recover(self, inputs: Sequence[Input], alive: Sequence[TaskRecord]) -> None:
        """Take up what a former server process left: inputs without outputs, tasks alive."""
        self._recovering = {item.input_id: item for item in inputs}
        self._nodes_awaited = {record.node_id for record in alive}
        delay = RECOVERY_WAIT_S if self._nodes_awaited else 0.0
        asyncio.get_running_loop().call_later(delay, self._end)
        for record in self._functions_with_minimum():
            self._board.pool(record).keep_min = True

    def _functions_with_minimum(self) -> list[FunctionRecord]:
        found: list[FunctionRecord] = []
        for app in self._apps.all_live():
            for function_id in app.layout.function_ids.values():
                record = self._functions.find(function_id)
                if record and record.spec and record.spec.autoscaler.min_containers:
                    found.append(record)
        return found

    def _end(self) -> None:
        """Queue what no node came back with."""
        self._nodes_awaited.clear()
        recovering, self._recovering = self._recovering, {}
        fence = int(self._clock.now()) & 0x7FFFFFFF
        for item in recovering.values():
            item.attempt = fence  # beyond any attempt that a late node could still report
        self._settler.enqueue([item for item in recovering.values() if item.output is None])
        for record in list(self._task_records.list()):
            if record.function_id and record.task_id not in self._board.tasks:
                self._task_records.finished(record.task_id)
        for pool in list(self._board.pools.values()):
            self._board.step(pool)

    def joined(self, node_id: str, hello: Hello) -> Adoption:
        adoption = Adoption()
        sandboxes = self._sandboxes.joined(node_id, hello)
        running = {task.task_id for task in hello.running}
        for task in list(self._board.tasks.values()):
            if task.node_id == node_id and task.task_id not in running:
                if task.status is TaskStatus.STARTING and not task.held:
                    # Its start message was lost with the link (or the node was restarted).
                    self._fleet.remove(task)
                else:
                    self._lose(task, "its node was restarted")
        for item in hello.running:
            if item.task_id in sandboxes:
                continue
            task = self._board.tasks.get(item.task_id) or self._adopt(
                node_id, item.task_id, item.ready, item.gpus
            )
            if task is None:
                adoption.lost_tasks.append(item.task_id)
                continue
            task.address = item.address
            self._match_inputs(task, item.inputs, adoption)
            asyncio.get_running_loop().call_soon(self._repeat, task)
        self._sandboxes.serve_waiting()  # only now is all that runs there counted
        if not self._nodes_awaited - set(self._nodes.nodes()):
            asyncio.get_running_loop().call_soon(self._end)
        for pool in list(self._board.pools.values()):
            asyncio.get_running_loop().call_soon(self._board.step, pool)
        return adoption

    def _adopt(self, node_id: str, task_id: str, ready: bool, gpus: Sequence[str]) -> Task | None:
        """Take a container back that a former server process started."""
        record = self._task_records.alive(task_id)
        function = self._functions.find(record.function_id) if record else None
        if record is None or function is None or function.spec is None:
            return None
        if not self._board.may_run(function):
            return None
        pool = self._board.pool(function)
        return self._fleet.adopt(
            pool, node_id, task_id, ready=ready, edition=record.edition, gpus=gpus
        )

    def _repeat(self, task: Task) -> None:
        """Tell its node again what the lost connection may have swallowed."""
        if task.task_id not in self._board.tasks:
            return
        if task.status is TaskStatus.STOPPING and task.leaving is None:
            self._fleet.part(task)
        cancelled = [item for item in task.held.values() if item.cancelled]
        for gentle in (False, True):
            ids = [i.input_id for i in cancelled if (i.call.exchange is not None) is gentle]
            if ids:
                self._nodes.send(task.node_id, CancelInputs(task.task_id, ids, gentle))

    def _match_inputs(self, task: Task, held: list[tuple[str, int]], adoption: Adoption) -> None:
        """Agree with a node on which inputs of a task are still wanted."""
        present = dict(held)
        for input_id, attempt in held:
            item = self._recovering.pop(input_id, None)
            if item is not None and item.output is None:
                item.attempt = attempt
                item.state = InputState.ASSIGNED
                item.task_id = task.task_id
                item.started_at = self._clock.now()  # at the latest: the node does not say
                task.held[input_id] = item
            known = task.held.get(input_id)
            if known is not None and known.attempt == attempt and known.output is None:
                adoption.known_inputs.append((task.task_id, input_id, attempt))
        for input_id, item in list(task.held.items()):
            if item.call.lease is None and present.get(input_id) != item.attempt:
                del task.held[input_id]
                self._settler.requeue(item)

    def lost(self, node_id: str) -> None:
        self._sandboxes.node_lost(node_id)
        for task in list(self._board.tasks.values()):
            if task.node_id == node_id:
                self._lose(task, "its node went away")

    def _lose(self, task: Task, reason: str) -> None:
        """A container is gone without a word: its inputs run again elsewhere."""
        held = list(task.held.values())
        task.held.clear()
        self._fleet.remove(task)
        for item in held:
            self._settler.requeue(item)
        log.warning("container lost", task_id=task.task_id, reason=reason)
        self._board.step(task.pool)
