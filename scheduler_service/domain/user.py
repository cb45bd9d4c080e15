"""What a deployment says of the subjects of JWTs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from scheduler_service.domain.fields import Violations
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


def subject_problem(subject: str) -> str | None:
    """Why a text can be nobody's `sub`, as a sentence goes on; None if it can. What is not seen in a list or in the
    audit trail would let one person look like another."""
    if not 0 < len(subject) <= MAX_SUBJECT_LENGTH:
        return f"must be a text of 1 to {MAX_SUBJECT_LENGTH} characters"
    if not subject.isprintable() or subject != subject.strip():
        return "has characters that cannot be seen, such as a line break, a change of direction, or a blank at its end"
    return None


def check_user(user: User, wrong: Violations) -> None:
    """Whether it can be one: an admin has no tenant, a user has one."""
    if (problem := subject_problem(user.subject)) is not None:
        wrong.add("subject", f"it {problem}; write the `sub` of the person's JWTs")
    if user.role is Role.USER:
        check_tenant(user.tenant, "tenant", wrong)
    elif user.tenant:
        wrong.add("tenant", "an admin has none: it sees everything; leave the tenant out, or make it a user")
