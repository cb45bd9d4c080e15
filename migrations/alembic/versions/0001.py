"""Foundation: see 0001_foundation.sql."""

from alembic import op

from scheduler_service.store.migrations import apply_file

revision = "0001"
down_revision = None


def upgrade() -> None:
    apply_file(op.get_bind(), "0001_foundation.sql")
