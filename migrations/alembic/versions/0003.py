"""Runs: see 0003_runs.sql."""

from alembic import op

from scheduler_service.store.migrations import apply_file

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    apply_file(op.get_bind(), "0003_runs.sql")
