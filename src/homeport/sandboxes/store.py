"""The table of sandboxes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec
import sqlalchemy as sa

from homeport.link.messages import UsageSample
from homeport.sandboxes.model import SandboxRecord
from homeport.storage.database import Database, metadata
from homeport.storage.dialects import insert

sandboxes = sa.Table(
    "sandboxes",
    metadata,
    sa.Column("sandbox_id", sa.String(40), primary_key=True),
    sa.Column("task_id", sa.String(40), nullable=False, index=True),
    sa.Column("app_id", sa.String(40), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("finished_at", sa.Double, nullable=False, index=True),
    sa.Column("record", sa.LargeBinary, nullable=False),
    sa.Index("sandboxes_by_app", "app_id", "created_at"),
)

usage = sa.Table(
    "sandbox_usage",
    metadata,
    sa.Column("sandbox_id", sa.String(40), primary_key=True),
    sa.Column("samples", sa.LargeBinary, nullable=False),
)

_insert = insert(sandboxes)
_ADD_USAGE: Final = insert(usage).on_conflict_do_nothing()
_UPSERT: Final = _insert.on_conflict_do_update(
    index_elements=["sandbox_id"],
    set_={name: _insert.excluded[name] for name in ("name", "finished_at", "record")},
)


class SandboxStore:
    """Sandboxes are written through; ended ones are read when somebody asks, and pruned."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._last_save: asyncio.Future[None] | None = None

    def save(self, record: SandboxRecord) -> asyncio.Future[None]:
        """Write it with the next commit; the future is done when that is durable."""
        row = {
            "sandbox_id": record.sandbox_id,
            "task_id": record.task_id,
            "app_id": record.app_id,
            "name": record.name,
            "created_at": record.created_at,
            "finished_at": record.finished_at,
            "record": msgspec.msgpack.encode(record),
        }
        self._last_save = self._database.append(_UPSERT, [row])
        return self._last_save

    async def load_alive(self) -> list[SandboxRecord]:
        """Those that have not ended."""
        return await self._select(sandboxes.c.finished_at == 0.0)

    async def find(self, sandbox_id: str) -> SandboxRecord | None:
        """By the sandbox's or its task's id."""
        column = sandboxes.c.task_id if sandbox_id.startswith("ta-") else sandboxes.c.sandbox_id
        found = await self._select(column == sandbox_id)
        return found[0] if found else None

    async def named(self, app_id: str, name: str) -> SandboxRecord | None:
        """The newest of that name."""
        of_app, of_name = sandboxes.c.app_id == app_id, sandboxes.c.name == name
        found = await self._select(of_app, of_name, limit=1)
        return found[0] if found else None

    async def ended(
        self, app_ids: Sequence[str], *, created_before: float, limit: int
    ) -> list[SandboxRecord]:
        """Ended sandboxes of these apps, newest first."""
        return await self._select(
            sandboxes.c.app_id.in_(app_ids),
            sandboxes.c.created_at < created_before,
            sandboxes.c.finished_at > 0.0,
            limit=limit,
        )

    async def last_created_at(self) -> float:
        """The newest sandbox's ``created_at``; 0 without any."""
        query = sa.select(sa.func.coalesce(sa.func.max(sandboxes.c.created_at), 0.0))
        return await self._database.read(lambda connection: connection.execute(query).scalar_one())

    def save_usage(self, sandbox_id: str, samples: Sequence[UsageSample]) -> asyncio.Future[None]:
        """Record what an ended sandbox used, with the next commit."""
        row = {"sandbox_id": sandbox_id, "samples": msgspec.msgpack.encode(samples)}
        self._last_save = self._database.append(_ADD_USAGE, [row])
        return self._last_save

    async def usage(self, sandbox_id: str) -> list[UsageSample]:
        """What an ended sandbox used."""
        await self._saved()
        query = sa.select(usage.c.samples).where(usage.c.sandbox_id == sandbox_id)
        found = await self._database.read(
            lambda connection: connection.execute(query).scalar_one_or_none()
        )
        return msgspec.msgpack.decode(found, type=list[UsageSample]) if found else []

    async def between(
        self, app_id: str, since: float, until: float
    ) -> list[tuple[SandboxRecord, list[UsageSample]]]:
        """Sandboxes of an app that were there in that time, oldest first; what ended ones used."""
        await self._saved()
        ended = sandboxes.c.finished_at
        query = (
            sa.select(sandboxes.c.record, usage.c.samples)
            .outerjoin(usage, usage.c.sandbox_id == sandboxes.c.sandbox_id)
            .where(sandboxes.c.app_id == app_id, sandboxes.c.created_at < until)
            .where(sa.or_(ended == 0.0, ended > since))
            .order_by(sandboxes.c.created_at)
        )

        def read(connection: sa.Connection) -> list[tuple[SandboxRecord, list[UsageSample]]]:
            return [
                (
                    msgspec.msgpack.decode(record, type=SandboxRecord),
                    msgspec.msgpack.decode(samples, type=list[UsageSample]) if samples else [],
                )
                for record, samples in connection.execute(query)
            ]

        return await self._database.read(read)

    async def counts(self, app_id: str, since: float, until: float) -> tuple[int, int]:
        """How many of an app's ended in that time, and how many there were at its end."""
        await self._saved()
        ended = sandboxes.c.finished_at
        count = sa.select(sa.func.count()).where(sandboxes.c.app_id == app_id)
        finished = count.where(ended >= since, ended < until)
        live = count.where(sandboxes.c.created_at < until, sa.or_(ended == 0.0, ended >= until))

        def read(connection: sa.Connection) -> tuple[int, int]:
            return connection.execute(finished).scalar_one(), connection.execute(live).scalar_one()

        return await self._database.read(read)

    async def prune(self, finished_before: float) -> int:
        """Forget sandboxes that ended before that time; how many."""
        ended = sandboxes.c.finished_at > 0.0
        query = sa.delete(sandboxes).where(ended, sandboxes.c.finished_at < finished_before)
        known = sa.select(sandboxes.c.sandbox_id)
        rest = sa.delete(usage).where(usage.c.sandbox_id.not_in(known))

        def write(connection: sa.Connection) -> int:
            count = connection.execute(query).rowcount
            if count:
                connection.execute(rest)
            return count

        return await self._database.write(write)

    async def _select(
        self, *conditions: sa.ColumnElement[bool], limit: int | None = None
    ) -> list[SandboxRecord]:
        await self._saved()
        query = sa.select(sandboxes.c.record).where(*conditions)
        query = query.order_by(sandboxes.c.created_at.desc()).limit(limit)

        def read(connection: sa.Connection) -> list[SandboxRecord]:
            rows = connection.execute(query).scalars()
            return [msgspec.msgpack.decode(row, type=SandboxRecord) for row in rows]

        return await self._database.read(read)

    async def _saved(self) -> None:
        """Until everything that was saved can be read: commits keep their order."""
        if self._last_save is not None and not self._last_save.done():
            await asyncio.wait([self._last_save])
