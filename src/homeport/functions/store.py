"""The tables of functions and classes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence, Set

import msgspec
import sqlalchemy as sa

from homeport.functions.model import ClassRecord, FunctionRecord
from homeport.storage.database import Database, Step, metadata
from homeport.storage.dialects import insert

functions = sa.Table(
    "functions",
    metadata,
    sa.Column("function_id", sa.String(40), primary_key=True),
    sa.Column("app_id", sa.String(40), nullable=False, index=True),
    sa.Column("tag", sa.String(512), nullable=False),
    sa.Column("record", sa.LargeBinary, nullable=False),
)

classes = sa.Table(
    "classes",
    metadata,
    sa.Column("class_id", sa.String(40), primary_key=True),
    sa.Column("app_id", sa.String(40), nullable=False, index=True),
)

versions = sa.Table(
    "function_versions",
    metadata,
    sa.Column("function_id", sa.String(40), primary_key=True),
    sa.Column("definition_id", sa.String(40), primary_key=True),
    sa.Column("app_id", sa.String(40), nullable=False, index=True),
    sa.Column("record", sa.LargeBinary, nullable=False),
)
"""What a version of an app needs of its functions, live or not."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(FunctionRecord)
_insert = insert(functions)
_upsert: sa.Executable = _insert.on_conflict_do_update(
    index_elements=["function_id"], set_={"record": _insert.excluded.record}
)
_deletes: tuple[sa.Executable, ...] = tuple(
    sa.delete(table).where(table.c.app_id == sa.bindparam("app"))
    for table in (classes, functions, versions)
)
_insert_version: sa.Executable = insert(versions).on_conflict_do_nothing()
_insert_class: sa.Executable = insert(classes).on_conflict_do_nothing()


class FunctionStore:
    """Functions are written through and read at start; look-ups are the service's own memory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(self, record: FunctionRecord) -> None:
        await self._database.append(*self.saved([record]))

    @staticmethod
    def saved(records: Sequence[FunctionRecord]) -> Step:
        """The step that makes these the live records."""
        rows = [
            {
                "function_id": record.function_id,
                "app_id": record.app_id,
                "tag": record.tag,
                "record": _encoder.encode(record),
            }
            for record in records
        ]
        return (_upsert, rows)

    @staticmethod
    def kept(records: Sequence[FunctionRecord]) -> Step:
        """The step that keeps these for versions that are not live (any more, or yet)."""
        rows = [
            {
                "function_id": record.function_id,
                "definition_id": record.definition_id,
                "app_id": record.app_id,
                "record": _encoder.encode(record),
            }
            for record in records
        ]
        return (_insert_version, rows)

    async def keep(self, record: FunctionRecord) -> None:
        await self._database.append(*self.kept([record]))

    async def version(self, function_id: str, definition_id: str) -> FunctionRecord | None:
        """A record that was kept."""
        query = (
            sa.select(versions.c.record)
            .where(versions.c.function_id == function_id)
            .where(versions.c.definition_id == definition_id)
        )
        row = await self._database.read(lambda connection: connection.execute(query).scalar())
        return None if row is None else _decoder.decode(row)

    async def prune_versions(self, app_id: str, needed: Set[tuple[str, str]]) -> None:
        """Forget what was kept for the app, but for these pairs of function and definition."""
        key = (versions.c.function_id, versions.c.definition_id)

        def write(connection: sa.Connection) -> None:
            present = connection.execute(sa.select(*key).where(versions.c.app_id == app_id))
            for function_id, definition_id in list(present):
                if (function_id, definition_id) not in needed:
                    connection.execute(
                        sa.delete(versions)
                        .where(versions.c.function_id == function_id)
                        .where(versions.c.definition_id == definition_id)
                    )

        await self._database.write(write)

    async def save_class(self, record: ClassRecord) -> None:
        await self._database.append(
            _insert_class, [{"class_id": record.class_id, "app_id": record.app_id}]
        )

    async def delete_of_app(self, app_id: str) -> None:
        await asyncio.gather(
            *(self._database.append(statement, [{"app": app_id}]) for statement in _deletes)
        )

    async def load(self) -> tuple[list[FunctionRecord], list[ClassRecord]]:
        def query(connection: sa.Connection) -> tuple[list[FunctionRecord], list[ClassRecord]]:
            rows = connection.execute(sa.select(functions.c.record)).scalars()
            class_rows = connection.execute(sa.select(classes.c.class_id, classes.c.app_id))
            return (
                [_decoder.decode(row) for row in rows],
                [ClassRecord(str(a), str(b)) for a, b in class_rows],
            )

        return await self._database.read(query)
