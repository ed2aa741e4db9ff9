# pyright: basic
"""Persistent sandboxes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table of persistent sandboxes."""
    op.create_table(
        "persistent_sandboxes",
        sa.Column("persistent_id", sa.String(length=40), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("persistent_id"),
    )
