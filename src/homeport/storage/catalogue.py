"""Which contents a bucket holds, in the database: asking a store for each would be far too slow."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.kernel.clock import Clock
from homeport.storage.database import Database, metadata
from homeport.storage.dialects import insert

contents = sa.Table(
    "contents",
    metadata,
    sa.Column("sha256", sa.String, primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("used_at", sa.Double, nullable=False),
    sqlite_with_rowid=False,
)

_VARIABLES_MAX: Final = 1_000
"""Values in one query; databases have a limit."""
_USE_S: Final = 3600.0
"""Use is recorded when the last record of it is older than this."""
_INSERT = insert(contents)
_ADD: Final = _INSERT.on_conflict_do_update(
    index_elements=[contents.c.sha256],
    set_={"size": _INSERT.excluded.size, "used_at": _INSERT.excluded.used_at},
)


class Catalogue:
    """Sizes of the contents in the bucket and when they were last used, within an hour."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def add(self, sha256: str, size: int) -> asyncio.Future[None]:
        """Record a content that is in the bucket; done when durable."""
        row = {"sha256": sha256, "size": size, "used_at": self._clock.now()}
        return self._database.append(_ADD, [row])

    async def sizes(self, hashes: Collection[str]) -> dict[str, int]:
        """Sizes in bytes of those contents that are there, which counts as use of them."""
        asked = list(hashes)
        now = self._clock.now()

        def query(connection: Connection) -> tuple[dict[str, int], list[str]]:
            found: dict[str, int] = {}
            unused: list[str] = []
            for part in _parts(asked):
                for row in connection.execute(sa.select(contents).where(_in(part))):
                    found[row.sha256] = row.size
                    if row.used_at < now - _USE_S:
                        unused.append(row.sha256)
            return found, unused

        found, unused = await self._database.read(query)
        if unused:
            # What a sweep removed in between is not there.
            kept = await self._use(unused, now)
            for sha256 in set(unused) - kept:
                del found[sha256]
        return found

    async def _use(self, hashes: Sequence[str], now: float) -> set[str]:
        def update(connection: Connection) -> set[str]:
            kept: set[str] = set()
            for part in _parts(hashes):
                changed = sa.update(contents).where(_in(part)).values(used_at=now)
                kept.update(connection.execute(changed.returning(contents.c.sha256)).scalars())
            return kept

        return await self._database.write(update)

    async def known(self, hashes: Collection[str]) -> set[str]:
        """Those of them that are there, which does not count as use."""

        def query(connection: Connection) -> set[str]:
            found: set[str] = set()
            for part in _parts(list(hashes)):
                found.update(
                    connection.execute(sa.select(contents.c.sha256).where(_in(part))).scalars()
                )
            return found

        return await self._database.read(query)

    async def count(self) -> int:
        """How many there are."""
        query = sa.select(sa.func.count()).select_from(contents)
        return await self._database.read(lambda connection: connection.execute(query).scalar_one())

    async def unused(self, before: float) -> list[str]:
        """Contents whose last recorded use is before that."""
        query = sa.select(contents.c.sha256).where(contents.c.used_at < before)
        return await self._database.read(
            lambda connection: list(connection.execute(query).scalars())
        )

    async def forget(
        self, hashes: Collection[str], *, unused_since: float | None = None
    ) -> list[str]:
        """Remove the records, of those only that were not used after that; which they were."""

        def delete(connection: Connection) -> list[str]:
            gone: list[str] = []
            for part in _parts(list(hashes)):
                chosen = sa.delete(contents).where(_in(part)).returning(contents.c.sha256)
                if unused_since is not None:
                    chosen = chosen.where(contents.c.used_at < unused_since)
                gone.extend(connection.execute(chosen).scalars())
            return gone

        return await self._database.write(delete)


def _in(hashes: Sequence[str]) -> sa.ColumnElement[bool]:
    return contents.c.sha256.in_(hashes)


def _parts(hashes: Sequence[str]) -> list[Sequence[str]]:
    return [
        hashes[start : start + _VARIABLES_MAX] for start in range(0, len(hashes), _VARIABLES_MAX)
    ]
