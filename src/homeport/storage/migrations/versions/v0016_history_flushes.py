# pyright: basic
"""Which packs of the history were written last: clocks are set back, numbers are not."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Number the flushes; what there is counts as one."""
    op.add_column(
        "history_packs",
        sa.Column("flush", sa.BigInteger(), nullable=False, server_default="0"),
    )
    op.create_index("ix_history_packs_flush", "history_packs", ["flush"])
