"""Run by Alembic with a connection that the registry hands in."""

from __future__ import annotations

from alembic import context

from genward.models import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
