"""Definitions: see 0002_definitions.sql."""

from alembic import op

from scheduler_service.store.migrations import apply_file

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    apply_file(op.get_bind(), "0002_definitions.sql")
