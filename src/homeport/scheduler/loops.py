"""Runs the decisions: queues inputs, starts and stops containers, settles attempts.

Everything here happens on the event loop in reaction to an event (an input, a report of a node,
a timer of a plan); nothing polls. What is decided is decided in ``autoscale``, ``placement`` and
``attempts``.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

import structlog

from homeport.apps.model import App, AppState
from homeport.apps.service import AppService
from homeport.calls.model import CallType, Input, InputState, Output
from homeport.calls.service import CANCELLED_TEXT, CallService, terminated
from homeport.functions.model import Autoscaler, FunctionRecord, FunctionSpec
from homeport.functions.service import FunctionService
from homeport.kernel import ids
from homeport.kernel.clock import Clock
from homeport.kernel.resources import Resources
from homeport.link.messages import (
    STATUS_FAILURE,
    STATUS_INIT_FAILURE,
    STATUS_SUCCESS,
    CancelInputs,
    DeliverInputs,
    Hello,
    InputItem,
    InputsReturned,
    InputsStarted,
    Logs,
    Message,
    Outputs,
    RecallInputs,
    Result,
    StopTask,
    TaskExited,
    TaskInitFailed,
    TaskReady,
    TaskStopping,
)
from homeport.logs.model import TASK_ACTIVE, TASK_COMPLETED
from homeport.logs.service import LogService
from homeport.nodes.service import Adoption, Durable, NodeService
from homeport.rpc.context import TaskIdentity
from homeport.scheduler import attempts
from homeport.scheduler.attempts import Decision, Verdict
from homeport.scheduler.autoscale import IdleTask, PoolView, plan
from homeport.scheduler.build_functions import BuildFunctions
from homeport.scheduler.launcher import Launcher, start_error
from homeport.scheduler.placement import Defaults, NodeView, check_placeable, place
from homeport.scheduler.pool import STUCK_S, Pool, Task, TaskStatus
from homeport.settings import Settings
from homeport.tasks.model import TaskRecord
from homeport.tasks.service import TaskService

log = structlog.get_logger(__name__)

STOP_GRACE_S = 8.0
"""Exit handlers of an interrupted container have that long before it is killed: a client waits 10 s
for the last lines of its app."""
START_BACKOFF_S = 1.0
START_BACKOFF_MAX_S = 60.0
START_FAILURES_MAX = 3
"""Failed starts by the platform itself (not by user code) before waiting inputs are failed."""
SCALE_LINGER_S = 0.02
"""Outputs make no hurry: a container takes longer to start, and stops after seconds of idleness."""
RECOVERY_WAIT_S = 5.0
"""After a restart, inputs wait that long for the nodes that may still be running them."""


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
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._nodes = nodes
        self._task_records = tasks
        self._functions = functions
        self._logs = logs
        self._build_functions = build_functions
        self._defaults = Defaults(
            settings.default_milli_cpu, settings.default_memory_mb, settings.containers_max
        )
        self._pools: dict[str, Pool] = {}
        self._tasks: dict[str, Task] = {}
        self._reserved: dict[str, Resources] = {}
        self._starved: dict[str, Pool] = {}
        self._recovering: dict[str, Input] = {}
        self._recovery_nodes: set[str] = set()
        self._launches: set[asyncio.Task[None]] = set()
        self._calls: CallService
        self._apps: AppService
        self._launcher: Launcher
        functions.on_change(self._function_changed)

    def use(self, calls: CallService, apps: AppService, launcher: Launcher) -> None:
        """Complete the wiring: these need the scheduler themselves."""
        self._calls = calls
        self._apps = apps
        self._launcher = launcher

    # ── start and stop ──────────────────────────────────────────────────────────────────────

    def recover(self, inputs: Sequence[Input], alive: Sequence[TaskRecord]) -> None:
        """Take up what a former server process left: inputs without outputs, tasks alive."""
        self._recovering = {item.input_id: item for item in inputs}
        self._recovery_nodes = {record.node_id for record in alive}
        delay = RECOVERY_WAIT_S if self._recovery_nodes else 0.0
        asyncio.get_running_loop().call_later(delay, self._end_recovery)
        for record in self._functions_with_minimum():
            self._pool(record).keep_min = True

    def _functions_with_minimum(self) -> list[FunctionRecord]:
        found: list[FunctionRecord] = []
        for app in self._apps.all_live():
            for function_id in app.layout.function_ids.values():
                record = self._functions.find(function_id)
                if record and record.spec and record.spec.autoscaler.min_containers:
                    found.append(record)
        return found

    def _end_recovery(self) -> None:
        """Queue what no node came back with."""
        self._recovery_nodes.clear()
        recovering, self._recovering = self._recovering, {}
        fence = int(self._clock.now()) & 0x7FFFFFFF
        for item in recovering.values():
            item.attempt = fence  # beyond any attempt that a late node could still report
        self.enqueue([item for item in recovering.values() if item.output is None])
        for record in list(self._task_records.list()):
            if record.task_id not in self._tasks:
                self._task_records.finished(record.task_id)
        for pool in list(self._pools.values()):
            self._step(pool)

    async def stop(self) -> None:
        """Stop deciding; containers are left to their nodes."""
        for pool in self._pools.values():
            pool.rest()
            pool.is_live = False
        for launch in list(self._launches):
            launch.cancel()

    def identify(self, task_id: str) -> TaskIdentity | None:
        """Who a task is, for the RPCs it makes."""
        task = self._tasks.get(task_id)
        if task is None:
            return None
        app = self._apps.find(task.pool.record.app_id)
        return TaskIdentity(
            task_id=task_id,
            app_id=task.pool.record.app_id,
            environment=app.environment if app else "",
            function_id=task.pool.record.function_id,
        )

    # ── executor of calls ───────────────────────────────────────────────────────────────────

    def enqueue(self, inputs: Sequence[Input]) -> None:
        pools: dict[str, Pool] = {}
        for item in inputs:
            record = self._functions.find(item.call.function_id)
            if record is None or record.spec is None:
                self._finish(item, Result(STATUS_FAILURE, exception="The function is gone"))
                continue
            pool = self._pool(record)
            if not self._app_lives(record.app_id):
                self._calls.finish([(item, terminated(item, self._clock.now(), "App stopped"))])
                continue
            if not pool.waiting:
                pool.progress_at = self._clock.monotonic()
            pool.push([item])
            pools[pool.record.function_id] = pool
        for pool in pools.values():
            self._step(pool)

    def cancel(self, inputs: Sequence[Input], *, terminate_containers: bool) -> None:
        by_task: dict[str, list[str]] = {}
        now = self._clock.now()
        touched: set[str] = set()
        for item in inputs:
            task = self._tasks.get(item.task_id) if item.state is InputState.ASSIGNED else None
            if task is not None and item.input_id in task.held:
                by_task.setdefault(task.task_id, []).append(item.input_id)
            else:
                self._recovering.pop(item.input_id, None)
                touched.add(item.call.function_id)
                self._calls.finish([(item, terminated(item, now))])
        for task_id, input_ids in by_task.items():
            task = self._tasks[task_id]
            if terminate_containers:
                self._stop(task, graceful=False)
            else:
                self._nodes.send(task.node_id, CancelInputs(task_id, input_ids))
        for function_id in touched:
            pool = self._pools.get(function_id)
            if pool is not None:
                pool.drop_finished()
                self._step(pool)

    def work_finished(self, app_id: str) -> None:
        self._apps.work_finished(app_id)

    # ── runtime of apps ─────────────────────────────────────────────────────────────────────

    async def publish(self, app: App) -> None:
        wanted = set(app.layout.function_ids.values())
        for function_id in wanted:
            record = self._functions.get(function_id)
            if record.require_spec().autoscaler.min_containers or function_id in self._pools:
                pool = self._pool(record)
                pool.keep_min = True
                self._step(pool)
        if app.state is AppState.DEPLOYED:
            self._retire_removed(app.app_id, wanted)

    def _retire_removed(self, app_id: str, wanted: set[str]) -> None:
        """End containers of functions that the new version no longer has."""
        for pool in self._pools.values():
            spec = pool.spec
            if spec.app_id == app_id and (spec.base_function_id or spec.function_id) not in wanted:
                pool.keep_min = False
                for task in list(pool.tasks.values()):
                    self._stop(task, graceful=True)

    def has_work(self, app_id: str) -> bool:
        return self._calls.has_work(app_id)

    async def stop_app(self, app_id: str, reason: str) -> None:
        pools = [pool for pool in self._pools.values() if pool.record.app_id == app_id]
        for pool in pools:
            pool.is_live = False
            pool.keep_min = False
            self._starved.pop(pool.record.function_id, None)
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
            self._stop(task, graceful=False)
        if tasks:
            waits = [asyncio.ensure_future(task.gone.wait()) for task in tasks]
            await asyncio.wait(waits, timeout=STOP_GRACE_S + 10.0)
            for wait in waits:
                wait.cancel()
        for pool in pools:
            pool.rest()
            self._pools.pop(pool.record.function_id, None)

    # ── pools for the edge ──────────────────────────────────────────────────────────────────

    def stats(self, function_id: str) -> Stats:
        pools = [
            pool
            for pool in self._pools.values()
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

    def override(self, function_id: str, changes: Autoscaler) -> Autoscaler:
        pool = self._pool(self._functions.get(function_id))
        pool.override(changes)
        pool.keep_min = True
        self._step(pool)
        return pool.settings

    def settings(self, function_id: str) -> Autoscaler:
        pool = self._pools.get(function_id)
        if pool is not None:
            return pool.settings
        return self._functions.get(function_id).require_spec().autoscaler

    def check_placeable(self, spec: FunctionSpec) -> list[str]:
        return check_placeable(spec, self._node_views())

    def stop_task(self, task_id: str, *, graceful: bool) -> None:
        task = self._tasks.get(task_id)
        if task is not None:
            self._stop(task, graceful=graceful)

    def _pool(self, record: FunctionRecord) -> Pool:
        pool = self._pools.get(record.function_id)
        if pool is None:
            pool = Pool(record, self._clock.monotonic())
            self._pools[record.function_id] = pool
        return pool

    def _app_lives(self, app_id: str) -> bool:
        app = self._apps.find(app_id)
        return app is not None and app.is_live

    def _function_changed(self, record: FunctionRecord) -> None:
        """A new definition: containers of the old one finish what they have and end."""
        pool = self._pools.get(record.function_id)
        if pool is None or record.spec is None:
            return
        changed = pool.record.definition != record.definition
        pool.redefine(record)
        if changed:
            for task in list(pool.tasks.values()):
                if task.definition != record.definition:
                    self._stop(task, graceful=True)

    # ── dispatch ────────────────────────────────────────────────────────────────────────────

    def _step(self, pool: Pool) -> None:
        """Hand out what can be handed out, then see to the number of containers."""
        if pool.waiting:
            for task in sorted(pool.tasks.values(), key=lambda item: len(item.held)):
                if not pool.waiting:
                    break
                self._fill(task, limit=pool.spec.slots)
            for task in list(pool.tasks.values()):
                if not pool.waiting:
                    break
                self._fill(task, limit=pool.spec.slots + pool.prefetch)
        self._scale(pool)

    def _fill(self, task: Task, limit: int) -> None:
        """Give ``task`` waiting inputs up to ``limit`` held ones."""
        pool = task.pool
        count = min(task.room, limit - len(task.held))
        if count <= 0:
            return
        if not task.held:
            task.progress_at = self._clock.monotonic()
        items: list[InputItem] = []
        while len(items) < count:
            item = pool.pop()
            if item is None:
                break
            item.state = InputState.ASSIGNED
            item.task_id = task.task_id
            task.held[item.input_id] = item
            if task.inputs_left > 0:
                task.inputs_left -= 1
            items.append(_item(item, final=task.inputs_left == 0))
        if items:
            self._nodes.send(task.node_id, DeliverInputs(task.task_id, items))

    def _scale_soon(self, pool: Pool) -> None:
        """One look at the number of containers for all the outputs of a moment."""
        if pool.scaling is None:
            loop = asyncio.get_running_loop()
            pool.scaling = loop.call_later(SCALE_LINGER_S, self._scale, pool)

    def _scale(self, pool: Pool) -> None:
        if pool.scaling is not None:
            pool.scaling.cancel()
            pool.scaling = None
        now = self._clock.monotonic()
        decision = plan(_view(pool, now, self._app_lives(pool.record.app_id)))
        for task_id in decision.stop:
            self._stop(pool.tasks[task_id], graceful=True)
        if decision.start and now < pool.not_before:
            self._look_again(pool, pool.not_before)
            return
        for _ in range(decision.start):
            if not self._start(pool):
                self._starved[pool.record.function_id] = pool
                self._reclaim(pool)
                break
        else:
            self._starved.pop(pool.record.function_id, None)
        if decision.check_at is not None:
            self._look_again(pool, decision.check_at)

    def _look_again(self, pool: Pool, at: float) -> None:
        """Plan once more at ``at``, or before: a timer that is set for earlier stays."""
        if pool.timer is not None:
            if pool.timer_at <= at:
                return
            pool.timer.cancel()
        delay = max(0.0, at - self._clock.monotonic())
        pool.timer_at = at
        pool.timer = asyncio.get_running_loop().call_later(delay, self._scale_on_time, pool)

    def _scale_on_time(self, pool: Pool) -> None:
        pool.timer = None
        self._scale(pool)

    def _reclaim(self, starved: Pool) -> None:
        """The machine is full: end the longest idle container that another function can spare."""
        candidates = [
            task
            for task in self._tasks.values()
            if task.is_idle
            and task.pool is not starved
            and not task.pool.waiting
            and len(task.pool.tasks)
            > ((task.pool.settings.min_containers or 0) if task.pool.keep_min else 0)
        ]
        if candidates:
            self._stop(min(candidates, key=lambda task: task.idle_since), graceful=True)

    # ── containers ──────────────────────────────────────────────────────────────────────────

    def _node_views(self) -> list[NodeView]:
        views: list[NodeView] = []
        for node_id, session in self._nodes.nodes().items():
            reserved = self._reserved.get(node_id, Resources())
            views.append(
                NodeView(
                    node_id=node_id,
                    capacity=session.capacity,
                    free=session.capacity - reserved,
                    gpu_type=session.gpu_type,
                    tasks=sum(1 for task in self._tasks.values() if task.node_id == node_id),
                )
            )
        return views

    def _start(self, pool: Pool) -> bool:
        """Start one container; ``False`` when no node has room."""
        spot = place(pool.spec, self._node_views(), self._defaults)
        if spot is None:
            return False
        node_id, reserved = spot
        task = Task(
            task_id=ids.new(ids.TASK),
            pool=pool,
            node_id=node_id,
            definition=pool.record.definition,
            reserved=reserved,
            memory_limit_mb=self._memory_limit_mb(pool.spec, node_id),
            created_at=self._clock.monotonic(),
            inputs_left=1 if pool.spec.single_use else -1,
        )
        self._admit(task)
        self._task_records.created(
            TaskRecord(
                task_id=task.task_id,
                function_id=pool.record.function_id,
                app_id=pool.record.app_id,
                node_id=node_id,
                enqueued_at=self._clock.now(),
            )
        )
        launch = asyncio.create_task(self._launch(task))
        self._launches.add(launch)
        launch.add_done_callback(self._launches.discard)
        return True

    def _admit(self, task: Task) -> None:
        task.pool.tasks[task.task_id] = task
        self._tasks[task.task_id] = task
        reserved = self._reserved.get(task.node_id, Resources())
        self._reserved[task.node_id] = reserved + task.reserved

    def _memory_limit_mb(self, spec: FunctionSpec, node_id: str) -> int:
        """The hard limit: the function's own, else what it asks for or the default, if larger."""
        if spec.memory_mb_max:
            return spec.memory_mb_max
        capacity = self._nodes.nodes()[node_id].capacity.memory_mb
        default = self._settings.default_memory_limit_mb or capacity // 2
        return max(spec.memory_mb, default)

    async def _launch(self, task: Task) -> None:
        try:
            message = await self._launcher.prepare(
                task.pool.record, task.task_id, task.memory_limit_mb, task.reserved.milli_cpu
            )
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.warning("container could not be prepared", task_id=task.task_id, error=repr(error))
            self._remove(task)
            self._start_failed(task.pool, start_error(error), final=True)
            return
        if task.task_id not in self._tasks:
            return
        message.commit_layer = self._build_functions.layer_of(message.function_id)
        if not self._nodes.send(task.node_id, message):
            self._remove(task)
            self._start_failed(task.pool, "the node it was to start on is gone", final=False)

    def _stop(self, task: Task, *, graceful: bool) -> None:
        if task.status is TaskStatus.STOPPING and (graceful or not task.graceful):
            return
        task.status = TaskStatus.STOPPING
        task.graceful = graceful
        sent = self._nodes.send(task.node_id, StopTask(task.task_id, graceful, STOP_GRACE_S))
        if not sent and task.node_id not in self._nodes.nodes():
            log.debug("stop will be settled when the node returns", task_id=task.task_id)

    def _remove(self, task: Task) -> None:
        task.pool.tasks.pop(task.task_id, None)
        if self._tasks.pop(task.task_id, None) is not None:
            reserved = self._reserved.get(task.node_id, Resources())
            self._reserved[task.node_id] = reserved - task.reserved
        self._task_records.finished(task.task_id)
        task.gone.set()
        if self._starved:
            # Round robin: whoever waited longest is served first, then goes to the end.
            for function_id in list(self._starved):
                pool = self._starved.pop(function_id)
                self._step(pool)

    def _start_failed(
        self, pool: Pool, reason: str, *, final: bool, result: Result | None = None
    ) -> None:
        """A container did not come up: back off, and tell waiting callers when it is no use."""
        pool.start_failures += 1
        delay = min(START_BACKOFF_S * 2 ** (pool.start_failures - 1), START_BACKOFF_MAX_S)
        pool.not_before = self._clock.monotonic() + delay
        self._logs.system(pool.record.app_id, f"Container failed to start: {reason}\n")
        others = any(task.status is TaskStatus.READY for task in pool.tasks.values())
        if not others and (final or pool.start_failures >= START_FAILURES_MAX):
            failure = result or Result(
                STATUS_INIT_FAILURE,
                exception=f"Function {pool.spec.display_name!r} could not start: {reason}",
            )
            while (item := pool.pop()) is not None:
                self._finish(item, failure)
        self._scale(pool)

    # ── what nodes say ──────────────────────────────────────────────────────────────────────

    def node_joined(self, node_id: str, hello: Hello) -> Adoption:
        adoption = Adoption()
        running = {task.task_id for task in hello.running}
        for task in list(self._tasks.values()):
            if task.node_id == node_id and task.task_id not in running:
                if task.status is TaskStatus.STARTING and not task.held:
                    # Its start message was lost with the link (or the node was restarted).
                    self._remove(task)
                else:
                    self._lost(task, "its node was restarted")
        for item in hello.running:
            task = self._tasks.get(item.task_id) or self._adopt(node_id, item.task_id, item.ready)
            if task is None:
                adoption.lost_tasks.append(item.task_id)
                continue
            self._match_inputs(task, item.inputs, adoption)
        if not self._recovery_nodes - set(self._nodes.nodes()):
            asyncio.get_running_loop().call_soon(self._end_recovery)
        for pool in list(self._pools.values()):
            asyncio.get_running_loop().call_soon(self._step, pool)
        return adoption

    def _adopt(self, node_id: str, task_id: str, ready: bool) -> Task | None:
        """Take a container back that a former server process started."""
        record = self._task_records.alive(task_id)
        function = self._functions.find(record.function_id) if record else None
        if record is None or function is None or function.spec is None:
            return None
        if not self._app_lives(function.app_id):
            return None
        pool = self._pool(function)
        session = self._nodes.nodes()[node_id]
        spot = place(
            pool.spec,
            [NodeView(node_id, session.capacity, session.capacity, session.gpu_type, 0)],
            self._defaults,
        )
        task = Task(
            task_id=task_id,
            pool=pool,
            node_id=node_id,
            definition=function.definition,
            reserved=spot[1] if spot else Resources(),
            memory_limit_mb=self._memory_limit_mb(pool.spec, node_id),
            created_at=self._clock.monotonic(),
            status=TaskStatus.READY if ready else TaskStatus.STARTING,
            idle_since=self._clock.monotonic(),
        )
        self._admit(task)
        return task

    def _match_inputs(self, task: Task, held: list[tuple[str, int]], adoption: Adoption) -> None:
        """Agree with a node on which inputs of a task are still wanted."""
        present = dict(held)
        for input_id, attempt in held:
            item = self._recovering.pop(input_id, None)
            if item is not None and item.output is None:
                item.attempt = attempt
                item.state = InputState.ASSIGNED
                item.task_id = task.task_id
                task.held[input_id] = item
            known = task.held.get(input_id)
            if known is not None and known.attempt == attempt and known.output is None:
                adoption.known_inputs.append((task.task_id, input_id, attempt))
        for input_id, item in list(task.held.items()):
            if present.get(input_id) != item.attempt:
                del task.held[input_id]
                self._requeue(item)

    def node_lost(self, node_id: str) -> None:
        for task in list(self._tasks.values()):
            if task.node_id == node_id:
                self._lost(task, "its node went away")

    def _lost(self, task: Task, reason: str) -> None:
        """A container is gone without a word: its inputs run again elsewhere."""
        held = list(task.held.values())
        task.held.clear()
        self._remove(task)
        for item in held:
            self._requeue(item)
        log.warning("container lost", task_id=task.task_id, reason=reason)
        self._step(task.pool)

    def node_said(self, node_id: str, message: Message) -> Durable:
        if isinstance(message, Logs):
            self._log(message)
            return []
        if isinstance(message, Outputs):
            return self._outputs(message)
        task = self._tasks.get(getattr(message, "task_id", ""))
        if task is None:
            return []
        if isinstance(message, InputsStarted):
            task.running.update(input_id for input_id, _ in message.inputs)
        elif isinstance(message, TaskReady):
            self._ready(task, message)
        elif isinstance(message, InputsReturned):
            self._returned(task, message)
        elif isinstance(message, TaskStopping):
            task.status = TaskStatus.STOPPING
            task.graceful = True
        elif isinstance(message, TaskInitFailed):
            self._init_failed(task, message)
        elif isinstance(message, TaskExited):
            return self._exited(task, message)
        return []

    def _log(self, message: Logs) -> None:
        """A container's output; its last lines may come after its end."""
        record = self._task_records.recent(message.task_id)
        if record is None:
            return
        if self._build_functions.take_logs(record.function_id, message.entries):
            return
        function = self._functions.find(record.function_id)
        base = function.spec.base_function_id if function and function.spec else ""
        self._logs.append(
            record.app_id,
            message.task_id,
            record.function_id,
            message.entries,
            root_function_id=base or record.function_id,
        )

    def room(self) -> Awaitable[None] | None:
        """What to wait for while too many log lines are not stored yet."""
        return self._logs.drain() if self._logs.is_behind else None

    def _ready(self, task: Task, message: TaskReady) -> None:
        if task.status is TaskStatus.STARTING:
            task.status = TaskStatus.READY
        task.idle_since = task.progress_at = self._clock.monotonic()
        task.pool.start_failures = 0
        task.pool.not_before = 0.0
        self._task_records.started(task.task_id, message.time)
        self._logs.task_state(task.pool.record.app_id, task.task_id, TASK_ACTIVE)
        self._step(task.pool)
        if task.is_idle:
            self._spread(task.pool)
            self._give_way(task)

    def _outputs(self, message: Outputs) -> Durable:
        task = self._tasks.get(message.task_id)
        finished: list[tuple[Input, Output]] = []
        for output in message.items:
            item = self._calls.find_input(output.input_id)
            if task is not None:
                held = task.held.get(output.input_id)
                if held is not None and held.attempt == output.retry_count:
                    del task.held[output.input_id]
                task.running.discard(output.input_id)
            if item is None or item.output is not None or item.attempt != output.retry_count:
                continue
            policy = self._policy(item)
            decision = attempts.after_output(
                output.result,
                policy=policy,
                user_retries=item.user_retries,
                cancelled=item.cancelled,
            )
            if decision.verdict is Verdict.FINISH:
                if item.cancelled and not output.result.exception:
                    output.result.exception = CANCELLED_TEXT
                finished.append(
                    (
                        item,
                        Output(
                            input_id=item.input_id,
                            idx=item.idx,
                            result=output.result,
                            data_format=output.data_format,
                            task_id=message.task_id,
                            started_at=output.started_at,
                            finished_at=output.finished_at,
                        ),
                    )
                )
                if task is not None and output.result.status == STATUS_SUCCESS:
                    task.pool.observe(max(0.0, output.finished_at - output.started_at))
            else:
                self._settle(item, decision)
        durable = self._calls.finish(finished) if finished else []
        if task is not None:
            self._advanced(task)
        return durable

    def _advanced(self, task: Task) -> None:
        """A container ended inputs: give it others, see what that means for the rest."""
        pool = task.pool
        task.progress_at = pool.progress_at = self._clock.monotonic()
        task.stalled = False
        if not task.held:
            task.idle_since = task.progress_at
        if pool.waiting and len(task.held) <= pool.spec.slots + pool.prefetch // 2:
            self._fill(task, limit=pool.spec.slots + pool.prefetch)
        if pool.waiting or not task.held:
            self._scale_soon(pool)
        if task.is_idle:
            self._spread(pool)
            self._give_way(task)

    def _spread(self, pool: Pool) -> None:
        """A container has nothing to do: take over what waits behind slow inputs of others."""
        if pool.recall is not None:
            pool.recall.cancel()
            pool.recall = None
        idle = sum(1 for task in pool.tasks.values() if task.is_idle)
        behind = [task for task in pool.tasks.values() if len(task.held) > pool.spec.slots]
        if not idle or not behind or pool.waiting:
            return
        now = self._clock.monotonic()
        for task in behind:
            if now - task.progress_at >= STUCK_S:
                keys = [(key, item.attempt) for key, item in task.held.items()]
                recalled = [key for key in keys if key[0] not in task.running]
                self._nodes.send(task.node_id, RecallInputs(task.task_id, recalled))
                task.progress_at = now
        pool.recall = asyncio.get_running_loop().call_later(STUCK_S, self._spread, pool)

    def _give_way(self, idle: Task) -> None:
        """An idle container makes room for functions that found the machine full."""
        for pool in self._starved.values():
            if pool is not idle.pool:
                self._reclaim(pool)
                return

    def _policy(self, item: Input):
        record = self._functions.find(item.call.function_id)
        return record.spec.retry_policy if record and record.spec else None

    def _settle(self, item: Input, decision: Decision) -> None:
        """Carry out what was decided about an input whose attempt ended."""
        if decision.verdict is Verdict.FINISH:
            assert decision.result is not None
            self._finish(item, decision.result)
        elif decision.verdict is Verdict.REQUEUE:
            self._requeue(item)
        else:
            item.user_retries += 1
            item.attempt += 1
            item.state = InputState.WAITING
            item.task_id = ""
            pool = self._pools.get(item.call.function_id)
            if pool is not None:
                pool.delayed += 1
            asyncio.get_running_loop().call_later(decision.delay_s, self._retry, item, pool)

    def _retry(self, item: Input, pool: Pool | None) -> None:
        if pool is not None:
            pool.delayed -= 1
        if item.output is None:
            self.enqueue([item])

    def _requeue(self, item: Input) -> None:
        """Run an input again, before those that have not run yet."""
        if item.output is not None:
            return
        if item.cancelled:
            self._calls.finish([(item, terminated(item, self._clock.now()))])
            return
        item.attempt += 1
        record = self._functions.find(item.call.function_id)
        if record is None or not self._app_lives(record.app_id):
            self._calls.finish([(item, terminated(item, self._clock.now(), "App stopped"))])
            return
        pool = self._pool(record)
        pool.push_front(item)
        asyncio.get_running_loop().call_soon(self._step, pool)

    def _finish(self, item: Input, result: Result) -> Durable:
        now = self._clock.now()
        output = Output(
            input_id=item.input_id,
            idx=item.idx,
            result=result,
            data_format=1 if result.data is not None else 0,
            task_id=item.task_id,
            started_at=now,
            finished_at=now,
        )
        return self._calls.finish([(item, output)])

    def _returned(self, task: Task, message: InputsReturned) -> None:
        for input_id, attempt in reversed(message.inputs):  # each goes to the front of the queue
            item = task.held.get(input_id)
            if item is not None and item.attempt == attempt:
                del task.held[input_id]
                self._requeue(item)
        task.stalled = bool(task.held)
        if not task.held:
            task.idle_since = self._clock.monotonic()

    def _init_failed(self, task: Task, message: TaskInitFailed) -> None:
        """User code failed before (import, enter) or after (exit) the inputs."""
        if task.status is TaskStatus.STOPPING:
            self._logs.system(
                task.pool.record.app_id, f"Exit handler failed: {message.result.exception}\n"
            )
            return
        task.init_failed = True
        task.status = TaskStatus.STOPPING
        self._start_failed(
            task.pool,
            message.result.exception or "its set-up failed",
            final=True,
            result=message.result,
        )

    def _exited(self, task: Task, message: TaskExited) -> Durable:
        pool = task.pool
        was_starting = task.status is TaskStatus.STARTING
        asked = task.status is TaskStatus.STOPPING
        held = dict(task.held)
        task.held.clear()
        self._remove(task)
        self._build_functions.exited(pool.record.function_id, task.task_id, message.layer)
        durable: Durable = []
        unfinished = {input_id for input_id, _ in message.unfinished}
        for input_id, item in held.items():
            if item.output is not None:
                continue
            if input_id not in unfinished or item.cancelled:
                self._requeue(item)
                continue
            item.crashes += 1
            decision = attempts.after_exit(
                returncode=message.returncode,
                oom_killed=message.oom_killed,
                memory_limit_mb=task.memory_limit_mb,
                was_asked_to_stop=asked,
                reason=_kill_reason(message),
                policy=self._policy(item),
                user_retries=item.user_retries,
                crashes=item.crashes,
            )
            self._settle(item, decision)
        if not asked and (message.oom_killed or message.returncode != 0):
            text = attempts.crash_text(message.returncode, message.oom_killed, task.memory_limit_mb)
            self._logs.system(pool.record.app_id, f"{task.task_id}: {text}\n", task_id=task.task_id)
        if was_starting and not message.was_ready:
            self._never_ready(pool, task, message)
        self._logs.task_state(pool.record.app_id, task.task_id, TASK_COMPLETED)
        self._step(pool)
        return durable

    def _never_ready(self, pool: Pool, task: Task, message: TaskExited) -> None:
        """It ended before it asked for an input, and user code did not say why."""
        if message.start_failed:
            self._start_failed(pool, message.reason, final=False)
            return
        if message.oom_killed:
            reason = attempts.crash_text(message.returncode, True, task.memory_limit_mb)
        else:
            reason = _kill_reason(message) or f"the container exited with code {message.returncode}"
        tail = message.stderr_tail.strip()
        if tail and not _kill_reason(message):
            reason = f"{reason}. Its last output:\n{tail}"
        self._start_failed(pool, reason, final=True)


def _kill_reason(message: TaskExited) -> str:
    """Why the node itself killed the container (a timeout, say); empty if it ended by itself."""
    was_killed = message.returncode == -signal.SIGKILL and not message.oom_killed
    return message.reason if was_killed else ""


def _item(item: Input, *, final: bool) -> InputItem:
    return InputItem(
        input_id=item.input_id,
        call_id=item.call.call_id,
        retry_count=item.attempt,
        args=item.args,
        args_blob_id=item.args_blob_id,
        data_format=item.data_format,
        method_name=item.method_name,
        invocation_type=int(item.call.invocation),
        final=final,
        patient=item.call.type is CallType.MAP,
    )


def _view(pool: Pool, now: float, is_live: bool) -> PoolView:
    spec = pool.spec
    ready = [task for task in pool.tasks.values() if task.status is TaskStatus.READY]
    starting = sum(1 for task in pool.tasks.values() if task.status is TaskStatus.STARTING)
    target = (spec.target_concurrent or max(1, spec.max_concurrent)) * max(1, spec.batch_max_size)
    return PoolView(
        now=now,
        waiting=pool.waiting_count,
        running=sum(len(task.held) for task in ready if not task.stalled),
        ready=len(ready),
        stalled=sum(1 for task in ready if task.stalled),
        starting=starting,
        idle=tuple(IdleTask(task.task_id, task.idle_since) for task in ready if not task.held),
        slots=spec.slots,
        target_slots=min(target, spec.slots),
        settings=pool.settings,
        input_s=pool.input_s,
        progress_at=pool.progress_at,
        single_use=spec.single_use,
        is_live=is_live and pool.is_live,
        keep_min=pool.keep_min,
    )
