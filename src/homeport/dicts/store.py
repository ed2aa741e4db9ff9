"""The table of Dict entries."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.dicts.model import Entry
from homeport.storage.database import Database, Row, Step, metadata
from homeport.storage.dialects import insert

PAGE_ENTRIES: Final = 1_000
PAGE_BYTES: Final = 8 * 1024 * 1024
"""A page of contents ends with the entry that exceeds this."""

entries = sa.Table(
    "dict_entries",
    metadata,
    sa.Column("dict_id", sa.String(32), primary_key=True),
    sa.Column("key", sa.LargeBinary, primary_key=True),
    sa.Column("used_at", sa.Double, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("file", sa.String(64), nullable=False),
    sa.Column("value", sa.LargeBinary, nullable=False),
    # Counting, summing and expiring look at this index alone, whatever the values' size.
    sa.Index("dict_entries_by_use", "dict_id", "used_at", "size"),
    sa.Index(
        "dict_entries_in_files",
        "file",
        sqlite_where=sa.text("file != ''"),
        postgresql_where=sa.text("file != ''"),
    ),
)

_of_dict = entries.c.dict_id == sa.bindparam("of_dict")
_of_key = entries.c.key == sa.bindparam("of_key")
_insert = insert(entries)
_UPSERT: Final = _insert.on_conflict_do_update(
    index_elements=["dict_id", "key"],
    set_={name: _insert.excluded[name] for name in ("used_at", "size", "file", "value")},
)
_DELETE: Final = sa.delete(entries).where(_of_dict, _of_key)
_CLEAR: Final = sa.delete(entries).where(_of_dict)
_EXPIRE: Final = sa.delete(entries).where(_of_dict, entries.c.used_at < sa.bindparam("before"))
_TOUCH: Final = sa.update(entries).where(_of_dict, _of_key).values(used_at=sa.bindparam("now"))
_TOUCH_ALL: Final = (
    sa.update(entries)
    .where(
        _of_dict,
        entries.c.used_at < sa.bindparam("older"),
        entries.c.used_at >= sa.bindparam("before"),
    )
    .values(used_at=sa.bindparam("now"))
)
_WHOLE: Final = sa.select(
    entries.c.key, entries.c.size, entries.c.used_at, entries.c.file, entries.c.value
).where(_of_dict)
_GET: Final = _WHOLE.where(_of_key)
_MEASURE: Final = sa.select(sa.func.coalesce(sa.func.sum(entries.c.size), 0)).where(_of_dict)
_COUNT: Final = (
    sa.select(sa.func.count())
    .select_from(entries)
    .where(_of_dict, entries.c.used_at >= sa.bindparam("before"))
)
_FIRST_PAGE: Final = (
    _WHOLE.where(entries.c.used_at >= sa.bindparam("before"))
    .order_by(entries.c.key)
    .limit(PAGE_ENTRIES)
)
_PAGE: Final = _FIRST_PAGE.where(entries.c.key > sa.bindparam("after"))


def insert_all(connection: Connection, dict_id: str, items: Sequence[Entry]) -> None:
    """Add the first entries of a new Dict, in the transaction that creates it."""
    if items:
        connection.execute(_UPSERT, [_row(dict_id, item) for item in items])


def erase(connection: Connection, dict_ids: Sequence[str]) -> None:
    """Delete the entries of Dicts, in the transaction that deletes those."""
    connection.execute(_CLEAR, [{"of_dict": dict_id} for dict_id in dict_ids])


class DictStore:
    """Entries: changes are appended to the writer's next transaction, reads see what is committed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ── changes ─────────────────────────────────────────────────────────────────────────────

    def put(self, dict_id: str, items: Sequence[Entry], record: Step) -> asyncio.Future[None]:
        """Write entries, their values included, and the operation's record."""
        rows = [_row(dict_id, item) for item in items]
        return self._database.append_all([(_UPSERT, rows), record])

    def delete(self, dict_id: str, key: bytes, record: Step) -> asyncio.Future[None]:
        rows: list[Row] = [{"of_dict": dict_id, "of_key": key}]
        return self._database.append_all([(_DELETE, rows), record])

    def clear(self, dict_id: str) -> asyncio.Future[None]:
        return self._database.append(_CLEAR, [{"of_dict": dict_id}])

    def touch(self, dict_id: str, key: bytes, now: float) -> asyncio.Future[None]:
        """Note a read."""
        return self._database.append(_TOUCH, [{"of_dict": dict_id, "of_key": key, "now": now}])

    def touch_all(
        self, dict_id: str, *, now: float, older: float, before: float
    ) -> asyncio.Future[None]:
        """Note a read of all entries that were last used between ``before`` and ``older``."""
        row = {"of_dict": dict_id, "now": now, "older": older, "before": before}
        return self._database.append(_TOUCH_ALL, [row])

    async def expire(self, dict_ids: Sequence[str], before: float) -> int:
        """Delete entries that were last used before; how many."""

        def write(connection: Connection) -> int:
            return sum(
                connection.execute(_EXPIRE, {"of_dict": dict_id, "before": before}).rowcount
                for dict_id in dict_ids
            )

        return await self._database.write(write)

    # ── reads ───────────────────────────────────────────────────────────────────────────────

    async def get(self, dict_id: str, key: bytes) -> Entry | None:
        parameters = {"of_dict": dict_id, "of_key": key}

        def read(connection: Connection) -> Entry | None:
            row = connection.execute(_GET, parameters).first()
            return None if row is None else _entry(*row)

        return await self._database.read(read)

    async def measure(self, dict_id: str) -> int:
        """Bytes of all keys and values."""
        return await self._scalar(_MEASURE, {"of_dict": dict_id})

    async def count(self, dict_id: str, before: float) -> int:
        """Entries that were used at that time or later."""
        return await self._scalar(_COUNT, {"of_dict": dict_id, "before": before})

    async def _scalar(self, query: sa.Select[Any], parameters: Row) -> int:
        return await self._database.read(
            lambda connection: connection.execute(query, parameters).scalar_one()
        )

    async def page(self, dict_id: str, after: bytes | None, before: float) -> list[Entry]:
        """The next entries by key after that one; an empty page is the end."""

        def read(connection: Connection) -> list[Entry]:
            found: list[Entry] = []
            size = 0
            if after is None:
                rows = connection.execute(_FIRST_PAGE, {"of_dict": dict_id, "before": before})
            else:
                parameters = {"of_dict": dict_id, "before": before, "after": after}
                rows = connection.execute(_PAGE, parameters)
            for row in rows:
                found.append(_entry(*row))
                size += 0 if row.file else row.size
                if size > PAGE_BYTES:
                    break
            return found

        return await self._database.read(read)

    async def files(self) -> set[str]:
        """Hashes of all values that are files."""
        query = sa.select(entries.c.file).where(entries.c.file != "").distinct()
        return await self._database.read(lambda c: set(c.execute(query).scalars()))


def _row(dict_id: str, item: Entry) -> Row:
    return {
        "dict_id": dict_id,
        "key": item.key,
        "used_at": item.used_at,
        "size": item.size,
        "file": item.file,
        "value": item.value or b"",
    }


def _entry(key: bytes, size: int, used_at: float, file: str, value: bytes) -> Entry:
    return Entry(key, size, used_at, file, None if file else value)
