"""The table of Queue items."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.queues.model import Item, Partition, Run
from homeport.storage.database import Database, Row, Step, metadata

_DELETE_MAX: Final = 2_000
"""Items in one run, and runs in one step, of a deletion, lest others wait for it."""

items = sa.Table(
    "queue_items",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("queue_id", sa.String(32), nullable=False),
    sa.Column("partition", sa.LargeBinary, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    # 0 and 1 take no space in SQLite's format: taking an item rewrites one page of it.
    sa.Column("taken", sa.Integer, nullable=False),
    sa.Column("value", sa.LargeBinary, nullable=False),
    sa.Index("queue_items_by_queue", "queue_id"),
)
"""``expires_at`` is that of the partition as of this item's put: the last item's counts. Taken
items stay for a while, for the client that did not see the answer."""

_of_run = items.c.seq.between(sa.bindparam("first"), sa.bindparam("last"))
_INSERT: Final = sa.insert(items)
_TAKE: Final = sa.update(items).where(_of_run).values(taken=1)
_GIVE_BACK: Final = sa.update(items).where(_of_run).values(taken=0)
_DELETE: Final = sa.delete(items).where(_of_run)
_VALUES: Final = sa.select(items.c.seq, items.c.value).where(_of_run)
_ERASE: Final = sa.delete(items).where(items.c.queue_id == sa.bindparam("of_queue"))


class StoredItem(NamedTuple):
    """A row without its value."""

    seq: int
    queue_id: str
    partition: bytes
    expires_at: float
    size: int
    taken: int


_HEADS: Final = sa.select(*(items.c[name] for name in StoredItem._fields)).order_by(items.c.seq)


def erase(connection: Connection, queue_ids: Sequence[str]) -> None:
    """Delete the items of Queues, in the transaction that deletes those."""
    connection.execute(_ERASE, [{"of_queue": queue_id} for queue_id in queue_ids])


class QueueStore:
    """Items: changes are appended to the writer's next transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> list[StoredItem]:
        """All items in order (at start)."""

        def read(connection: Connection) -> list[StoredItem]:
            return [StoredItem(*row) for row in connection.execute(_HEADS)]

        return await self._database.read(read)

    async def load_queue(self, queue_id: str) -> list[StoredItem]:
        """The items of one Queue, once everything appended so far is committed or has failed."""
        query = _HEADS.where(items.c.queue_id == queue_id)

        def read(connection: Connection) -> list[StoredItem]:
            return [StoredItem(*row) for row in connection.execute(query)]

        return await self._database.write(read)

    async def values(self, runs: Sequence[Run]) -> dict[int, bytes]:
        """Committed values, those of taken items too."""

        def read(connection: Connection) -> dict[int, bytes]:
            found: dict[int, bytes] = {}
            for first, last in runs:
                rows = connection.execute(_VALUES, {"first": first, "last": last})
                found.update((seq, value) for seq, value in rows)
            return found

        return await self._database.read(read)

    def put(
        self, partition: Partition, new: Sequence[Item], values: Sequence[bytes], record: Step
    ) -> asyncio.Future[None]:
        rows: list[Row] = [
            {
                "seq": item.seq,
                "queue_id": partition.queue_id,
                "partition": partition.key,
                "expires_at": partition.expires_at,
                "size": item.size,
                "taken": 0,
                "value": value,
            }
            for item, value in zip(new, values, strict=True)
        ]
        return self._database.append_all([(_INSERT, rows), record])

    def take(self, runs: Sequence[Run], record: Step) -> asyncio.Future[None]:
        return self._database.append_all([(_TAKE, _rows(runs)), record])

    def give_back(self, runs: Sequence[Run], undo: Step) -> asyncio.Future[None]:
        return self._database.append_all([(_GIVE_BACK, _rows(runs)), undo])

    def delete(self, runs: Sequence[Run]) -> asyncio.Future[list[None]]:
        """Delete items for good."""
        short = [
            (begin, min(begin + _DELETE_MAX - 1, last))
            for first, last in runs
            for begin in range(first, last + 1, _DELETE_MAX)
        ]
        commits = [
            self._database.append(_DELETE, _rows(short[n : n + _DELETE_MAX]))
            for n in range(0, len(short), _DELETE_MAX)
        ]
        return asyncio.gather(*commits)


def _rows(runs: Sequence[Run]) -> list[Row]:
    return [{"first": first, "last": last} for first, last in runs]
