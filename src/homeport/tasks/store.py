"""The table of tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec
import sqlalchemy as sa

from homeport.link.messages import UsageSample
from homeport.storage.database import Database, metadata
from homeport.storage.dialects import insert
from homeport.tasks.model import TaskRecord

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("task_id", sa.String(40), primary_key=True),
    sa.Column("function_id", sa.String(40), nullable=False),
    sa.Column("app_id", sa.String(40), nullable=False),
    sa.Column("node_id", sa.String(40), nullable=False),
    sa.Column("enqueued_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("finished_at", sa.Float, nullable=False, index=True),
    sa.Column("edition", sa.String, nullable=False, server_default=""),
    sa.Column("failed", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("tasks_by_app", "app_id", "finished_at"),
)

usage = sa.Table(
    "task_usage",
    metadata,
    sa.Column("task_id", sa.String(40), primary_key=True),
    sa.Column("samples", sa.LargeBinary, nullable=False),
)

_ADD_USAGE: Final = insert(usage).on_conflict_do_nothing()
_IDS_MAX: Final = 500
"""Ids in one query."""
_insert = insert(tasks)
_upsert: sa.Executable = _insert.on_conflict_do_update(
    index_elements=["task_id"],
    set_={
        "started_at": _insert.excluded.started_at,
        "finished_at": _insert.excluded.finished_at,
        "failed": _insert.excluded.failed,
    },
)


class TaskStore:
    """Tasks are written through; finished ones are kept for look-ups and then pruned."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, record: TaskRecord) -> asyncio.Future[None]:
        row = {name: getattr(record, name) for name in record.__struct_fields__}
        return self._database.append(_upsert, [row])

    def save_usage(self, task_id: str, samples: Sequence[UsageSample]) -> asyncio.Future[None]:
        """Record what the container of an ended task used, with the next commit."""
        row = {"task_id": task_id, "samples": msgspec.msgpack.encode(samples)}
        return self._database.append(_ADD_USAGE, [row])

    async def usage(self, task_ids: Sequence[str]) -> dict[str, list[UsageSample]]:
        """What the containers of these ended tasks used; without those nothing is known of."""

        def read(connection: sa.Connection) -> dict[str, list[UsageSample]]:
            found: dict[str, list[UsageSample]] = {}
            for start in range(0, len(task_ids), _IDS_MAX):
                wanted = usage.c.task_id.in_(task_ids[start : start + _IDS_MAX])
                for row in connection.execute(sa.select(usage).where(wanted)):
                    found[row.task_id] = msgspec.msgpack.decode(row.samples, type=list[UsageSample])
            return found

        return await self._database.read(read)

    async def load_alive(self) -> list[TaskRecord]:
        def query(connection: sa.Connection) -> list[TaskRecord]:
            rows = connection.execute(sa.select(tasks).where(tasks.c.finished_at == 0.0))
            return [TaskRecord(**row._mapping) for row in rows]  # pyright: ignore[reportPrivateUsage]

        return await self._database.read(query)

    async def find(self, task_id: str) -> TaskRecord | None:
        def query(connection: sa.Connection) -> TaskRecord | None:
            row = connection.execute(sa.select(tasks).where(tasks.c.task_id == task_id)).first()
            return TaskRecord(**row._mapping) if row else None  # pyright: ignore[reportPrivateUsage]

        return await self._database.read(query)

    async def ended_since(self, app_id: str, time: float) -> list[TaskRecord]:
        """Containers of the app's functions that ended at that time or later."""
        query = sa.select(tasks).where(tasks.c.app_id == app_id, tasks.c.finished_at >= time)
        query = query.where(tasks.c.function_id != "")

        def read(connection: sa.Connection) -> list[TaskRecord]:
            rows = connection.execute(query)
            return [TaskRecord(**row._mapping) for row in rows]  # pyright: ignore[reportPrivateUsage]

        return await self._database.read(read)

    async def some(self, task_ids: Sequence[str]) -> list[TaskRecord]:
        """Those of these tasks that are known."""

        def read(connection: sa.Connection) -> list[TaskRecord]:
            found: list[TaskRecord] = []
            for start in range(0, len(task_ids), _IDS_MAX):
                wanted = tasks.c.task_id.in_(task_ids[start : start + _IDS_MAX])
                for row in connection.execute(sa.select(tasks).where(wanted)):
                    found.append(TaskRecord(**row._mapping))  # pyright: ignore[reportPrivateUsage]
            return found

        return await self._database.read(read)

    async def prune(self, finished_before: float) -> int:
        """Forget tasks that ended before that time; how many."""

        def write(connection: sa.Connection) -> int:
            result = connection.execute(
                sa.delete(tasks)
                .where(tasks.c.finished_at > 0.0)
                .where(tasks.c.finished_at < finished_before)
            )
            known = sa.select(tasks.c.task_id)
            connection.execute(sa.delete(usage).where(usage.c.task_id.not_in(known)))
            return result.rowcount

        return await self._database.write(write)
