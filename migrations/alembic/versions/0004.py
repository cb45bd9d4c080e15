"""Access: see 0004_access.sql."""

from alembic import op

from scheduler_service.store.migrations import apply_file

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    apply_file(op.get_bind(), "0004_access.sql")
