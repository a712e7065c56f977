"""Scopes, networks and parents of API keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003_keys"
down_revision = "0002_pools"


def upgrade() -> None:
    for name, default in (("actions", "[]"), ("models", "[]"), ("networks", "[]"), ("created_by", "")):
        op.add_column("api_keys", sa.Column(name, sa.Text, nullable=False, server_default=default))
    op.add_column("api_keys", sa.Column("parent", sa.Text))
