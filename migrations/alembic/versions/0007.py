"""Access: see 0007_access.sql."""

from alembic import op

from scheduler_service.store.migrations import apply_file

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    apply_file(op.get_bind(), "0007_access.sql")
