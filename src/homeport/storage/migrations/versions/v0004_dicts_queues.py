# pyright: basic
"""Dicts, Queues and the record of operations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _number() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "operations",
        sa.Column("id", _number(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "dict_entries",
        sa.Column("dict_id", sa.String(32), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("file", sa.String(64), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("dict_id", "key"),
    )
    op.create_index("dict_entries_by_use", "dict_entries", ["dict_id", "used_at", "size"])
    op.create_index(
        "dict_entries_in_files",
        "dict_entries",
        ["file"],
        sqlite_where=sa.text("file != ''"),
        postgresql_where=sa.text("file != ''"),
    )
    op.create_table(
        "queue_items",
        sa.Column("seq", _number(), nullable=False),
        sa.Column("queue_id", sa.String(32), nullable=False),
        sa.Column("partition", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("taken", sa.Integer(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("queue_items_by_queue", "queue_items", ["queue_id"])
