"""The table of log entries."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.logs.model import FETCH_BYTES_MAX, Entry, Filter, Source
from homeport.storage.database import Database, metadata
from homeport.storage.dialects import insert

log_entries = sa.Table(
    "log_entries",
    metadata,
    # BigInteger would not be SQLite's row id, which this table is ordered by.
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("app_id", sa.String, nullable=False),
    sa.Column("task_id", sa.String, nullable=False),
    sa.Column("function_id", sa.String, nullable=False),
    sa.Column("root_function_id", sa.String, nullable=False),
    sa.Column("image_id", sa.String, nullable=False),
    sa.Column("call_id", sa.String, nullable=False),
    sa.Column("input_id", sa.String, nullable=False),
    sa.Column("fd", sa.Integer, nullable=False),
    sa.Column("time_ns", sa.BigInteger, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Index("log_entries_by_app", "app_id", "id"),
    sa.Index("log_entries_by_time", "app_id", "time_ns"),
)

log_positions = sa.Table(
    "log_positions",
    metadata,
    sa.Column("origin", sa.String(40), primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("time_ns", sa.BigInteger, nullable=False),
)

_INSERT: Final = sa.insert(log_entries)
_insert_position = insert(log_positions)
_MOVE: Final[sa.Executable] = _insert_position.on_conflict_do_update(
    index_elements=["origin"],
    set_={"seq": _insert_position.excluded.seq, "time_ns": _insert_position.excluded.time_ns},
)
_COLUMNS: Final = log_entries.c


class LogStore:
    """Queries on log entries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(
        self, entries: Sequence[Entry], source: Source | None, time_ns: int
    ) -> asyncio.Future[None]:
        """Record entries, and that they are those of ``source``; done when durable."""
        moves = [{"origin": source.origin, "seq": source.seq, "time_ns": time_ns}] if source else []
        return self._database.append_all(
            [(_INSERT, [_row(entry) for entry in entries]), (_MOVE, moves)]
        )

    async def positions(self) -> dict[str, tuple[int, int]]:
        """By origin: the newest recorded ``Source.seq``, and when that was (Unix ns)."""
        query = sa.select(log_positions)

        def read(connection: Connection) -> dict[str, tuple[int, int]]:
            return {row.origin: (row.seq, row.time_ns) for row in connection.execute(query)}

        return await self._database.read(read)

    async def delete_positions(self, before_ns: int) -> None:
        """Forget the origins of which nothing came since ``before_ns``."""
        old = sa.delete(log_positions).where(log_positions.c.time_ns < before_ns)
        await self._database.write(lambda c: c.execute(old))

    async def last_id(self) -> int:
        query = sa.select(sa.func.max(_COLUMNS.id))
        return await self._database.read(lambda c: c.execute(query).scalar()) or 0

    async def after(
        self, app_id: str, filter: Filter, after_id: int, up_to_id: int, limit: int
    ) -> list[Entry]:
        """The first ``limit`` entries with ``after_id < id <= up_to_id``."""
        query = (
            sa.select(log_entries)
            .where(_COLUMNS.app_id == app_id, _COLUMNS.id > after_id, _COLUMNS.id <= up_to_id)
            .where(*_conditions(filter))
            .order_by(_COLUMNS.id)
            .limit(limit)
        )

        def read(connection: Connection) -> list[Entry]:
            return [Entry(*row) for row in connection.execute(query)]

        return await self._database.read(read)

    async def nth_before(self, app_id: str, filter: Filter, id: int, count: int) -> int:
        """Id of the entry that precedes the newest ``count`` entries up to ``id``; 0 if none."""
        query = (
            sa.select(_COLUMNS.id)
            .where(_COLUMNS.app_id == app_id, _COLUMNS.id <= id, *_conditions(filter))
            .order_by(_COLUMNS.id.desc())
            .offset(count)
            .limit(1)
        )
        return await self._database.read(lambda c: c.execute(query).scalar()) or 0

    async def newest(
        self, app_id: str, filter: Filter, since_ns: int, until_ns: int, limit: int
    ) -> list[Entry]:
        """The last ``limit`` entries of a half-open time range, oldest first."""
        query = (
            sa.select(log_entries)
            .where(*_range(app_id, since_ns, until_ns), *_conditions(filter))
            .order_by(_COLUMNS.time_ns.desc(), _COLUMNS.id.desc())
            .limit(limit)
        )

        def read(connection: Connection) -> list[Entry]:
            entries: list[Entry] = []
            room = FETCH_BYTES_MAX
            for row in connection.execute(query):
                entry = Entry(*row)
                room -= len(entry.data)
                if room < 0:
                    break
                entries.append(entry)
            return entries[::-1]

        return await self._database.read(read)

    async def count(
        self, app_id: str, filter: Filter, since_ns: int, until_ns: int, bucket_ns: int
    ) -> list[tuple[int, int, int]]:
        """``(bucket number, fd, entries)`` of a half-open time range."""
        bucket = (_COLUMNS.time_ns // bucket_ns).label("bucket")
        query = (
            sa.select(bucket, _COLUMNS.fd, sa.func.count())
            .where(*_range(app_id, since_ns, until_ns), *_conditions(filter))
            .group_by(bucket, _COLUMNS.fd)
        )

        def read(connection: Connection) -> list[tuple[int, int, int]]:
            return [(row[0], row[1], row[2]) for row in connection.execute(query)]

        return await self._database.read(read)

    async def total_bytes(self) -> int:
        query = sa.select(sa.func.sum(sa.func.length(_COLUMNS.data)))
        return await self._database.read(lambda c: c.execute(query).scalar()) or 0

    async def delete_oldest(self, before_ns: int, bytes_over: int, rows: int) -> tuple[int, int]:
        """Delete from the oldest ``rows`` entries those older than ``before_ns`` and, beyond
        them, ``bytes_over`` bytes of text; ``(entries, bytes)`` deleted."""
        query = (
            sa.select(_COLUMNS.id, _COLUMNS.time_ns, sa.func.length(_COLUMNS.data))
            .order_by(_COLUMNS.id)
            .limit(rows)
        )

        def write(connection: Connection) -> tuple[int, int]:
            count = freed = last = 0
            for id, time_ns, size in connection.execute(query):
                if time_ns >= before_ns and freed >= bytes_over:
                    break
                count, freed, last = count + 1, freed + size, id
            if count:
                connection.execute(sa.delete(log_entries).where(_COLUMNS.id <= last))
            return count, freed

        return await self._database.write(write)


def _row(entry: Entry) -> dict[str, object]:
    return {
        "id": entry.id,
        "app_id": entry.app_id,
        "task_id": entry.task_id,
        "function_id": entry.function_id,
        "root_function_id": entry.root_function_id,
        "image_id": entry.image_id,
        "call_id": entry.call_id,
        "input_id": entry.input_id,
        "fd": entry.fd,
        "time_ns": entry.time_ns,
        "data": entry.data,
    }


def _range(app_id: str, since_ns: int, until_ns: int) -> list[sa.ColumnElement[bool]]:
    return [
        _COLUMNS.app_id == app_id,
        _COLUMNS.time_ns >= since_ns,
        _COLUMNS.time_ns < until_ns,
    ]


def _conditions(filter: Filter) -> list[sa.ColumnElement[bool]]:
    """``Filter.matches`` in SQL."""
    conditions: list[sa.ColumnElement[bool]] = []
    if filter.task_id:
        conditions.append(_COLUMNS.task_id == filter.task_id)
    if filter.call_id:
        conditions.append(_COLUMNS.call_id == filter.call_id)
    if filter.input_id:
        conditions.append(_COLUMNS.input_id == filter.input_id)
    if filter.fd:
        conditions.append(_COLUMNS.fd == filter.fd)
    if filter.variant_id:
        conditions.append(_COLUMNS.function_id == filter.variant_id)
    elif filter.function_id:
        conditions.append(
            sa.or_(
                _COLUMNS.function_id == filter.function_id,
                _COLUMNS.root_function_id == filter.function_id,
            )
        )
    if filter.without_builds:
        conditions.append(_COLUMNS.image_id == "")
    if filter.search:
        # LIKE ignores case in SQLite, and the name of a search function differs by database.
        without = sa.func.replace(_COLUMNS.data, filter.search, "")
        conditions.append(without != _COLUMNS.data)
    return conditions
