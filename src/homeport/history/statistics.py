"""How functions, servers and apps did in a range of time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from homeport.apps.model import App
from homeport.functions.model import FunctionRecord
from homeport.functions.service import FunctionService
from homeport.history.model import KEPT_S, RANGE_MAX_S, Range, Summary, checked, histogram
from homeport.history.service import HistoryService, Subject, root_of
from homeport.history.usage import Used, used_by_bucket
from homeport.kernel.clock import Clock
from homeport.kernel.errors import InvalidError, NotFoundError
from homeport.link.messages import Answer, AskUsage, Message, UsageSample
from homeport.tasks.model import TaskRecord
from homeport.tasks.service import TaskService

_ASKED_AT_ONCE: Final = 50
"""Containers that run whose nodes are asked."""


class Samples(Protocol):
    """Who measures containers that run."""

    async def ask(self, node_id: str, make: Callable[[int], Message]) -> Answer:
        """A node's answer. Raises ``HomeportError``, as ``UnavailableError`` without the node."""
        ...


class SandboxCounts(Protocol):
    """Who knows an app's sandboxes."""

    async def counts(self, app_id: str, since: float, until: float) -> tuple[int, int]:
        """How many ended in that time, and how many there were at its end."""
        ...


@dataclass(slots=True)
class Containers:
    """Containers in a range of time."""

    total: int = 0
    """There at any time of it."""
    started: int = 0
    """Came up in it."""
    failed: int = 0
    """Ended in it with an error."""
    creating: int = 0
    """Not up yet at its end."""
    startup: dict[int, int] = field(default_factory=dict[int, int])
    """Histogram of how long those that came up took."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of one function or server, with or without its variants."""

    span: Range
    ended: Summary
    containers: Containers
    running: int = 0
    variants: int = 0


@dataclass(frozen=True, slots=True)
class Member:
    """A function or server of an app, with its variants."""

    record: FunctionRecord
    ended: Summary
    containers: Containers


@dataclass(frozen=True, slots=True)
class AppStatistics:
    """Of a whole app: its present functions and servers by name."""

    span: Range
    members: dict[str, Member]
    sandboxes_finished: int
    sandboxes_live: int
    deployments: int


class StatisticsService:
    """Counts in ranges of at most seven days."""

    def __init__(
        self,
        history: HistoryService,
        functions: FunctionService,
        tasks: TaskService,
        sandboxes: SandboxCounts,
        nodes: Samples,
        clock: Clock,
    ) -> None:
        self._history = history
        self._functions = functions
        self._tasks = tasks
        self._sandboxes = sandboxes
        self._nodes = nodes
        self._clock = clock

    async def of_function(
        self, subject: Subject, since: float, until: float, task_id: str = ""
    ) -> Statistics:
        """Of a function or server; with ``task_id`` of that one container of it alone.

        Raises ``InvalidError``, and ``NotFoundError`` for a container that is none of its.
        """
        span = checked(since, until, RANGE_MAX_S)
        base_id = subject.root_id if subject.all_variants else subject.record.function_id
        if task_id:
            subject = Subject(subject.record, all_variants=True)
            task = await self._tasks.find(task_id)
            if task is None or not self._is_of(task, subject):
                raise NotFoundError(
                    f"Function {subject.record.tag!r} ({subject.record.function_id}) has (had) no "
                    f"container {task_id!r}."
                )
            tasks = [task] if _is_there(task, span) else []
        else:
            found = await self._tasks.of_range(subject.record.app_id, since, until)
            tasks = [task for task in found if self._is_of(task, subject)]
        return Statistics(
            span=span,
            ended=await self._history.summary(subject, span, task_id),
            containers=count_containers(tasks, span),
            running=await self._history.running_at(subject, until, task_id),
            variants=len(self._functions.variants_of(base_id)),
        )

    async def of_app(self, app: App, since: float, until: float) -> AppStatistics:
        """Of an app. Raises ``InvalidError`` about the range."""
        span = checked(since, until, RANGE_MAX_S)
        if since < self._clock.now() - KEPT_S:
            raise InvalidError(
                f"What was before the last {KEPT_S / 86400:g} days is not kept: choose a later "
                "start of the time range."
            )
        ended = await self._history.of_app(app.app_id, span)
        tasks: dict[str, list[TaskRecord]] = {}
        for task in await self._tasks.of_range(app.app_id, since, until):
            tasks.setdefault(self._root(task.function_id), []).append(task)
        members: dict[str, Member] = {}
        for tag, function_id in app.layout.function_ids.items():
            record = self._functions.find(function_id)
            if record is not None:
                of_it = count_containers(tasks.get(function_id, []), span)
                members[tag] = Member(record, ended.get(function_id, Summary()), of_it)
        finished, live = await self._sandboxes.counts(app.app_id, since, until)
        versions = (each for each in app.deployments if not each.is_staged)
        return AppStatistics(
            span=span,
            members=members,
            sandboxes_finished=finished,
            sandboxes_live=live,
            deployments=sum(each.deployed_at in span for each in versions),
        )

    async def containers_by_bucket(
        self, subject: Subject, first: int, end: int, bucket_s: int
    ) -> dict[int, Containers]:
        """The containers of each of these buckets, by its number."""
        since, until = first * bucket_s, end * bucket_s
        found = await self._tasks.of_range(subject.record.app_id, since, until)
        tasks = [task for task in found if self._is_of(task, subject)]
        by_bucket: dict[int, list[TaskRecord]] = {}
        for task in tasks:
            last = end - 1 if task.is_alive else int(task.finished_at // bucket_s)
            for bucket in range(
                max(first, int(task.enqueued_at // bucket_s)), min(last, end - 1) + 1
            ):
                by_bucket.setdefault(bucket, []).append(task)
        return {
            bucket: count_containers(each, Range(bucket * bucket_s, (bucket + 1) * bucket_s))
            for bucket, each in by_bucket.items()
        }

    async def used_by_bucket(
        self, subject: Subject, first: int, end: int, bucket_s: int
    ) -> dict[int, Used]:
        """What containers used in each of these buckets, by its number.

        Raises ``UnavailableError`` while the node of one that runs is away.
        """
        since, until = first * bucket_s, end * bucket_s
        found = await self._tasks.of_range(subject.record.app_id, since, until)
        tasks = [task for task in found if self._is_of(task, subject)]
        alive = [task for task in tasks if task.is_alive]
        gate = asyncio.Semaphore(_ASKED_AT_ONCE)

        async def measured(task: TaskRecord) -> list[UsageSample]:
            async with gate:
                ask = partial(AskUsage, task_id=task.task_id)
                return (await self._nodes.ask(task.node_id, ask)).usage

        running = await asyncio.gather(*(measured(task) for task in alive))
        ended = await self._tasks.usage([task.task_id for task in tasks if not task.is_alive])
        now = self._clock.now()
        return used_by_bucket([*ended.values(), *running], first, end, bucket_s, now)

    def _is_of(self, task: TaskRecord, subject: Subject) -> bool:
        if subject.all_variants:
            return self._root(task.function_id) == subject.root_id
        return task.function_id == subject.record.function_id

    def _root(self, function_id: str) -> str:
        record = self._functions.find(function_id)
        return root_of(record) if record is not None else function_id


def count_containers(tasks: Iterable[TaskRecord], span: Range) -> Containers:
    """What of these containers is told of ``span``, in which all of them were there."""
    found = Containers()
    startups: list[float] = []
    for task in tasks:
        found.total += 1
        if task.started_at and task.started_at in span:
            found.started += 1
            startups.append(task.started_at - task.enqueued_at)
        if task.failed and task.finished_at in span:
            found.failed += 1
        is_up = 0 < task.started_at < span.until
        is_over = 0 < task.finished_at < span.until
        found.creating += not is_up and not is_over
    found.startup = histogram(startups)
    return found


def add_up(members: Sequence[Member]) -> tuple[Summary, Containers]:
    """All of them together, without how long containers took."""
    ended, containers = Summary(), Containers()
    for member in members:
        ended.merge(member.ended)
        for name in ("total", "started", "failed", "creating"):
            value = getattr(containers, name) + getattr(member.containers, name)
            setattr(containers, name, value)
    return ended, containers


def _is_there(task: TaskRecord, span: Range) -> bool:
    return task.enqueued_at < span.until and (task.is_alive or task.finished_at >= span.since)
