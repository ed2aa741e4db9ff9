"""The table of objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.objects.model import StoredObject
from homeport.storage.database import Database, Step, metadata
from homeport.storage.operations import OperationLog

objects = sa.Table(
    "objects",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("environment_id", sa.String(32), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("created_by", sa.String(64), nullable=False),
    sa.Column("details", sa.LargeBinary, nullable=False),
)

_FIELDS = StoredObject.__struct_fields__


def names(connection: Connection, kind: str) -> dict[str, str]:
    """Names by id of all objects of a kind; empty for ephemeral ones."""
    query = sa.select(objects.c.id, objects.c.name).where(objects.c.kind == kind)
    return {row.id: row.name for row in connection.execute(query)}


class ObjectStore:
    """Reads and writes of objects; ``also`` runs in the same transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self, kind: str) -> list[StoredObject]:
        """All objects of a kind, oldest first."""
        query = sa.select(objects).where(objects.c.kind == kind).order_by(objects.c.created_at)

        def read(connection: Connection) -> list[StoredObject]:
            return [StoredObject(**row) for row in connection.execute(query).mappings()]

        return await self._database.read(read)

    async def insert(
        self, item: StoredObject, also: Callable[[Connection, StoredObject], None] | None
    ) -> None:
        def write(connection: Connection) -> None:
            row = {name: getattr(item, name) for name in _FIELDS}
            connection.execute(sa.insert(objects), row)
            if also is not None:
                also(connection, item)

        await self._database.write(write)

    async def update(self, item: StoredObject) -> None:
        """Record a new name or new details."""
        change = (
            sa.update(objects)
            .where(objects.c.id == item.id)
            .values(name=item.name, details=item.details)
        )
        await self._database.write(lambda connection: connection.execute(change))

    async def delete(
        self,
        ids: Sequence[str],
        also: Callable[[Connection, Sequence[str]], None],
        recorded: Step,
    ) -> None:
        """Delete them; ``recorded`` is the record of the operation."""

        def write(connection: Connection) -> None:
            rows = [{"gone": id} for id in ids]
            connection.execute(sa.delete(objects).where(objects.c.id == sa.bindparam("gone")), rows)
            also(connection, ids)
            OperationLog.write(connection, recorded)

        await self._database.write(write)
