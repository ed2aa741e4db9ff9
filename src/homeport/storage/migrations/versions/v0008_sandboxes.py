# pyright: basic
"""Sandboxes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table of sandboxes."""
    op.create_table(
        "sandboxes",
        sa.Column("sandbox_id", sa.String(40), nullable=False),
        sa.Column("task_id", sa.String(40), nullable=False),
        sa.Column("app_id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sandbox_id"),
    )
    op.create_index(op.f("ix_sandboxes_task_id"), "sandboxes", ["task_id"])
    op.create_index(op.f("ix_sandboxes_finished_at"), "sandboxes", ["finished_at"])
    op.create_index("sandboxes_by_app", "sandboxes", ["app_id", "created_at"])
