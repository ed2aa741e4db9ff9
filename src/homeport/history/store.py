"""The table of packs."""

from __future__ import annotations

import asyncio
import bisect
import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import sqlalchemy as sa

from homeport.history.model import Entry, Range, Summary, summary_of, unpack
from homeport.storage.database import Database, metadata
from homeport.storage.dialects import insert

packs = sa.Table(
    "history_packs",
    metadata,
    sa.Column("pack_id", sa.String(40), primary_key=True),
    sa.Column("function_id", sa.String(40), nullable=False),
    sa.Column("root_id", sa.String(40), nullable=False),
    sa.Column("app_id", sa.String(40), nullable=False),
    sa.Column("entries", sa.Integer, nullable=False),
    sa.Column("first_enqueued", sa.Double, nullable=False),
    sa.Column("last_enqueued", sa.Double, nullable=False),
    sa.Column("first_started", sa.Double, nullable=False),
    sa.Column("first_finished", sa.Double, nullable=False),
    sa.Column("last_finished", sa.Double, nullable=False, index=True),
    sa.Column("summary", sa.LargeBinary, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Index("history_packs_by_function", "function_id", "last_finished"),
    sa.Index("history_packs_by_root", "root_id", "last_finished"),
    sa.Index("history_packs_by_app", "app_id", "last_finished"),
)
"""Some hundred entries of one function each, in the order they ended. ``summary`` stands before
``data`` as that is long: who reads the one is not to read the other."""

Column = Literal["function_id", "root_id", "app_id"]
"""Whose entries: of a function, of it and its variants, of an app."""

_READ_AT_ONCE: Final = 16
"""Packs whose entries are in memory at once."""
_columns = packs.c
_insert = insert(packs)
_upsert: sa.Executable = _insert.on_conflict_do_update(
    index_elements=["pack_id"],
    set_={
        column.name: _insert.excluded[column.name]
        for column in packs.columns
        if column.name not in ("pack_id", "function_id", "root_id", "app_id")
    },
)


class HistoryStore:
    """Packs of entries. Which of them a question is about, their rows tell without the entries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, rows: Sequence[dict[str, Any]]) -> asyncio.Future[None]:
        """Create or replace packs."""
        return self._database.append(_upsert, rows)

    async def totals(
        self, column: Column, value: str, span: Range, task_id: str = ""
    ) -> dict[str, Summary]:
        """What ended in that time (in one container), by root function."""

        def read(connection: sa.Connection) -> dict[str, Summary]:
            found: dict[str, Summary] = {}
            partly: dict[str, str] = {}
            for row in connection.execute(_summaries(column, value, span)):
                if not task_id and row.first_finished in span and row.last_finished in span:
                    of_root = found.setdefault(row.root_id, Summary())
                    of_root.merge(summary_of(row.summary))
                else:
                    partly[row.pack_id] = row.root_id
            for pack_id, entries in _entries(connection, list(partly)):
                of_root = found.setdefault(partly[pack_id], Summary())
                for entry in entries:
                    if entry.finished_at in span and task_id in ("", entry.task_id):
                        of_root.add(entry)
            return found

        return await self._database.read(read)

    async def running(self, column: Column, value: str, at: float, task_id: str = "") -> int:
        """How many of those that ended since had begun by ``at`` and not ended."""

        def read(connection: sa.Connection) -> int:
            query = (
                sa.select(_columns.pack_id)
                .where(_columns[column] == value, _columns.last_finished >= at)
                .where(_columns.first_started < at)
            )
            pack_ids = list(connection.execute(query).scalars())
            return sum(
                1
                for _, entries in _entries(connection, pack_ids)
                for entry in entries
                if 0 < entry.started_at < at <= entry.finished_at and task_id in ("", entry.task_id)
            )

        return await self._database.read(read)

    async def newest(self, column: Column, value: str, count: int) -> list[Entry]:
        """The last ``count`` to be enqueued, the newest first."""

        def read(connection: sa.Connection) -> list[Entry]:
            found: list[Entry] = []
            query = (
                sa.select(_columns.last_finished, _columns.data)
                .where(_columns[column] == value)
                .order_by(_columns.last_finished.desc(), _columns.pack_id.desc())
            )
            for offset in range(0, 1_000_000_000, _READ_AT_ONCE):
                rows = connection.execute(query.limit(_READ_AT_ONCE).offset(offset)).all()
                for row in rows:
                    # What ended by then was enqueued by then.
                    if len(found) >= count and found[-1].enqueued_at >= row.last_finished:
                        return found
                    found += unpack(row.data)
                    found = heapq.nlargest(count, found, key=lambda entry: entry.enqueued_at)
                if len(rows) < _READ_AT_ONCE:
                    break
            return found

        return await self._database.read(read)

    async def between(self, column: Column, value: str, span: Range, limit: int) -> list[Entry]:
        """The first ``limit`` that were enqueued in that time, the oldest first."""

        def read(connection: sa.Connection) -> list[Entry]:
            query = (
                sa.select(_columns.pack_id, _columns.first_enqueued)
                .where(*_enqueued_in(column, value, span))
                .order_by(_columns.first_enqueued)
            )
            firsts = {row.pack_id: row.first_enqueued for row in connection.execute(query)}
            found: list[Entry] = []
            for pack_id, entries in _entries(connection, list(firsts)):
                if len(found) >= limit and found[-1].enqueued_at <= firsts[pack_id]:
                    break
                found += (entry for entry in entries if entry.enqueued_at in span)
                found = heapq.nsmallest(limit, found, key=lambda entry: entry.enqueued_at)
            return found

        return await self._database.read(read)

    async def count(self, column: Column, value: str, span: Range, bucket_s: int) -> dict[int, int]:
        """How many were enqueued in that time, by number of bucket."""

        def read(connection: sa.Connection) -> dict[int, int]:
            found: dict[int, int] = {}
            partly: list[str] = []
            query = sa.select(
                _columns.pack_id,
                _columns.entries,
                _columns.first_enqueued,
                _columns.last_enqueued,
            ).where(*_enqueued_in(column, value, span))
            for row in connection.execute(query):
                bucket = int(row.first_enqueued // bucket_s)
                is_one = bucket == row.last_enqueued // bucket_s
                if is_one and row.first_enqueued in span and row.last_enqueued in span:
                    found[bucket] = found.get(bucket, 0) + row.entries
                else:
                    partly.append(row.pack_id)
            for _, entries in _entries(connection, partly):
                for entry in entries:
                    if entry.enqueued_at in span:
                        bucket = int(entry.enqueued_at // bucket_s)
                        found[bucket] = found.get(bucket, 0) + 1
            return found

        return await self._database.read(read)

    async def by_bucket(
        self, column: Column, value: str, span: Range, bucket_s: int
    ) -> dict[int, Summary]:
        """What ended in that time, by number of bucket."""

        def read(connection: sa.Connection) -> dict[int, Summary]:
            found: dict[int, Summary] = {}
            partly: list[str] = []
            for row in connection.execute(_summaries(column, value, span)):
                bucket = int(row.first_finished // bucket_s)
                is_one = bucket == row.last_finished // bucket_s
                if is_one and row.first_finished in span and row.last_finished in span:
                    of_bucket = found.setdefault(bucket, Summary())
                    of_bucket.merge(summary_of(row.summary))
                else:
                    partly.append(row.pack_id)
            for _, entries in _entries(connection, partly):
                for entry in entries:
                    if entry.finished_at in span:
                        bucket = int(entry.finished_at // bucket_s)
                        found.setdefault(bucket, Summary()).add(entry)
            return found

        return await self._database.read(read)

    async def noted(self, ended: Mapping[str, Sequence[float]]) -> set[tuple[str, int]]:
        """Call and index of what is in packs of these functions that span one of these times.

        ``ended`` has the times in ascending order. As an entry has the time that its output has,
        one that was written is among them, however clocks were set.
        """

        def read(connection: sa.Connection) -> set[tuple[str, int]]:
            query = sa.select(
                _columns.pack_id,
                _columns.function_id,
                _columns.first_finished,
                _columns.last_finished,
            ).where(
                _columns.last_finished >= min(times[0] for times in ended.values()),
                _columns.first_finished <= max(times[-1] for times in ended.values()),
            )
            spanning = [
                row.pack_id
                for row in connection.execute(query)
                if _has_between(
                    ended.get(row.function_id, ()), row.first_finished, row.last_finished
                )
            ]
            found: set[tuple[str, int]] = set()
            for _, entries in _entries(connection, spanning):
                found.update((entry.call_id, entry.idx) for entry in entries)
            return found

        return await self._database.read(read) if ended else set()

    async def delete_of_app(self, app_id: str) -> None:
        """Forget what was called in an app."""
        statement = sa.delete(packs).where(_columns.app_id == app_id)
        await self._database.write(lambda connection: connection.execute(statement))

    async def prune(self, finished_before: float, kept_max: int) -> int:
        """Forget packs that ended before that time, and the oldest beyond ``kept_max`` entries."""

        def write(connection: sa.Connection) -> int:
            old = sa.delete(packs).where(_columns.last_finished < finished_before)
            count = connection.execute(old).rowcount
            total = connection.execute(sa.select(sa.func.sum(_columns.entries))).scalar() or 0
            while total > kept_max:
                oldest = sa.select(_columns.pack_id, _columns.entries)
                rows = connection.execute(oldest.order_by(_columns.last_finished).limit(100)).all()
                gone: list[str] = []
                for row in rows:
                    if total <= kept_max:
                        break
                    gone.append(row.pack_id)
                    total -= row.entries
                connection.execute(sa.delete(packs).where(_columns.pack_id.in_(gone)))
                count += len(gone)
            return count

        return await self._database.write(write)


def _has_between(times: Sequence[float], first: float, last: float) -> bool:
    index = bisect.bisect_left(times, first)
    return index < len(times) and times[index] <= last


def _summaries(column: Column, value: str, span: Range) -> sa.Executable:
    """Packs of which something may have ended in that time, without their entries."""
    return (
        sa.select(
            _columns.pack_id,
            _columns.root_id,
            _columns.first_finished,
            _columns.last_finished,
            _columns.summary,
        )
        .where(_columns[column] == value, _columns.last_finished >= span.since)
        .where(_columns.first_finished < span.until)
    )


def _enqueued_in(column: Column, value: str, span: Range) -> list[sa.ColumnElement[bool]]:
    return [
        _columns[column] == value,
        _columns.last_finished >= span.since,  # what the index knows: nothing ends before it came
        _columns.last_enqueued >= span.since,
        _columns.first_enqueued < span.until,
    ]


def _entries(
    connection: sa.Connection, pack_ids: Sequence[str]
) -> Iterator[tuple[str, list[Entry]]]:
    """The entries of these packs, in the order of ``pack_ids``."""
    for start in range(0, len(pack_ids), _READ_AT_ONCE):
        wanted = pack_ids[start : start + _READ_AT_ONCE]
        query = sa.select(_columns.pack_id, _columns.data).where(_columns.pack_id.in_(wanted))
        found = {row.pack_id: row.data for row in connection.execute(query)}
        for pack_id in wanted:
            if pack_id in found:
                yield pack_id, unpack(found[pack_id])
