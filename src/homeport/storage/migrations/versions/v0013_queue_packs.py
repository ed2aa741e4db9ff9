# pyright: basic
"""Items of Queues: what was put together is one row."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def _number() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Each item that there is becomes a row of its own."""
    packs = op.create_table(
        "queue_packs",
        sa.Column("first", _number(), nullable=False, autoincrement=False),
        sa.Column("last", _number(), nullable=False),
        sa.Column("queue_id", sa.String(32), nullable=False),
        sa.Column("partition", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("taken", sa.Integer(), nullable=False),
        sa.Column("sizes", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("items", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("first"),
    )
    op.create_table(
        "queue_taken",
        sa.Column("first", _number(), nullable=False, autoincrement=False),
        sa.Column("last", _number(), nullable=False),
        sa.PrimaryKeyConstraint("first"),
    )
    columns = ["seq", "queue_id", "partition", "expires_at", "taken", "size", "value"]
    old = sa.table("queue_items", *map(sa.column, columns)).c
    rows = sa.select(
        old.seq,
        old.seq,
        old.queue_id,
        old.partition,
        old.expires_at,
        old.taken,
        sa.literal(b"", sa.LargeBinary()),
        old.size,
        old.value,
    )
    op.execute(packs.insert().from_select([column.name for column in packs.columns], rows))
    op.drop_index("queue_items_by_queue", "queue_items")
    op.drop_table("queue_items")
    op.create_index("queue_packs_by_queue", "queue_packs", ["queue_id"])
