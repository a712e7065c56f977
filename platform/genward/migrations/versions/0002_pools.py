"""Pools that were raised after their release was sealed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_pools"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "pools",
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("slots", sa.BigInteger, nullable=False),
        sa.Column("statement", sa.Text, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("digest", "slots", name="pk_pools"),
    )
