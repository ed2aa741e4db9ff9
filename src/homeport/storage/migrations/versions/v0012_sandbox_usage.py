# pyright: basic
"""What ended sandboxes used."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table of samples."""
    op.create_table(
        "sandbox_usage",
        sa.Column("sandbox_id", sa.String(length=40), nullable=False),
        sa.Column("samples", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sandbox_id"),
    )
