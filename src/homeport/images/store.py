"""The table of images and their build logs."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.images.model import BuildInputs, ImageRecord, ImageStatus, NamedImage, Recipe
from homeport.link.messages import ImageConfig, LogEntry
from homeport.storage.database import Database, Step, metadata
from homeport.storage.dialects import BytesDefault, insert
from homeport.storage.operations import OperationLog

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
    sa.Column(
        "inputs", sa.LargeBinary, nullable=False, server_default=BytesDefault(b"\x93\xa0\xa0\xa0")
    ),
)

image_build_logs = sa.Table(
    "image_build_logs",
    metadata,
    sa.Column("image_id", sa.String, primary_key=True),
    sa.Column("build_id", sa.String, nullable=False),
    sa.Column("entries", sa.LargeBinary, nullable=False),
)

image_names = sa.Table(
    "image_names",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("revision_id", sa.String, nullable=False, unique=True),
    sa.Column("environment_id", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("image_id", sa.String, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("published_by", sa.String, nullable=False),
    sa.Index("image_names_by_name", "environment_id", "name", "id"),
)
"""Every publication of a name; the newest is what the name means."""

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

    async def delete(self, image_id: str, recorded: Step) -> None:
        """Forget an image and its log; ``recorded`` is the record of the operation."""

        def write(connection: Connection) -> None:
            connection.execute(sa.delete(images).where(images.c.id == image_id))
            connection.execute(
                sa.delete(image_build_logs).where(image_build_logs.c.image_id == image_id)
            )
            OperationLog.write(connection, recorded)

        await self._database.write(write)


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
        "inputs": _encode(record.inputs),
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
        inputs=msgspec.msgpack.decode(row["inputs"], type=BuildInputs),
    )


class ImageNameStore:
    """Queries on names of images."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, named: NamedImage) -> None:
        """Record a publication, once."""
        row = msgspec.structs.asdict(named)
        del row["position"]
        statement = (
            insert(image_names).values(row).on_conflict_do_nothing(index_elements=["revision_id"])
        )
        await self._database.write(lambda c: c.execute(statement) and None)

    async def revisions(
        self, environment_id: str, name: str, before: int | None, limit: int
    ) -> list[NamedImage]:
        """Publications of a name, newest first, those with a position below ``before``."""
        columns = image_names.c
        query = (
            sa.select(image_names)
            .where(columns.environment_id == environment_id, columns.name == name)
            .order_by(columns.id.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(columns.id < before)
        return await self._database.read(lambda c: [NamedImage(*row) for row in c.execute(query)])

    async def names(
        self, environment_id: str, prefix: str, image_id: str, after: str, limit: int
    ) -> list[tuple[NamedImage, float]]:
        """What each name means now and when it was first published, by name."""
        columns = image_names.c
        newest = (
            sa.select(
                columns.name,
                sa.func.max(columns.id).label("id"),
                sa.func.min(columns.created_at).label("first"),
            )
            .where(columns.environment_id == environment_id, columns.name > after)
            .where(columns.name.startswith(prefix, autoescape=True))
            .group_by(columns.name)
            .subquery()
        )
        query = (
            sa.select(image_names, newest.c.first)
            .join(newest, newest.c.id == columns.id)
            .order_by(columns.name)
            .limit(limit)
        )
        if image_id:
            query = query.where(columns.image_id == image_id)
        return await self._database.read(
            lambda c: [(NamedImage(*row[:-1]), float(row[-1])) for row in c.execute(query)]
        )

    async def current(self) -> list[NamedImage]:
        """What each name of each environment means."""
        columns = image_names.c
        newest = sa.select(sa.func.max(columns.id)).group_by(columns.environment_id, columns.name)
        query = sa.select(image_names).where(columns.id.in_(newest)).order_by(columns.name)
        return await self._database.read(lambda c: [NamedImage(*row) for row in c.execute(query)])

    async def delete(self, environment_id: str, name: str, recorded: Step) -> None:
        """Forget a name; ``recorded`` is the record of the operation."""
        await self._delete(
            image_names.c.environment_id == environment_id,
            image_names.c.name == name,
            recorded=recorded,
        )

    async def delete_image(self, image_id: str) -> None:
        await self._delete(image_names.c.image_id == image_id)

    async def delete_environment(self, environment_id: str) -> None:
        await self._delete(image_names.c.environment_id == environment_id)

    async def _delete(
        self, *conditions: sa.ColumnElement[bool], recorded: Step | None = None
    ) -> None:
        statement = sa.delete(image_names).where(*conditions)

        def write(connection: Connection) -> None:
            connection.execute(statement)
            if recorded is not None:
                OperationLog.write(connection, recorded)

        await self._database.write(write)
