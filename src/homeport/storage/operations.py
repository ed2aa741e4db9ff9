"""Which calls have been carried out: for the client that repeats one after the server died.

Within one run of the server the RPC edge remembers answers (``rpc/idempotency.py``). What it held
is gone after a crash, so a change that must not be made twice (a put, a pop) commits the name of
its call and the answer together with itself, and a restarted server looks there first.
"""

from __future__ import annotations

import asyncio
from typing import Final

import sqlalchemy as sa

from homeport.kernel.clock import Clock
from homeport.storage.database import Database, Row, Step, metadata

RETENTION_S: Final = 300.0
"""Clients repeat a call within a second or two, one that waits for room in a queue every 30 s."""

operations = sa.Table(
    "operations",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("answer", sa.LargeBinary, nullable=False),
)
"""``id`` is the time in microseconds, made unique: old rows are a range, and no index is needed
for names, which are looked up in memory."""

_INSERT: Final = sa.insert(operations)
_DELETE: Final = sa.delete(operations).where(operations.c.id == sa.bindparam("forgotten"))
_PRUNE: Final = sa.delete(operations).where(operations.c.id <= sa.bindparam("last"))


class OperationLog:
    """The record of operations. ``start`` before use."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._earlier: dict[str, int] = {}  # of earlier runs of the server
        self._last_id = 0
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Read what earlier runs recorded, whenever that was: the clock may have been set since."""
        query = sa.select(operations.c.name, operations.c.id)

        def read(connection: sa.Connection) -> dict[str, int]:
            return {row.name: row.id for row in connection.execute(query)}

        self._earlier = await self._database.read(read)
        self._last_id = max(self._earlier.values(), default=0)
        if self._earlier:
            self._watch()

    def stop(self) -> None:
        """Prune no more."""
        if self._timer is not None:
            self._timer.cancel()

    def record(self, name: str, answer: bytes = b"") -> Step:
        """The step that, appended with the change itself, records it (nothing without a name)."""
        if not name:
            return (_INSERT, [])
        self._last_id = max(self._last_id + 1, int(self._clock.now() * 1e6))
        if self._timer is None:
            self._watch()
        return (_INSERT, [{"id": self._last_id, "name": name, "answer": answer}])

    @staticmethod
    def write(connection: sa.Connection, recorded: Step) -> None:
        """Carry out a ``record`` in the transaction of the change itself."""
        statement, rows = recorded
        if rows:
            connection.execute(statement, rows)

    async def was_done(self, name: str) -> bool:
        """Whether an earlier run of the server carried the call out.

        For deletions: what is deleted cannot say that it was this very call that did it.
        """
        return await self.recall(name) is not None

    @staticmethod
    def undo(recorded: Step) -> Step:
        """The step that takes a ``record`` back."""
        rows: list[Row] = [{"forgotten": row["id"]} for row in recorded[1]]
        return (_DELETE, rows)

    async def recall(self, name: str) -> bytes | None:
        """The answer of that call if an earlier run of the server carried it out."""
        number = self._earlier.get(name)
        if number is None:
            return None
        query = sa.select(operations.c.answer).where(operations.c.id == number)
        return await self._database.read(lambda connection: connection.execute(query).scalar())

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(RETENTION_S, self._prune, self._last_id)

    def _prune(self, last_id: int) -> None:
        """Forget what was recorded until then. By the order of records, not by the clock's time."""
        self._timer = None
        self._earlier = {name: id for name, id in self._earlier.items() if id > last_id}
        self._database.append(_PRUNE, [{"last": last_id}])
        if self._last_id > last_id:
            self._watch()
