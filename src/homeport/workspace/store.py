"""The table of workspace settings: a name and a text each."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.storage.database import metadata

workspace_settings = sa.Table(
    "workspace_settings",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)


def load(connection: Connection) -> dict[str, str]:
    """All settings."""
    rows = connection.execute(sa.select(workspace_settings))
    return {row.name: row.value for row in rows}


def put(connection: Connection, name: str, value: str) -> None:
    """Set one."""
    table = workspace_settings
    changed = connection.execute(
        sa.update(table).where(table.c.name == name).values(value=value)
    ).rowcount
    if not changed:
        connection.execute(sa.insert(table).values(name=name, value=value))
