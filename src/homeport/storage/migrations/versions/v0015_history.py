# pyright: basic
"""What was called and asked for, when inputs came, and which containers failed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table of packs; let containers of an app be found by when they ended."""
    op.create_table(
        "history_packs",
        sa.Column("pack_id", sa.String(length=40), nullable=False),
        sa.Column("function_id", sa.String(length=40), nullable=False),
        sa.Column("root_id", sa.String(length=40), nullable=False),
        sa.Column("app_id", sa.String(length=40), nullable=False),
        sa.Column("entries", sa.Integer(), nullable=False),
        sa.Column("first_enqueued", sa.Double(), nullable=False),
        sa.Column("last_enqueued", sa.Double(), nullable=False),
        sa.Column("first_started", sa.Double(), nullable=False),
        sa.Column("first_finished", sa.Double(), nullable=False),
        sa.Column("last_finished", sa.Double(), nullable=False),
        sa.Column("summary", sa.LargeBinary(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("pack_id"),
    )
    op.create_index("ix_history_packs_last_finished", "history_packs", ["last_finished"])
    for name, column in (
        ("history_packs_by_function", "function_id"),
        ("history_packs_by_root", "root_id"),
        ("history_packs_by_app", "app_id"),
    ):
        op.create_index(name, "history_packs", [column, "last_finished"])
    op.add_column(
        "inputs", sa.Column("enqueued_at", sa.Double(), nullable=False, server_default="0")
    )
    op.add_column(
        "tasks", sa.Column("failed", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.drop_index("ix_tasks_app_id", "tasks")
    op.create_index("tasks_by_app", "tasks", ["app_id", "finished_at"])
