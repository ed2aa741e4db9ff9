# pyright: basic
"""Memory snapshots of sandboxes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table of memory snapshots."""
    op.create_table(
        "sandbox_memory_snapshots",
        sa.Column("snapshot_id", sa.String(length=40), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("snapshot_id"),
    )
