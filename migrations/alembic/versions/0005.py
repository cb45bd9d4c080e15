"""Time: see 0005_time.sql."""

from alembic import op

from scheduler_service.store.migrations import apply_file

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    apply_file(op.get_bind(), "0005_time.sql")
