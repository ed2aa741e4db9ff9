"""The tables of proxy tokens."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.storage.database import metadata
from homeport.storage.dialects import insert as upsert
from homeport.web.model import ProxyToken

proxy_tokens = sa.Table(
    "proxy_tokens",
    metadata,
    sa.Column("token_id", sa.String(32), primary_key=True),
    sa.Column("secret_hash", sa.LargeBinary(32), nullable=False),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("scoped", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)

token_environments = sa.Table(
    "proxy_token_environments",
    metadata,
    sa.Column("token_id", sa.String(32), primary_key=True),
    sa.Column("environment_id", sa.String(40), primary_key=True),
)


def load(connection: Connection) -> list[ProxyToken]:
    """All tokens."""
    environments: dict[str, set[str]] = {}
    for row in connection.execute(sa.select(token_environments)):
        environments.setdefault(row.token_id, set()).add(row.environment_id)
    return [
        ProxyToken(
            token_id=row.token_id,
            secret_hash=row.secret_hash,
            name=row.name,
            created_at=row.created_at,
            scoped=row.scoped,
            environments=frozenset(environments.get(row.token_id, ())),
        )
        for row in connection.execute(sa.select(proxy_tokens))
    ]


def save(connection: Connection, token: ProxyToken) -> None:
    """Create or replace one, with its environments."""
    values = {
        "token_id": token.token_id,
        "secret_hash": token.secret_hash,
        "name": token.name,
        "scoped": token.scoped,
        "created_at": token.created_at,
    }
    statement = upsert(proxy_tokens).values(values)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["token_id"], set_={"name": token.name})
    )
    _drop_environments(connection, token.token_id)
    if token.environments:
        rows = [{"token_id": token.token_id, "environment_id": eid} for eid in token.environments]
        connection.execute(sa.insert(token_environments), rows)


def delete(connection: Connection, token_id: str) -> None:
    """Remove one."""
    _drop_environments(connection, token_id)
    connection.execute(sa.delete(proxy_tokens).where(proxy_tokens.c.token_id == token_id))


def _drop_environments(connection: Connection, token_id: str) -> None:
    table = token_environments
    connection.execute(sa.delete(table).where(table.c.token_id == token_id))
