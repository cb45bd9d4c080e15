"""What a deployment says of the subjects of JWTs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from scheduler_service.domain.fields import Violations, check_text
from scheduler_service.domain.names import check_tenant

MAX_SUBJECT_LENGTH = 255


class Role(StrEnum):
    """What a person may be."""

    ADMIN = "admin"
    USER = "user"


@dataclass(frozen=True, slots=True)
class User:
    """A person, by the `sub` of its JWTs. `tenant` is a user's; an admin has none. The times and `updated_by` are
    those of its row, None and empty where a JWT said it."""

    subject: str
    role: Role
    tenant: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    updated_by: str = ""


def check_user(user: User, wrong: Violations) -> None:
    """Whether it can be one: an admin has no tenant, a user has one."""
    if not user.subject:
        wrong.add("subject", "it is missing; write the `sub` of the person's JWTs")
    check_text(user.subject, "subject", wrong, at_most=MAX_SUBJECT_LENGTH)
    if user.role is Role.USER:
        check_tenant(user.tenant, "tenant", wrong)
    elif user.tenant:
        wrong.add("tenant", "an admin has none: it sees everything; leave the tenant out, or make it a user")
