"""The scheduler, as the rest of the server sees it.

Everything in this package happens on the event loop in reaction to an event (an input, a report of
a node, a timer of a plan); nothing polls. What is decided is decided in ``autoscale``,
``placement`` and ``attempts``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from homeport.apps.model import App, AppState
from homeport.apps.service import AppService
from homeport.calls.model import Input, InputState
from homeport.calls.service import CallService, success, terminated
from homeport.functions.model import Autoscaler, FunctionRecord, FunctionSpec
from homeport.functions.service import FunctionService
from homeport.kernel.clock import Clock
from homeport.link.messages import (
    CancelInputs,
    Hello,
    Message,
)
from homeport.logs.service import LogService
from homeport.nodes.service import Adoption, Durable, NodeService
from homeport.rpc.context import TaskIdentity
from homeport.sandboxes.service import SandboxService
from homeport.scheduler.board import Board
from homeport.scheduler.build_functions import BuildFunctions
from homeport.scheduler.dispatch import Dispatch
from homeport.scheduler.fleet import STOP_GRACE_S, Fleet
from homeport.scheduler.launcher import Launcher
from homeport.scheduler.placement import check_placeable
from homeport.scheduler.pool import TaskStatus
from homeport.scheduler.recovery import Recovery
from homeport.scheduler.reports import Reports
from homeport.scheduler.reservations import Reservations
from homeport.scheduler.sandbox_room import SandboxRoom
from homeport.scheduler.settler import Settler
from homeport.settings import Settings
from homeport.tasks.model import TaskRecord
from homeport.tasks.service import TaskService


@dataclass(slots=True)
class Stats:
    """Numbers of a function's pool."""

    backlog: int
    tasks: int
    running_inputs: int
    headroom: int


class Scheduler:
    """The executor of calls, the runtime of apps and the listener to nodes."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        nodes: NodeService,
        tasks: TaskService,
        functions: FunctionService,
        logs: LogService,
        build_functions: BuildFunctions,
        sandboxes: SandboxService,
    ) -> None:
        self._reservations = Reservations(settings, nodes)
        self._sandboxes = sandboxes
        self._clock = clock
        self._nodes = nodes
        self._task_records = tasks
        self._functions = functions
        self._logs = logs
        self._build_functions = build_functions
        self._calls: CallService
        self._apps: AppService
        self._board: Board
        self._settler: Settler
        self._fleet: Fleet
        self._dispatch: Dispatch
        self._reports: Reports
        self._recovery: Recovery
        functions.on_change(self._function_changed)

    def use(self, calls: CallService, apps: AppService, launcher: Launcher) -> None:
        """Complete the wiring: these need the scheduler themselves."""
        clock, nodes, tasks, functions = (
            self._clock,
            self._nodes,
            self._task_records,
            self._functions,
        )
        self._calls = calls
        self._apps = apps
        self._board = board = Board(clock, apps, self._build_functions)
        self._settler = settler = Settler(clock, functions, calls, board)
        self._fleet = fleet = Fleet(
            clock,
            nodes,
            tasks,
            self._logs,
            launcher,
            self._build_functions,
            board,
            settler,
            self._reservations,
        )
        self._dispatch = dispatch = Dispatch(clock, nodes, board, fleet)
        board.room_made = self._room_made
        room = SandboxRoom(
            self._reservations,
            room_made=self._room_made,
            room_wanted=dispatch.reclaim,
            work_finished=self.work_finished,
        )
        self._sandboxes.use(apps, room)
        dispatch.waiting_elsewhere = lambda: map(room.want, self._sandboxes.waiting_for_gpus())
        self._reports = Reports(
            clock,
            tasks,
            functions,
            self._logs,
            calls,
            self._build_functions,
            board,
            settler,
            fleet,
            dispatch,
            self._sandboxes,
        )
        self._recovery = Recovery(
            clock, nodes, tasks, functions, apps, board, settler, fleet, self._sandboxes
        )

    def _room_made(self) -> None:
        """A container is gone: sandboxes wait for a person or a program, so they come first."""
        self._sandboxes.serve_waiting()
        self._dispatch.serve_starved()

    # ── listener to nodes ───────────────────────────────────────────────────────────────────

    def recover(self, inputs: Sequence[Input], alive: Sequence[TaskRecord]) -> None:
        """Take up what a former server process left: inputs without outputs, tasks alive."""
        self._recovery.recover(inputs, alive)

    def node_joined(self, node_id: str, hello: Hello) -> Adoption:
        return self._recovery.joined(node_id, hello)

    def node_lost(self, node_id: str) -> None:
        self._recovery.lost(node_id)

    def node_said(self, node_id: str, message: Message) -> Durable:
        return self._reports.said(message)

    def room(self) -> Awaitable[None] | None:
        return self._reports.room()

    async def stop(self) -> None:
        """Stop deciding; containers are left to their nodes."""
        for pool in self._board.pools.values():
            pool.rest()
            pool.is_live = False
        self._fleet.rest()

    def identify(self, task_id: str) -> TaskIdentity | None:
        """Who a task is, for the RPCs it makes."""
        task = self._board.tasks.get(task_id)
        if task is None:
            return None
        app = self._apps.find(task.pool.record.app_id)
        return TaskIdentity(
            task_id=task_id,
            app_id=task.pool.record.app_id,
            environment=app.environment if app else "",
            function_id=task.pool.record.function_id,
        )

    def enqueue(self, inputs: Sequence[Input]) -> None:
        self._settler.enqueue(inputs)

    def cancel(self, inputs: Sequence[Input], *, terminate_containers: bool) -> None:
        by_task: dict[tuple[str, bool], list[str]] = {}
        now = self._clock.now()
        touched: set[str] = set()
        for item in inputs:
            task = (
                self._board.tasks.get(item.task_id) if item.state is InputState.ASSIGNED else None
            )
            if task is not None and item.call.lease is not None:
                self._calls.finish([(item, terminated(item, now))])
                self._dispatch.give_back(task, item)
                if terminate_containers:
                    self._fleet.stop(task, graceful=False)
            elif task is not None and item.input_id in task.held:
                gentle = item.call.exchange is not None
                by_task.setdefault((task.task_id, gentle), []).append(item.input_id)
            else:
                self._recovery.forget(item.input_id)
                touched.add(item.call.function_id)
                self._calls.finish([(item, terminated(item, now))])
        for (task_id, gentle), input_ids in by_task.items():
            task = self._board.tasks[task_id]
            if terminate_containers:
                self._fleet.stop(task, graceful=False)
            else:
                self._nodes.send(task.node_id, CancelInputs(task_id, input_ids, gentle))
        for function_id in touched:
            pool = self._board.pools.get(function_id)
            if pool is not None:
                pool.drop_finished()
                self._dispatch.step(pool)

    def give_back(self, item: Input) -> None:
        task = self._board.tasks.get(item.task_id) if item.task_id else None
        finished = success(item, self._clock.now())
        if task is not None:
            self._calls.finish([(item, finished)])
            task.pool.observe(max(0.0, finished.finished_at - item.call.created_at))
            self._dispatch.give_back(task, item)
            return
        self._calls.finish([(item, finished)])
        pool = self._board.pools.get(item.call.function_id)
        if pool is not None:
            pool.drop_finished()

    def work_finished(self, app_id: str) -> None:
        if not self.has_work(app_id):
            self._apps.work_finished(app_id)

    async def publish(self, app: App) -> None:
        wanted = set(app.layout.function_ids.values())
        for function_id in wanted:
            record = self._functions.get(function_id)
            if record.require_spec().autoscaler.min_containers or function_id in self._board.pools:
                pool = self._board.pool(record)
                pool.keep_min = True
                self._dispatch.step(pool)
        for pool in list(self._board.pools.values()):
            if pool.record.app_id == app.app_id:  # the app may want new containers of all
                self._fleet.replace(pool)
                self._dispatch.step(pool)
        if app.state is AppState.DEPLOYED:
            self._retire_removed(app.app_id, wanted)

    def _retire_removed(self, app_id: str, wanted: set[str]) -> None:
        """End containers of functions that the new version no longer has."""
        for pool in self._board.pools.values():
            spec = pool.spec
            if spec.app_id == app_id and (spec.base_function_id or spec.function_id) not in wanted:
                pool.keep_min = False
                for task in list(pool.tasks.values()):
                    self._fleet.stop(task, graceful=True)

    def has_work(self, app_id: str) -> bool:
        return self._calls.has_work(app_id) or self._sandboxes.has_live(app_id)

    async def stop_app(self, app_id: str, reason: str) -> None:
        pools = [pool for pool in self._board.pools.values() if pool.record.app_id == app_id]
        for pool in pools:
            pool.is_live = False
            pool.keep_min = False
            self._dispatch.forget(pool)
        held = [
            item for pool in pools for task in pool.tasks.values() for item in task.held.values()
        ]
        now = self._clock.now()
        self._calls.cancel_app(app_id)
        for item in held:
            if item.output is None:
                self._calls.finish([(item, terminated(item, now, f"App stopped: {reason}"))])
        tasks = [task for pool in pools for task in pool.tasks.values()]
        for task in tasks:
            self._fleet.stop(task, graceful=False)
        sandboxes = asyncio.create_task(self._sandboxes.stop_app(app_id))
        if tasks:
            waits = [asyncio.ensure_future(task.gone.wait()) for task in tasks]
            await asyncio.wait(waits, timeout=STOP_GRACE_S + 10.0)
            for wait in waits:
                wait.cancel()
        await sandboxes
        for pool in pools:
            pool.rest()
            self._board.pools.pop(pool.record.function_id, None)

    def stats(self, function_id: str) -> Stats:
        pools = [
            pool
            for pool in self._board.pools.values()
            if function_id in (pool.spec.function_id, pool.spec.base_function_id)
        ]
        slots = sum(pool.spec.slots * len(pool.tasks) for pool in pools)
        running = sum(pool.running for pool in pools)
        return Stats(
            backlog=sum(pool.waiting_count + pool.delayed for pool in pools),
            tasks=sum(len(pool.tasks) for pool in pools),
            running_inputs=running,
            headroom=max(0, slots - running),
        )

    def containers(self, function_id: str) -> int:
        """How many a function has, without its variants."""
        pool = self._board.pools.get(function_id)
        return len(pool.tasks) if pool is not None else 0

    def is_full(self, function_id: str) -> bool:
        """Whether no container of a function has room, and none is coming."""
        pool = self._board.pools.get(function_id)
        if pool is None or not pool.settings.max_containers:
            return False
        statuses = [task.status for task in pool.tasks.values()]
        if len(statuses) < pool.settings.max_containers or TaskStatus.STARTING in statuses:
            return False
        return not any(task.room > 0 for task in pool.tasks.values())

    def override(self, function_id: str, changes: Autoscaler) -> Autoscaler:
        pool = self._board.pool(self._functions.get(function_id))
        pool.override(changes)
        pool.keep_min = True
        self._dispatch.step(pool)
        return pool.settings

    def settings(self, function_id: str) -> Autoscaler:
        pool = self._board.pools.get(function_id)
        if pool is not None:
            return pool.settings
        return self._functions.get(function_id).require_spec().autoscaler

    def check_placeable(self, spec: FunctionSpec) -> list[str]:
        return check_placeable(spec, self._reservations.views())

    def stop_task(self, task_id: str, *, graceful: bool) -> None:
        task = self._board.tasks.get(task_id)
        if task is not None:
            self._fleet.stop(task, graceful=graceful)
        else:
            self._sandboxes.terminate_task(task_id)

    def _function_changed(self, record: FunctionRecord) -> None:
        """A new definition: containers of the old one finish what they have and end."""
        pool = self._board.pools.get(record.function_id)
        if pool is None or record.spec is None:
            return
        changed = pool.record.definition_id != record.definition_id
        pool.redefine(record)
        if changed:
            self._fleet.replace(pool)
            self._dispatch.step(pool)
