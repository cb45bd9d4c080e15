"""What the deployment's operators say of the subjects of JWTs."""

from __future__ import annotations

from typing import Any

from scheduler_service.domain.access import Action, Principal, require
from scheduler_service.domain.audit import made, removed, updated
from scheduler_service.domain.errors import NotFound
from scheduler_service.domain.fields import Violations, quoted
from scheduler_service.domain.user import User, check_user
from scheduler_service.store import audit
from scheduler_service.store import users as store
from scheduler_service.store.database import Database


async def set_user(database: Database, principal: Principal, user: User) -> User:
    """Makes somebody an admin, or a user of a tenant, from now on. Errors: InvalidInput, Forbidden."""
    require(principal, Action.ADMINISTER)
    wrong = Violations()
    check_user(user, wrong)
    wrong.refuse_if_any()
    async with database.acting_for(principal) as tx:
        before = await store.lock_user(tx, user.subject)
        if before is not None and _document(before) == _document(user):
            return before
        after = await store.put_user(tx, user)
        name = _name(user.subject)
        change = (
            made(name, _document(after), tenant=after.tenant)
            if before is None
            else updated(name, _document(before), _document(after), tenant=after.tenant or before.tenant)
        )
        await audit.record(tx, [change])
    return after


async def list_users(database: Database, principal: Principal) -> list[User]:
    """All of them, by subject. Errors: Forbidden."""
    require(principal, Action.ADMINISTER)
    async with database.acting_for(principal) as tx:
        return await store.list_users(tx)


async def remove_user(database: Database, principal: Principal, subject: str) -> None:
    """The subject may do nothing from then on. Errors: NotFound, Forbidden."""
    require(principal, Action.ADMINISTER)
    async with database.acting_for(principal) as tx:
        before = await store.lock_user(tx, subject)
        if before is None:
            raise NotFound(f"there is no user {quoted(subject)}; `users list` shows them")
        await store.remove_user(tx, subject)
        await audit.record(tx, [removed(_name(subject), _document(before), tenant=before.tenant)])


def _name(subject: str) -> str:
    return f"users/{subject}"


def _document(user: User) -> dict[str, Any]:
    return {"role": user.role.value} | ({"tenant": user.tenant} if user.tenant else {})
