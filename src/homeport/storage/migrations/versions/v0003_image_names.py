# pyright: basic
"""Names of images, and what a build needs beside its recipe."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from homeport.storage.dialects import BytesDefault

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "images",
        sa.Column(
            "inputs",
            sa.LargeBinary(),
            server_default=BytesDefault(b"\x93\xa0\xa0\xa0"),
            nullable=False,
        ),
    )
    op.create_table(
        "image_names",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("revision_id", sa.String(), nullable=False),
        sa.Column("environment_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("image_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("published_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("revision_id"),
    )
    op.create_index("image_names_by_name", "image_names", ["environment_id", "name", "id"])


def downgrade() -> None:
    op.drop_table("image_names")
    op.drop_column("images", "inputs")
