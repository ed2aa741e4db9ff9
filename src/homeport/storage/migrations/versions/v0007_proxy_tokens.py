# pyright: basic
"""Proxy tokens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables of proxy tokens."""
    op.create_table(
        "proxy_tokens",
        sa.Column("token_id", sa.String(32), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("scoped", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("token_id"),
    )
    op.create_table(
        "proxy_token_environments",
        sa.Column("token_id", sa.String(32), nullable=False),
        sa.Column("environment_id", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("token_id", "environment_id"),
    )
