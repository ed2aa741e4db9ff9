"""The table of schedules."""

from __future__ import annotations

from typing import Final

import msgspec
import sqlalchemy as sa

from homeport.schedules.model import Entry, Schedule
from homeport.storage.database import Database, Step, metadata
from homeport.storage.dialects import insert

schedules = sa.Table(
    "schedules",
    metadata,
    sa.Column("function_id", sa.String(40), primary_key=True),
    sa.Column("app_id", sa.String(40), nullable=False),
    sa.Column("schedule", sa.LargeBinary, nullable=False),
    sa.Column("anchor", sa.Double, nullable=False),
    sa.Column("next_at", sa.Double, nullable=False),
    sa.Column("last_at", sa.Double, nullable=False),
)

_insert = insert(schedules)
_upsert: Final[sa.Executable] = _insert.on_conflict_do_update(
    index_elements=["function_id"],
    set_={
        name: getattr(_insert.excluded, name)
        for name in ("app_id", "schedule", "anchor", "next_at", "last_at")
    },
)
_delete: Final[sa.Executable] = sa.delete(schedules).where(
    schedules.c.function_id == sa.bindparam("id")
)
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Schedule] = msgspec.msgpack.Decoder(Schedule)  # pyright: ignore[reportArgumentType, reportAssignmentType]


class ScheduleStore:
    """Schedules are written through and read at start."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @staticmethod
    def saved(entry: Entry) -> Step:
        """The step that records ``entry``, to be committed with what it comes with."""
        row = {name: getattr(entry, name) for name in entry.__struct_fields__}
        return (_upsert, [{**row, "schedule": _encoder.encode(entry.schedule)}])

    async def change(self, saved: list[Entry], deleted: list[str]) -> None:
        """Record and delete (by function id), all in one commit."""
        steps = [self.saved(entry) for entry in saved]
        if deleted:
            steps.append((_delete, [{"id": function_id} for function_id in deleted]))
        if steps:
            await self._database.append_all(steps)

    async def load(self) -> list[Entry]:
        def query(connection: sa.Connection) -> list[Entry]:
            return [
                Entry(
                    function_id=row.function_id,
                    app_id=row.app_id,
                    schedule=_decoder.decode(row.schedule),
                    anchor=row.anchor,
                    next_at=row.next_at,
                    last_at=row.last_at,
                )
                for row in connection.execute(sa.select(schedules))
            ]

        return await self._database.read(query)
