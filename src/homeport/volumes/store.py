"""The tables of volumes and of the changes that were made to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.kernel.errors import NotFoundError
from homeport.objects.model import StoredObject
from homeport.storage.database import Database, metadata
from homeport.volumes.model import Head
from homeport.volumes.tree import Tree, volume_files

T = TypeVar("T")

volumes = sa.Table(
    "volumes",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("floor", sa.BigInteger, nullable=False),
)

volume_changes = sa.Table(
    "volume_changes",
    metadata,
    sa.Column("change_id", sa.String, primary_key=True),
    sa.Column("volume_id", sa.String, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("made_at", sa.Double, nullable=False, index=True),
)
"""Changes by the id their caller gave them: a repeated request finds that it was carried out."""

CHANGES_S: Final = 86400.0
"""How long a repeated request is recognised."""


def record(connection: Connection, item: StoredObject) -> None:
    """Begin the tree of a new volume."""
    connection.execute(sa.insert(volumes), {"id": item.id, "revision": 0, "floor": 0})


def erase(connection: Connection, ids: Sequence[str]) -> None:
    """Forget the files of volumes that are deleted."""
    for volume_id in ids:
        connection.execute(sa.delete(volumes).where(volumes.c.id == volume_id))
        for table in (volume_files, volume_changes):
            connection.execute(sa.delete(table).where(table.c.volume_id == volume_id))


class VolumeStore:
    """The trees of volumes and the record of changes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, volume_id: str, query: Callable[[Head, Tree], T]) -> T:
        """Run queries in one snapshot. Raises ``NotFoundError``."""

        def run(connection: Connection) -> T:
            row = connection.execute(sa.select(volumes).where(volumes.c.id == volume_id)).first()
            if row is None:
                raise missing(volume_id)
            return query(Head(row.revision, row.floor), Tree(connection, volume_id))

        return await self._database.read(run)

    async def change(
        self, volume_id: str, change_id: str, now: float, change: Callable[[Tree], None]
    ) -> int:
        """Change the files of a volume as one new revision; that revision.

        Nothing is done if ``change_id`` was carried out before. Raises ``NotFoundError`` and what
        ``change`` raises; then nothing is changed.
        """

        def write(connection: Connection) -> int:
            done = sa.select(volume_changes.c.revision).where(
                volume_changes.c.change_id == change_id
            )
            earlier = connection.execute(done).scalar()
            if earlier is not None:
                return earlier
            grown = (
                sa.update(volumes)
                .where(volumes.c.id == volume_id)
                .values(revision=volumes.c.revision + 1)
                .returning(volumes.c.revision)
            )
            revision = connection.execute(grown).scalar()
            if revision is None:
                raise missing(volume_id)
            change(Tree(connection, volume_id, revision))
            row = {
                "change_id": change_id,
                "volume_id": volume_id,
                "revision": revision,
                "made_at": now,
            }
            connection.execute(sa.insert(volume_changes), row)
            return revision

        return await self._database.write(write)

    async def forget_changes(self, before: float) -> int:
        """Forget which requests were carried out before that time; how many."""
        statement = sa.delete(volume_changes).where(volume_changes.c.made_at < before)
        return await self._database.write(lambda c: c.execute(statement).rowcount)

    async def forget_removals(self, before: float) -> int:
        """Forget what was removed before that time; how many paths."""

        def write(connection: Connection) -> int:
            floors = Tree.forget_removals(connection, before)
            for volume_id, (floor, _) in floors.items():
                statement = (
                    sa.update(volumes)
                    .where(volumes.c.id == volume_id)
                    .values(floor=sa.case((volumes.c.floor < floor, floor), else_=volumes.c.floor))
                )
                connection.execute(statement)
            return sum(count for _, count in floors.values())

        return await self._database.write(write)

    async def contents(self) -> set[str]:
        """Hashes of all contents that files are made of."""
        return await self._database.read(Tree.contents)


def missing(volume_id: str) -> NotFoundError:
    """What is said about a volume that is not there."""
    return NotFoundError(f"Volume {volume_id[:80]!r} not found; it may have been deleted")
