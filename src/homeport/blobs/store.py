"""The table of blobs."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.blobs.model import Blob
from homeport.storage.database import Database, metadata
from homeport.storage.dialects import insert

blobs = sa.Table(
    "blobs",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("sha256", sa.String, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False, index=True),
)

_VARIABLES_MAX: Final = 1_000
"""Values in one query; databases have a limit."""
_INSERT: Final = insert(blobs).on_conflict_do_nothing()


class BlobStore:
    """Queries on complete blobs; their contents are in the file store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, blob: Blob) -> asyncio.Future[None]:
        """Record ``blob`` (again is harmless); done when durable."""
        row = {
            "id": blob.id,
            "sha256": blob.sha256,
            "size": blob.size,
            "created_at": blob.created_at,
            "expires_at": blob.expires_at,
        }
        return self._database.append(_INSERT, [row])

    async def find(self, blob_id: str) -> Blob | None:
        def query(connection: Connection) -> Blob | None:
            row = connection.execute(sa.select(blobs).where(blobs.c.id == blob_id)).first()
            return None if row is None else Blob(*row)

        return await self._database.read(query)

    async def known(self, blob_ids: Collection[str]) -> set[str]:
        """Those of them that are complete."""
        asked = list(blob_ids)

        def query(connection: Connection) -> set[str]:
            found: set[str] = set()
            for start in range(0, len(asked), _VARIABLES_MAX):
                part = asked[start : start + _VARIABLES_MAX]
                chosen = sa.select(blobs.c.id).where(blobs.c.id.in_(part))
                found.update(connection.execute(chosen).scalars())
            return found

        return await self._database.read(query)

    async def delete_expired(self, now: float, limit: int) -> int:
        """Forget up to ``limit`` blobs that have expired; how many."""
        chosen = sa.select(blobs.c.id).where(blobs.c.expires_at < now).limit(limit)

        def delete(connection: Connection) -> int:
            return connection.execute(sa.delete(blobs).where(blobs.c.id.in_(chosen))).rowcount

        return await self._database.write(delete)

    async def contents(self) -> set[str]:
        """Hashes of all contents that blobs refer to."""

        def query(connection: Connection) -> set[str]:
            return set(connection.execute(sa.select(blobs.c.sha256).distinct()).scalars())

        return await self._database.read(query)
