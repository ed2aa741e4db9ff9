"""The table of apps."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from homeport.apps.model import App
from homeport.storage.database import Database, Step, metadata
from homeport.storage.dialects import insert

apps = sa.Table(
    "apps",
    metadata,
    sa.Column("app_id", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(256), nullable=False, index=True),
    sa.Column("environment", sa.String(64), nullable=False),
    sa.Column("state", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("record", sa.LargeBinary, nullable=False),
)

_insert = insert(apps)
_upsert: sa.Executable = _insert.on_conflict_do_update(
    index_elements=["app_id"],
    set_={
        "name": _insert.excluded.name,
        "state": _insert.excluded.state,
        "record": _insert.excluded.record,
    },
)
_delete: sa.Executable = sa.delete(apps).where(apps.c.app_id == sa.bindparam("id"))
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(App)


class AppStore:
    """Apps are written through and read at start."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(self, app: App, beside: Sequence[Step] = ()) -> None:
        """Record the app, and ``beside`` in the same commit."""
        row = {
            "app_id": app.app_id,
            "name": app.name,
            "environment": app.environment,
            "state": int(app.state),
            "created_at": app.created_at,
            "record": _encoder.encode(app),
        }
        await self._database.append_all([(_upsert, [row]), *beside])

    async def delete(self, app_id: str) -> None:
        await self._database.append(_delete, [{"id": app_id}])

    async def load(self) -> list[App]:
        def query(connection: sa.Connection) -> list[App]:
            rows = connection.execute(sa.select(apps.c.record).order_by(apps.c.created_at))
            return [_decoder.decode(row) for row in rows.scalars()]

        return await self._database.read(query)
