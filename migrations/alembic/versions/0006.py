"""Security: see 0006_security.sql."""

from alembic import op

from scheduler_service.store.migrations import apply_file

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    apply_file(op.get_bind(), "0006_security.sql")
