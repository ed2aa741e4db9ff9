"""What nodes say of containers and inputs, and what follows from it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable

from homeport.calls.model import Input, Output
from homeport.calls.service import CANCELLED_TEXT, CallService
from homeport.functions.service import FunctionService
from homeport.kernel.clock import Clock
from homeport.link.messages import (
    STATUS_SUCCESS,
    InputsReturned,
    InputsStarted,
    Logs,
    Message,
    Outputs,
    TaskExited,
    TaskInitFailed,
    TaskReady,
    TaskStopping,
)
from homeport.logs.model import TASK_ACTIVE, TASK_COMPLETED, Source
from homeport.logs.service import LogService
from homeport.nodes.service import Durable
from homeport.sandboxes.service import SandboxService
from homeport.scheduler import attempts
from homeport.scheduler.attempts import Verdict
from homeport.scheduler.board import Board
from homeport.scheduler.build_functions import BuildFunctions
from homeport.scheduler.dispatch import Dispatch
from homeport.scheduler.fleet import Fleet
from homeport.scheduler.pool import Pool, Task, TaskStatus
from homeport.scheduler.settler import Settler
from homeport.tasks.service import TaskService


class Reports:
    """Takes each message of a node to whom it concerns."""

    def __init__(
        self,
        clock: Clock,
        task_records: TaskService,
        functions: FunctionService,
        logs: LogService,
        calls: CallService,
        build_functions: BuildFunctions,
        board: Board,
        settler: Settler,
        fleet: Fleet,
        dispatch: Dispatch,
        sandboxes: SandboxService,
    ) -> None:
        self._clock = clock
        self._task_records = task_records
        self._functions = functions
        self._logs = logs
        self._calls = calls
        self._build_functions = build_functions
        self._board = board
        self._settler = settler
        self._fleet = fleet
        self._dispatch = dispatch
        self._sandboxes = sandboxes

    def said(self, message: Message) -> Durable:
        if (durable := self._sandboxes.said(message)) is not None:
            return durable
        if isinstance(message, Logs):
            return self._log(message)
        if isinstance(message, Outputs):
            return self._outputs(message)
        task = self._board.tasks.get(getattr(message, "task_id", ""))
        if task is None:
            return []
        if isinstance(message, InputsStarted):
            _begun(task, message)
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

    def _log(self, message: Logs) -> Durable:
        """A container's output; its last lines may come after its end."""
        source = Source(message.origin, message.seq)
        if not self._logs.is_new(source):
            return _durable(self._logs.last_write)
        record = self._task_records.recent(message.task_id)
        if record is None:
            return []
        if self._build_functions.take_logs(record.function_id, message.entries):
            return []
        function = self._functions.find(record.function_id)
        base = function.spec.base_function_id if function and function.spec else ""
        written = self._logs.append(
            record.app_id,
            message.task_id,
            record.function_id,
            message.entries,
            root_function_id=base or record.function_id,
            source=source,
        )
        return _durable(written)

    def room(self) -> Awaitable[None] | None:
        """What to wait for while too many log lines are not stored yet."""
        return self._logs.drain() if self._logs.is_behind else None

    def _ready(self, task: Task, message: TaskReady) -> None:
        task.address = message.address
        self._task_records.started(task.task_id, message.time)
        if task.status is TaskStatus.READY:
            return  # it is said again on each new connection
        if task.status is TaskStatus.STARTING:
            task.status = TaskStatus.READY
        task.idle_since = task.progress_at = self._clock.monotonic()
        task.pool.start_failures = 0
        if not task.pool.crashes:
            task.pool.not_before = 0.0
        self._logs.task_state(task.pool.record.app_id, task.task_id, TASK_ACTIVE)
        self._dispatch.step(task.pool)
        if task.is_idle:
            self._dispatch.idle(task)

    def _outputs(self, message: Outputs) -> Durable:
        task = self._board.tasks.get(message.task_id)
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
            policy = self._settler.policy(item)
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
                self._settler.settle(item, decision)
        durable = self._calls.finish(finished) if finished else []
        if task is not None:
            self._dispatch.advanced(task)
        return durable

    def _returned(self, task: Task, message: InputsReturned) -> None:
        for input_id, attempt in reversed(message.inputs):  # each goes to the front of the queue
            item = task.held.get(input_id)
            if item is not None and item.attempt == attempt:
                del task.held[input_id]
                self._settler.requeue(item)
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
        self._fleet.start_failed(
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
        ended_badly = message.oom_killed or message.returncode != 0
        never_came = was_starting and not message.was_ready
        failed = task.init_failed or (not asked and (ended_badly or never_came))
        self._task_records.used(task.task_id, message.usage)
        self._fleet.remove(task, failed=failed)
        self._build_functions.exited(pool.record.function_id, task.task_id, message.layer)
        durable: Durable = []
        unfinished = {input_id for input_id, _ in message.unfinished}
        for input_id, item in held.items():
            if item.output is not None:
                continue
            if input_id not in unfinished or item.cancelled:
                self._settler.requeue(item)
                continue
            item.crashes += 1
            decision = attempts.after_exit(
                returncode=message.returncode,
                oom_killed=message.oom_killed,
                memory_limit_mb=task.memory_limit_mb,
                was_asked_to_stop=asked,
                reason=_kill_reason(message),
                policy=self._settler.policy(item),
                user_retries=item.user_retries,
                crashes=item.crashes,
            )
            self._settler.settle(item, decision)
        if not asked and ended_badly:
            text = attempts.crash_text(
                message.returncode,
                message.oom_killed,
                task.memory_limit_mb,
                is_busy=bool(held) or was_starting,
            )
            self._logs.system(pool.record.app_id, f"{task.task_id}: {text}\n", task_id=task.task_id)
        if not asked and not was_starting and not held:  # inputs count their crashes themselves
            self._fleet.crashed(pool)
        if never_came:
            self._never_ready(pool, task, message)
        self._logs.task_state(pool.record.app_id, task.task_id, TASK_COMPLETED)
        self._dispatch.step(pool)
        return durable

    def _never_ready(self, pool: Pool, task: Task, message: TaskExited) -> None:
        """It ended before it asked for an input, and user code did not say why."""
        if message.start_failed:
            self._fleet.start_failed(pool, message.reason, final=False)
            return
        if message.oom_killed:
            reason = attempts.crash_text(message.returncode, True, task.memory_limit_mb)
        else:
            reason = _kill_reason(message) or f"the container exited with code {message.returncode}"
        tail = message.stderr_tail.strip()
        if tail and not _kill_reason(message):
            reason = f"{reason}. Its last output:\n{tail}"
        # Who kills it from outside says nothing about what it was to run.
        was_killed = message.returncode == -signal.SIGKILL and not message.oom_killed
        is_final = not was_killed or bool(message.reason)
        self._fleet.start_failed(pool, reason, final=is_final)


def _begun(task: Task, message: InputsStarted) -> None:
    for input_id, attempt in message.inputs:
        task.running.add(input_id)
        item = task.held.get(input_id)
        if item is not None and item.attempt == attempt:
            item.started_at = message.time


def _kill_reason(message: TaskExited) -> str:
    """Why the node itself killed the container (a timeout, say); empty if it ended by itself."""
    was_killed = message.returncode == -signal.SIGKILL and not message.oom_killed
    return message.reason if was_killed else ""


def _durable(written: asyncio.Future[None] | None) -> Durable:
    return [written] if written is not None else []
