"""Use cases of tasks: who lives, since when, and ending one by hand."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from homeport.kernel.clock import Clock
from homeport.kernel.errors import NotFoundError
from homeport.link.messages import UsageSample
from homeport.tasks.model import TaskRecord
from homeport.tasks.store import TaskStore

ENDED_MAX = 2_000
"""Ended tasks kept in memory: their last log lines may still be on the way."""
RETENTION_S = 35 * 86400.0
"""How long ended tasks can be looked up: as long as their logs can be asked for."""


class TaskStopper(Protocol):
    """Who ends tasks (the scheduler)."""

    def stop_task(self, task_id: str, *, graceful: bool) -> None: ...


class TaskService:
    """The record of all tasks; live ones in memory."""

    def __init__(self, store: TaskStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._alive: dict[str, TaskRecord] = {}
        self._ended: OrderedDict[str, TaskRecord] = OrderedDict()
        self._stopper: TaskStopper | None = None
        self._last_usage: asyncio.Future[None] | None = None

    def use(self, stopper: TaskStopper) -> None:
        """Name the part that ends tasks; called once, while wiring."""
        self._stopper = stopper

    async def start(self) -> list[TaskRecord]:
        """Read tasks that were alive when the server last ran."""
        records = await self._store.load_alive()
        self._alive = {record.task_id: record for record in records}
        return records

    def now(self) -> float:
        return self._clock.now()

    def alive(self, task_id: str) -> TaskRecord | None:
        return self._alive.get(task_id)

    def node_of(self, task_id: str) -> str | None:
        """The node that runs a live task."""
        record = self._alive.get(task_id)
        return record.node_id if record is not None else None

    def recent(self, task_id: str) -> TaskRecord | None:
        """A task that is alive or ended not long ago."""
        return self._alive.get(task_id) or self._ended.get(task_id)

    def of_app(self, app_id: str) -> list[TaskRecord]:
        """Live tasks of an app that have started."""
        return [record for record in self._alive.values() if record.app_id == app_id]

    def list(self) -> list[TaskRecord]:
        return list(self._alive.values())

    async def find(self, task_id: str) -> TaskRecord | None:
        """A live or finished task."""
        return self._alive.get(task_id) or await self._store.find(task_id)

    async def get(self, task_id: str) -> TaskRecord:
        """A live or finished task; raises ``NotFoundError``."""
        record = await self.find(task_id)
        if record is None:
            raise NotFoundError(
                f"Container {task_id!r} not found; `homeport container list` shows the live ones."
            )
        return record

    def created(self, record: TaskRecord) -> None:
        self._alive[record.task_id] = record
        self._store.save(record)

    def started(self, task_id: str, at: float) -> None:
        record = self._alive.get(task_id)
        if record is not None and not record.started_at:
            record = msgspec.structs.replace(record, started_at=at)
            self._alive[task_id] = record
            self._store.save(record)

    def finished(self, task_id: str, *, failed: bool = False) -> None:
        record = self._alive.pop(task_id, None)
        if record is not None:
            now = self._clock.now()
            record = msgspec.structs.replace(record, finished_at=now, failed=failed)
            self._ended[task_id] = record
            if len(self._ended) > ENDED_MAX:
                self._ended.popitem(last=False)
            self._store.save(record)

    def used(self, task_id: str, samples: Sequence[UsageSample]) -> None:
        """The container of a task has ended; this is what it used."""
        if len(samples) > 1:
            self._last_usage = self._store.save_usage(task_id, samples)

    async def usage(self, task_ids: Sequence[str]) -> dict[str, list[UsageSample]]:
        """What the containers of these ended tasks used; without those nothing is known of."""
        if self._last_usage is not None:
            await asyncio.shield(self._last_usage)
        return await self._store.usage(task_ids)

    async def of_range(self, app_id: str, since: float, until: float) -> list[TaskRecord]:
        """Containers of the app's functions that there were between these Unix times."""
        alive = [each for each in self.of_app(app_id) if each.function_id]
        known = {each.task_id for each in alive}
        ended = [each for each in self._ended.values() if each.app_id == app_id]
        known.update(each.task_id for each in ended)
        found = [*alive, *(each for each in ended if each.function_id)]
        # What ended this moment may not be committed yet; the rest is not in memory.
        stored = await self._store.ended_since(app_id, since)
        found += (each for each in stored if each.task_id not in known)
        return [
            each
            for each in found
            if each.enqueued_at < until and (each.is_alive or each.finished_at >= since)
        ]

    async def some(self, task_ids: Iterable[str]) -> dict[str, TaskRecord]:
        """Those of these tasks that are known, live or finished."""
        found: dict[str, TaskRecord] = {}
        others: list[str] = []
        for task_id in dict.fromkeys(task_ids):
            record = self.recent(task_id)
            if record is not None:
                found[task_id] = record
            else:
                others.append(task_id)
        for record in await self._store.some(others) if others else ():
            found[record.task_id] = record
        return found

    async def prune(self) -> int:
        """Forget tasks that ended longer ago than the retention."""
        return await self._store.prune(self._clock.now() - RETENTION_S)

    async def stop_task(self, task_id: str, *, graceful: bool) -> None:
        """End a container; its running inputs run again elsewhere (RPC ``ContainerStop``)."""
        record = await self.get(task_id)
        if record.is_alive and self._stopper is not None:
            self._stopper.stop_task(task_id, graceful=graceful)
