# pyright: basic
"""The history is compared with what ended, entry by entry: numbers of flushes tell nothing more."""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Drop the numbers."""
    op.drop_index("ix_history_packs_flush", "history_packs")
    op.drop_column("history_packs", "flush")
