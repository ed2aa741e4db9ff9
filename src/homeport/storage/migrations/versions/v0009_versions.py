# pyright: basic
"""Definitions of the versions of deployed apps; which of them a container is of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table of definitions; say of tasks which edition they are of."""
    op.create_table(
        "function_versions",
        sa.Column("function_id", sa.String(length=40), nullable=False),
        sa.Column("definition_id", sa.String(length=40), nullable=False),
        sa.Column("app_id", sa.String(length=40), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("function_id", "definition_id"),
    )
    op.create_index(op.f("ix_function_versions_app_id"), "function_versions", ["app_id"])
    op.add_column("tasks", sa.Column("edition", sa.String(), nullable=False, server_default=""))
