"""The tables of the workspace: its settings (a name and a text each) and its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.storage.database import metadata
from homeport.workspace.model import Token

workspace_settings = sa.Table(
    "workspace_settings",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("token_id", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("secret_hash", sa.LargeBinary(32), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("disabled_at", sa.Float, nullable=True),
    sa.Column("last_used_at", sa.Float, nullable=True),
)

NOTE_TOKEN_USE = (
    sa.update(tokens)
    .where(tokens.c.token_id == sa.bindparam("id"))
    .values(last_used_at=sa.bindparam("used_at"))
)
"""For ``Database.append``, with rows of ``id`` and ``used_at``."""


def load_settings(connection: Connection) -> dict[str, str]:
    """All settings."""
    rows = connection.execute(sa.select(workspace_settings))
    return {row.name: row.value for row in rows}


def put_setting(connection: Connection, name: str, value: str) -> None:
    """Set one."""
    table = workspace_settings
    changed = connection.execute(
        sa.update(table).where(table.c.name == name).values(value=value)
    ).rowcount
    if not changed:
        connection.execute(sa.insert(table).values(name=name, value=value))


def load_tokens(connection: Connection) -> Sequence[Token]:
    """All tokens."""
    return [Token(**row) for row in connection.execute(sa.select(tokens)).mappings()]


def insert_token(connection: Connection, token: Token) -> None:
    """Add one."""
    connection.execute(sa.insert(tokens).values(asdict(token)))


def delete_token(connection: Connection, token_id: str) -> None:
    """Remove one."""
    connection.execute(sa.delete(tokens).where(tokens.c.token_id == token_id))


def set_tokens_disabled(
    connection: Connection, token_ids: Sequence[str], disabled_at: float | None
) -> None:
    """Disable (with the time) or enable (``None``) these."""
    connection.execute(
        sa.update(tokens).where(tokens.c.token_id.in_(token_ids)).values(disabled_at=disabled_at)
    )
