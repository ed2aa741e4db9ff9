"""The tables of functions and classes."""

from __future__ import annotations

import asyncio

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from homeport.functions.model import ClassRecord, FunctionRecord
from homeport.storage.database import Database, metadata

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

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(FunctionRecord)
_insert = insert(functions)
_upsert: sa.Executable = _insert.on_conflict_do_update(
    index_elements=["function_id"], set_={"record": _insert.excluded.record}
)
_deletes: tuple[sa.Executable, ...] = tuple(
    sa.delete(table).where(table.c.app_id == sa.bindparam("app")) for table in (classes, functions)
)
_insert_class: sa.Executable = insert(classes).on_conflict_do_nothing()


class FunctionStore:
    """Functions are written through and read at start; look-ups are the service's own memory."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(self, record: FunctionRecord) -> None:
        row = {
            "function_id": record.function_id,
            "app_id": record.app_id,
            "tag": record.tag,
            "record": _encoder.encode(record),
        }
        await self._database.append(_upsert, [row])

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
