"""The table of environments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.environments.model import Environment
from homeport.storage.database import metadata

environments = sa.Table(
    "environments",
    metadata,
    sa.Column("environment_id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("web_suffix", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("is_default", sa.Boolean, nullable=False),
    sa.Column("image_builder_version", sa.String(16), nullable=False),
)


def load(connection: Connection) -> Sequence[Environment]:
    """All environments, oldest first."""
    rows = connection.execute(sa.select(environments).order_by(environments.c.created_at))
    return [Environment(**row) for row in rows.mappings()]


def insert(connection: Connection, environment: Environment) -> None:
    """Add one."""
    connection.execute(sa.insert(environments).values(asdict(environment)))


def update(connection: Connection, environment: Environment) -> None:
    """Replace the record of that id."""
    connection.execute(
        sa.update(environments)
        .where(environments.c.environment_id == environment.environment_id)
        .values(asdict(environment))
    )


def set_default(connection: Connection, environment_id: str) -> None:
    """Make that one, and no other, the default."""
    connection.execute(
        sa.update(environments).values(is_default=environments.c.environment_id == environment_id)
    )


def delete(connection: Connection, environment_id: str) -> None:
    """Remove one."""
    connection.execute(
        sa.delete(environments).where(environments.c.environment_id == environment_id)
    )
