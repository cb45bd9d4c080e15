"""Reliability: see 0008_reliability.sql."""

from alembic import op

from scheduler_service.store.migrations import apply_file

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    apply_file(op.get_bind(), "0008_reliability.sql")
