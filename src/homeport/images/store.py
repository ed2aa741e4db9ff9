"""The table of images and their build logs."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from homeport.images.model import ImageRecord, ImageStatus, Recipe
from homeport.link.messages import ImageConfig, LogEntry
from homeport.storage.database import Database, metadata

images = sa.Table(
    "images",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("recipe", sa.LargeBinary, nullable=False),
    sa.Column("secret_ids", sa.LargeBinary, nullable=False),
    sa.Column("app_id", sa.String, nullable=False),
    sa.Column("builder_version", sa.String, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("build_id", sa.String, nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("finished_at", sa.Double, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("layers", sa.LargeBinary, nullable=False),
    sa.Column("config", sa.LargeBinary, nullable=False),
    sa.Column("python_version_info", sa.Text, nullable=False),
    sa.Column("libc_version", sa.Text, nullable=False),
)

image_build_logs = sa.Table(
    "image_build_logs",
    metadata,
    sa.Column("image_id", sa.String, primary_key=True),
    sa.Column("build_id", sa.String, nullable=False),
    sa.Column("entries", sa.LargeBinary, nullable=False),
)

_encode: Final = msgspec.msgpack.encode


class ImageStore:
    """Queries on images."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> list[ImageRecord]:
        """Every image."""
        rows = await self._database.read(lambda c: c.execute(sa.select(images)).mappings().all())
        return [_record(row) for row in rows]

    async def save(self, record: ImageRecord) -> None:
        """Insert or replace an image."""
        row = _row(record)
        statement = insert(images).values(row)
        statement = statement.on_conflict_do_update(
            index_elements=["id"], set_={name: row[name] for name in row if name != "id"}
        )
        await self._database.write(lambda c: c.execute(statement) and None)

    async def save_log(self, image_id: str, build_id: str, entries: list[LogEntry]) -> None:
        """Keep the log of an image's last build."""
        row = {"image_id": image_id, "build_id": build_id, "entries": _encode(entries)}
        statement = insert(image_build_logs).values(row)
        statement = statement.on_conflict_do_update(index_elements=["image_id"], set_=row)
        await self._database.write(lambda c: c.execute(statement) and None)

    async def log(self, image_id: str) -> list[LogEntry]:
        """The log of an image's last build; empty if there is none."""
        query = sa.select(image_build_logs.c.entries).where(image_build_logs.c.image_id == image_id)
        data = await self._database.read(lambda c: c.execute(query).scalar())
        return msgspec.msgpack.decode(data, type=list[LogEntry]) if data else []


def _row(record: ImageRecord) -> dict[str, Any]:
    return {
        "id": record.image_id,
        "recipe": _encode(record.recipe),
        "secret_ids": _encode(record.secret_ids),
        "app_id": record.app_id,
        "builder_version": record.builder_version,
        "status": int(record.status),
        "created_at": record.created_at,
        "build_id": record.build_id,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "error": record.error,
        "layers": _encode(record.layers),
        "config": _encode(record.config),
        "python_version_info": record.python_version_info,
        "libc_version": record.libc_version,
    }


def _record(row: Any) -> ImageRecord:
    return ImageRecord(
        image_id=row["id"],
        recipe=msgspec.msgpack.decode(row["recipe"], type=Recipe),
        secret_ids=msgspec.msgpack.decode(row["secret_ids"], type=list[str]),
        app_id=row["app_id"],
        status=ImageStatus(row["status"]),
        created_at=row["created_at"],
        build_id=row["build_id"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        error=row["error"],
        layers=msgspec.msgpack.decode(row["layers"], type=list[str]),
        config=msgspec.msgpack.decode(row["config"], type=ImageConfig),
        python_version_info=row["python_version_info"],
        libc_version=row["libc_version"],
    )
