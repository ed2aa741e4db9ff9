"""What the app pages and the log handlers ask about apps and tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from homeport.apps.service import AppService
from homeport.functions.model import FunctionRecord
from homeport.functions.service import FunctionService
from homeport.gateway.pages import AppPage, FunctionLine, LogLine, TaskLine
from homeport.logs.model import RANGE_S_MAX, Filter, TaskRef
from homeport.logs.service import LogService
from homeport.sandboxes.service import SandboxService
from homeport.scheduler.service import Scheduler
from homeport.tasks.service import TaskService

_SOURCES = {1: "stdout", 2: "stderr", 3: "system"}


class Subjects:
    """What exists that has logs."""

    def __init__(self, apps: AppService, tasks: TaskService, sandboxes: SandboxService) -> None:
        self._apps = apps
        self._tasks = tasks
        self._sandboxes = sandboxes

    def has_app(self, app_id: str) -> bool:
        """Whether there is (or was) such an app."""
        return self._apps.find(app_id) is not None

    async def find_task(self, task_id: str) -> TaskRef | None:
        """The app of a task and whether the task has ended."""
        record = await self._tasks.find(task_id)
        return None if record is None else TaskRef(record.app_id, not record.is_alive)

    async def task_of_sandbox(self, sandbox_id: str) -> str:
        """The task that a sandbox is. Raises ``NotFoundError``."""
        return (await self._sandboxes.get(sandbox_id)).task_id


class Pages:
    """Gathers what an app's page shows. ``url_of`` gives the address of a web function's subdomain."""

    def __init__(
        self,
        apps: AppService,
        functions: FunctionService,
        tasks: TaskService,
        scheduler: Scheduler,
        logs: LogService,
        url_of: Callable[[str], str],
    ) -> None:
        self._url_of = url_of
        self._apps = apps
        self._functions = functions
        self._tasks = tasks
        self._scheduler = scheduler
        self._logs = logs

    async def page(self, app_id: str, *, log_lines: int) -> AppPage | None:
        """The app with its newest ``log_lines`` entries, or ``None`` if there is no such app."""
        app = self._apps.find(app_id)
        if app is None:
            return None
        records = [
            record
            for function_id in app.layout.function_ids.values()
            if (record := self._functions.find(function_id)) is not None
        ]
        return AppPage(
            app_id=app_id,
            name=app.name or app.description,
            state=app.state.name.lower(),
            environment=app.environment,
            created_at=app.created_at,
            is_live=app.is_live,
            functions=[self._function(record) for record in records],
            tasks=self._task_lines(app_id),
            logs=await self._log_lines(app_id, log_lines),
        )

    def _function(self, record: FunctionRecord) -> FunctionLine:
        stats = self._scheduler.stats(record.function_id)
        return FunctionLine(
            name=record.tag.removesuffix(".*"),
            pending=stats.backlog,
            running=stats.running_inputs,
            containers=stats.tasks,
            web_url=self._web_url(record),
        )

    def _web_url(self, record: FunctionRecord) -> str:
        points = record.spec.web if record.spec is not None else []
        return self._url_of(points[0].subdomain) if points else ""

    def _task_lines(self, app_id: str) -> list[TaskLine]:
        lines: list[TaskLine] = []
        for task in self._tasks.of_app(app_id):
            record = self._functions.find(task.function_id)
            lines.append(
                TaskLine(
                    task_id=task.task_id,
                    function=record.tag.removesuffix(".*") if record else "",
                    state="running" if task.started_at else "starting",
                    started_at=task.started_at,
                )
            )
        return lines

    async def _log_lines(self, app_id: str, count: int) -> Sequence[LogLine]:
        now_ns = time.time_ns()
        entries = await self._logs.fetch(
            app_id,
            Filter(),
            since_ns=now_ns - (RANGE_S_MAX - 1) * 10**9,
            until_ns=now_ns,
            limit=count,
        )
        return [
            LogLine(entry.time_ns / 1e9, _SOURCES.get(entry.fd, "system"), entry.data)
            for entry in entries
        ]
