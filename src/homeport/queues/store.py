"""The tables of Queue items: packs of them, and which of a pack were taken."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.queues.model import Item, Pack, Part, Partition, Pieces, Run
from homeport.storage.database import Database, Row, Step, metadata

_DELETE_MAX: Final = 2_000
"""Items in one run, and runs in one step, of a deletion, lest others wait for it."""

_Number: Final = sa.BigInteger().with_variant(sa.Integer, "sqlite")

packs = sa.Table(
    "queue_packs",
    metadata,
    sa.Column("first", _Number, primary_key=True, autoincrement=False),
    sa.Column("last", _Number, nullable=False),
    sa.Column("queue_id", sa.String(32), nullable=False),
    sa.Column("partition", sa.LargeBinary, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    # 0 and 1 take no space in SQLite's format: taking a pack rewrites one page of it.
    sa.Column("taken", sa.Integer, nullable=False),
    sa.Column("sizes", sa.LargeBinary, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("items", sa.LargeBinary, nullable=False),
    sa.Index("queue_packs_by_queue", "queue_id"),
)
"""What was put together is one row (``model.PACK_BYTES``): ``items`` are the values one after the
other, ``sizes`` theirs, four bytes each, lowest first; none for one item. ``expires_at`` is that of
the partition as of this put: the last one's counts. What was taken stays for a while, for the
client that did not see the answer: ``taken`` if all were at once, else it is in ``queue_taken``."""

parts = sa.Table(
    "queue_taken",
    metadata,
    sa.Column("first", _Number, primary_key=True, autoincrement=False),
    sa.Column("last", _Number, nullable=False),
)
"""Items that were taken from packs of which others stayed; each row is of one pack."""


_of_run = packs.c.first.between(sa.bindparam("run_first"), sa.bindparam("run_last"))
_in_run = parts.c.first.between(sa.bindparam("run_first"), sa.bindparam("run_last"))
_INSERT: Final = sa.insert(packs)
_TAKE: Final = sa.update(packs).where(_of_run).values(taken=1)
_GIVE_BACK: Final = sa.update(packs).where(_of_run).values(taken=0)
_DELETE: Final = sa.delete(packs).where(_of_run)
_TAKE_PART: Final = sa.insert(parts)
_GIVE_PART_BACK: Final = sa.delete(parts).where(parts.c.first == sa.bindparam("of_first"))
_taken_of_pack = (
    sa.select(sa.func.coalesce(sa.func.sum(parts.c.last - parts.c.first + 1), 0))
    .where(_in_run)
    .scalar_subquery()
)
_DELETE_IF_TAKEN: Final = (
    sa.delete(packs)
    .where(packs.c.first == sa.bindparam("run_first"))
    .where(packs.c.last - packs.c.first + 1 <= _taken_of_pack)
)
_DELETE_PARTS: Final = sa.delete(parts).where(_in_run)
_DELETE_PARTS_IF_GONE: Final = _DELETE_PARTS.where(
    ~sa.exists().where(packs.c.first == sa.bindparam("run_first"))
)
_before = (
    sa.select(sa.func.max(packs.c.first))
    .where(packs.c.first <= sa.bindparam("run_first"))
    .scalar_subquery()
)
_VALUES: Final = (
    sa.select(packs.c.first, packs.c.sizes, packs.c["items"])
    .where(packs.c.first >= sa.func.coalesce(_before, sa.bindparam("run_first")))
    .where(packs.c.first <= sa.bindparam("run_last"))
)
_ERASE: Final = sa.delete(packs).where(packs.c.queue_id == sa.bindparam("of_queue"))
_PARTS: Final = sa.select(parts.c.first, parts.c.last).order_by(parts.c.first)


class _Head(NamedTuple):
    """A row without its values."""

    first: int
    last: int
    queue_id: str
    partition: bytes
    expires_at: float
    taken: int
    sizes: bytes
    size: int


_HEADS: Final = sa.select(*(packs.c[name] for name in _Head._fields)).order_by(packs.c.first)


@dataclass(slots=True, eq=False)
class StoredPack:
    """A row without its values, and what of it was taken."""

    pack: Pack
    queue_id: str
    partition: bytes
    expires_at: float
    sizes: Sequence[int]
    taken: Pieces

    def waiting(self) -> list[Item]:
        """The items that nobody took."""
        first = self.pack.first
        if self.taken.whole:
            return []
        gone = {seq for part in self.taken.parts for seq in range(part.first, part.last + 1)}
        return [
            Item(seq, size, None, self.pack)
            for seq, size in enumerate(self.sizes, first)
            if seq not in gone
        ]

    def taken_bytes(self) -> int:
        """Bytes of the items that were taken."""
        first = self.pack.first
        return sum(sum(self.sizes[a - first : b - first + 1]) for a, b in self.taken.runs())


def erase(connection: Connection, queue_ids: Sequence[str]) -> None:
    """Delete the items of Queues, in the transaction that deletes those."""
    of_queue = [{"of_queue": queue_id} for queue_id in queue_ids]
    query = sa.select(packs.c.first, packs.c.last).where(packs.c.last > packs.c.first)
    for queue_id in queue_ids:
        rows = connection.execute(query.where(packs.c.queue_id == queue_id)).all()
        if rows:
            connection.execute(_DELETE_PARTS, _rows((first, last) for first, last in rows))
    connection.execute(_ERASE, of_queue)


class QueueStore:
    """Items: changes are appended to the writer's next transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> list[StoredPack]:
        """All packs in order (at start)."""
        return await self._database.read(lambda connection: _load(connection, _HEADS))

    async def load_queue(self, queue_id: str) -> list[StoredPack]:
        """The packs of one Queue, once everything appended so far is committed or has failed."""
        query = _HEADS.where(packs.c.queue_id == queue_id)
        return await self._database.write(lambda connection: _load(connection, query))

    async def values(self, runs: Sequence[Run]) -> dict[int, bytes]:
        """Committed values, those of taken items too."""

        def read(connection: Connection) -> dict[int, bytes]:
            found: dict[int, bytes] = {}
            for run in _rows(runs):
                first, last = run["run_first"], run["run_last"]
                for begin, sizes, data in connection.execute(_VALUES, run):
                    for seq, value in enumerate(_unpacked(sizes, data), begin):
                        if first <= seq <= last:
                            found[seq] = value
            return found

        return await self._database.read(read)

    def put(
        self, partition: Partition, new: Sequence[Item], values: Sequence[bytes], record: Step
    ) -> asyncio.Future[None]:
        rows: list[Row] = []
        begin = 0
        while begin < len(new):
            pack = new[begin].pack
            end = begin + pack.last - pack.first + 1
            sizes = [item.size for item in new[begin:end]]
            rows.append(
                {
                    "first": pack.first,
                    "last": pack.last,
                    "queue_id": partition.queue_id,
                    "partition": partition.key,
                    "expires_at": partition.expires_at,
                    "taken": 0,
                    "sizes": _packed(sizes),
                    "size": sum(sizes),
                    "items": values[begin] if len(sizes) == 1 else b"".join(values[begin:end]),
                }
            )
            begin = end
        return self._database.append_all([(_INSERT, rows), record])

    def take(self, pieces: Pieces, record: Step) -> asyncio.Future[None]:
        taken, parts_taken = _rows(pieces.whole), _part_rows(pieces.parts)
        return self._database.append_all([(_TAKE, taken), (_TAKE_PART, parts_taken), record])

    def give_back(self, pieces: Pieces, still_taken: Pieces, undo: Step) -> asyncio.Future[None]:
        """Undo a ``take`` but for some of its items."""
        firsts = [{"of_first": part.first} for part in pieces.parts]
        return self._database.append_all(
            [
                (_GIVE_BACK, _rows(pieces.whole)),
                (_GIVE_PART_BACK, firsts),
                (_TAKE, _rows(still_taken.whole)),
                (_TAKE_PART, _part_rows(still_taken.parts)),
                undo,
            ]
        )

    def delete(self, whole: Sequence[Run], rests: Sequence[Run] = ()) -> asyncio.Future[list[None]]:
        """Delete whole packs, and ``rests``, each a pack, if all of it was taken."""
        short = [
            (begin, min(begin + _DELETE_MAX - 1, last))
            for first, last in whole
            for begin in range(first, last + 1, _DELETE_MAX)
        ]
        commits = [
            self._database.append(_DELETE, _rows(short[n : n + _DELETE_MAX]))
            for n in range(0, len(short), _DELETE_MAX)
        ]
        for n in range(0, len(rests), _DELETE_MAX):
            rows = _rows(rests[n : n + _DELETE_MAX])
            steps = [(_DELETE_IF_TAKEN, rows), (_DELETE_PARTS_IF_GONE, rows)]
            commits.append(self._database.append_all(steps))
        return asyncio.gather(*commits)

    def delete_rest(self, pieces: Pieces) -> asyncio.Future[list[None]]:
        """Delete items nobody took: parts of packs are taken from now on, to go with the others."""
        deleted = self.delete(pieces.whole)
        if not pieces.parts:
            return deleted
        taken = self._database.append(_TAKE_PART, _part_rows(pieces.parts))
        return asyncio.gather(*(_done(commit) for commit in (deleted, taken)))


async def _done(commit: asyncio.Future[list[None]] | asyncio.Future[None]) -> None:
    await commit


def _load(connection: Connection, query: sa.Select[Any]) -> list[StoredPack]:
    gone: list[Run] = [(row[0], row[1]) for row in connection.execute(_PARTS)]
    position = 0
    found: list[StoredPack] = []
    for row in connection.execute(query):
        head = _Head(*row)
        pack = Pack(head.first, head.last)
        while position < len(gone) and gone[position][0] < pack.first:
            position += 1
        taken_parts: list[Part] = []
        while position < len(gone) and gone[position][0] <= pack.last:
            taken_parts.append(Part(pack, *gone[position]))
            position += 1
        pieces = Pieces([(pack.first, pack.last)] if head.taken else [], taken_parts)
        sizes = _unpacked_sizes(head.sizes) if head.sizes else [head.size]
        found.append(
            StoredPack(pack, head.queue_id, head.partition, head.expires_at, sizes, pieces)
        )
    return found


def _packed(sizes: Sequence[int]) -> bytes:
    return b"" if len(sizes) == 1 else struct.pack(f"<{len(sizes)}I", *sizes)


def _unpacked_sizes(sizes: bytes) -> Sequence[int]:
    return struct.unpack(f"<{len(sizes) // 4}I", sizes)


def _unpacked(sizes: bytes, data: bytes) -> Iterator[bytes]:
    if not sizes:
        yield data
        return
    for begin, end in pairwise(accumulate(_unpacked_sizes(sizes), initial=0)):
        yield data[begin:end]


def _rows(runs: Iterable[Run]) -> list[Row]:
    return [{"run_first": first, "run_last": last} for first, last in runs]


def _part_rows(of: Sequence[Part]) -> list[Row]:
    return [{"first": part.first, "last": part.last} for part in of]
