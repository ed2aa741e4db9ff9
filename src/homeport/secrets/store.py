"""The table of secrets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.secrets.model import Secret
from homeport.storage.database import Database, Step, metadata
from homeport.storage.operations import OperationLog

secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("environment_id", sa.String, nullable=False),
    sa.Column("app_id", sa.String, nullable=False),
    sa.Column("key_names", sa.JSON, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("created_by", sa.String, nullable=False),
    sa.Column("last_used_at", sa.Double, nullable=False),
    sa.Index("secrets_by_name", "environment_id", "name"),
)

_USED: Final = (
    sa.update(secrets)
    .where(secrets.c.id == sa.bindparam("used"))
    .values(last_used_at=sa.bindparam("now"))
)

Sealed = tuple[Secret, bytes]


class SecretTable:
    """The table within one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, secret_id: str) -> Sealed | None:
        return self._first(secrets.c.id == secret_id)

    def named(self, environment_id: str, name: str) -> Sealed | None:
        return self._first(secrets.c.environment_id == environment_id, secrets.c.name == name)

    def _first(self, *conditions: sa.ColumnElement[bool]) -> Sealed | None:
        row = self._connection.execute(sa.select(secrets).where(*conditions)).first()
        return None if row is None else (_secret(row), row.sealed)

    def insert(self, secret: Secret, sealed: bytes) -> None:
        row = {
            "id": secret.id,
            "name": secret.name,
            "environment_id": secret.environment_id,
            "app_id": secret.app_id,
            "key_names": list(secret.keys),
            "sealed": sealed,
            "created_at": secret.created_at,
            "created_by": secret.created_by,
            "last_used_at": secret.last_used_at,
        }
        self._connection.execute(sa.insert(secrets), row)

    def replace_values(self, secret_id: str, keys: Sequence[str], sealed: bytes) -> None:
        change = sa.update(secrets).where(secrets.c.id == secret_id)
        self._connection.execute(change.values(key_names=list(keys), sealed=sealed))

    def newest_created_at(self, environment_id: str) -> float:
        query = sa.select(sa.func.max(secrets.c.created_at)).where(
            secrets.c.environment_id == environment_id
        )
        return self._connection.execute(query).scalar() or 0.0


class SecretStore:
    """Queries on secrets."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def change(self, function: Callable[[SecretTable], Secret]) -> Secret:
        """Run ``function`` in a transaction."""
        return await self._database.write(lambda c: function(SecretTable(c)))

    async def get(self, secret_id: str) -> Secret | None:
        found = await self._database.read(lambda c: SecretTable(c).get(secret_id))
        return found[0] if found else None

    async def named(self, environment_id: str, name: str) -> Secret | None:
        found = await self._database.read(lambda c: SecretTable(c).named(environment_id, name))
        return found[0] if found else None

    async def sealed(self, secret_ids: Sequence[str]) -> dict[str, bytes]:
        query = sa.select(secrets.c.id, secrets.c.sealed).where(secrets.c.id.in_(secret_ids))

        def read(connection: Connection) -> dict[str, bytes]:
            return {row.id: row.sealed for row in connection.execute(query)}

        return await self._database.read(read)

    async def list(
        self, environment_id: str, created_before: float | None, limit: int | None
    ) -> list[Secret]:
        """Named secrets of an environment, newest first."""
        query = (
            sa.select(secrets)
            .where(secrets.c.environment_id == environment_id, secrets.c.name != "")
            .order_by(secrets.c.created_at.desc())
            .limit(limit)
        )
        if created_before is not None:
            query = query.where(secrets.c.created_at < created_before)

        def read(connection: Connection) -> list[Secret]:
            return [_secret(row) for row in connection.execute(query)]

        return await self._database.read(read)

    async def has_created_at(self, environment_id: str, created_at: float) -> bool:
        query = sa.select(secrets.c.id).where(
            secrets.c.environment_id == environment_id, secrets.c.created_at == created_at
        )
        return await self._database.read(lambda c: c.execute(query).first()) is not None

    async def app_ids(self, secret_ids: Sequence[str]) -> set[str]:
        query = sa.select(secrets.c.app_id).where(secrets.c.id.in_(secret_ids))
        return await self._database.read(lambda c: {str(row[0]) for row in c.execute(query)})

    def used(self, secret_ids: Sequence[str], now: float) -> None:
        """Note the time of use, with the next commit."""
        self._database.append(_USED, [{"used": id, "now": now} for id in secret_ids])

    async def delete(self, condition: str, value: str, recorded: Step | None = None) -> int:
        """Delete by ``id``, ``app_id`` or ``environment_id``; how many.

        ``recorded`` is the record of the operation.
        """
        change = sa.delete(secrets).where(secrets.c[condition] == value)

        def write(connection: Connection) -> int:
            count = connection.execute(change).rowcount
            if recorded is not None and count:
                OperationLog.write(connection, recorded)
            return count

        return await self._database.write(write)


def _secret(row: sa.Row[Any]) -> Secret:
    return Secret(
        id=row.id,
        name=row.name,
        environment_id=row.environment_id,
        app_id=row.app_id,
        keys=tuple(row.key_names),
        created_at=row.created_at,
        created_by=row.created_by,
        last_used_at=row.last_used_at,
    )
