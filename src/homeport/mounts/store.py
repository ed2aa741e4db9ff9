"""The tables of mounts, their names and manifests."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.kernel.errors import AlreadyExistsError
from homeport.mounts.model import Mount
from homeport.storage.database import Database, metadata
from homeport.storage.dialects import insert

manifests = sa.Table(
    "manifests",
    metadata,
    sa.Column("digest", sa.String, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

mounts = sa.Table(
    "mounts",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

mount_names = sa.Table(
    "mount_names",
    metadata,
    sa.Column("environment_id", sa.String, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("mount_id", sa.String, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

_INSERT_MANIFEST: Final = insert(manifests).on_conflict_do_nothing()
_INSERT_MOUNT: Final = insert(mounts).on_conflict_do_nothing()


class MountStore:
    """Queries on mounts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, mount: Mount, data: bytes, now: float) -> None:
        """Record a mount and its encoded manifest (again is harmless)."""

        def write(connection: Connection) -> None:
            _add(connection, mount, data, now)

        await self._database.write(write)

    async def add_named(
        self, mount: Mount, data: bytes, now: float, *, environment_id: str, name: str, keep: bool
    ) -> Mount:
        """Record a mount under a name; the mount that has the name afterwards.

        If the name is taken: the mount it has if ``keep``, else raises ``AlreadyExistsError``.
        """

        def write(connection: Connection) -> Mount:
            existing = _named(connection, environment_id, name)
            if existing is not None:
                if keep:
                    return existing
                raise AlreadyExistsError(f"mount {name!r} already exists")
            _add(connection, mount, data, now)
            row = {
                "environment_id": environment_id,
                "name": name,
                "mount_id": mount.id,
                "created_at": now,
            }
            connection.execute(sa.insert(mount_names), row)
            return mount

        return await self._database.write(write)

    async def named(self, environment_id: str, name: str) -> Mount | None:
        return await self._database.read(lambda c: _named(c, environment_id, name))

    async def digest(self, mount_id: str) -> str | None:
        query = sa.select(mounts.c.digest).where(mounts.c.id == mount_id)
        return await self._database.read(lambda c: c.execute(query).scalar())

    async def manifest(self, digest: str) -> bytes | None:
        query = sa.select(manifests.c.data).where(manifests.c.digest == digest)
        return await self._database.read(lambda c: c.execute(query).scalar())

    async def all_manifests(self) -> list[bytes]:
        """Every manifest (to find the contents in use)."""
        query = sa.select(manifests.c.data)

        def read(connection: Connection) -> list[bytes]:
            return list(connection.execute(query).scalars())

        return await self._database.read(read)


def _add(connection: Connection, mount: Mount, data: bytes, now: float) -> None:
    connection.execute(_INSERT_MANIFEST, {"digest": mount.digest, "data": data})
    row: dict[str, Any] = {"id": mount.id, "digest": mount.digest, "created_at": now}
    connection.execute(_INSERT_MOUNT, row)


def _named(connection: Connection, environment_id: str, name: str) -> Mount | None:
    query = (
        sa.select(mounts.c.id, mounts.c.digest)
        .join(mount_names, mount_names.c.mount_id == mounts.c.id)
        .where(mount_names.c.environment_id == environment_id, mount_names.c.name == name)
    )
    row = connection.execute(query).first()
    return None if row is None else Mount(row.id, row.digest)
