"""Rows of `users`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CursorResult, Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from scheduler_service.domain.user import Role, User
from scheduler_service.store.database import Transaction

_COLUMNS = "subject, role, coalesce(tenant_id, '') as tenant, created_at, updated_at, updated_by"
_FIND = text(f"select {_COLUMNS} from carillon.users where subject = :subject")
# By name, not by row: who is nobody yet has none.
_LOCK = text("select pg_advisory_xact_lock(hashtextextended('carillon.users ' || :subject, 0))")
_LIST = text(f'select {_COLUMNS} from carillon.users order by subject collate "C"')
_PUT = text(f"""
insert into carillon.users (subject, role, tenant_id, created_at, updated_at, updated_by)
values (:subject, :role, nullif(:tenant, ''), :now, :now, :principal)
on conflict (subject) do update
set role = excluded.role, tenant_id = excluded.tenant_id, updated_at = excluded.updated_at,
    updated_by = excluded.updated_by
returning {_COLUMNS}""")
_REMOVE = text("delete from carillon.users where subject = :subject")


async def find_user(connection: AsyncConnection, subject: str) -> User | None:
    return _one(await connection.execute(_FIND, {"subject": subject}))


async def lock_user(tx: Transaction, subject: str) -> User | None:
    """Until the transaction ends, nobody else changes it, or makes it."""
    await tx.connection.execute(_LOCK, {"subject": subject})
    return _one(await tx.connection.execute(_FIND, {"subject": subject}))


async def list_users(tx: Transaction) -> list[User]:
    return [_user(row) for row in await tx.connection.execute(_LIST)]


async def put_user(tx: Transaction, user: User) -> User:
    values = {
        "subject": user.subject,
        "role": user.role.value,
        "tenant": user.tenant,
        "now": tx.now,
        "principal": str(tx.principal),
    }
    return _user((await tx.connection.execute(_PUT, values)).one())


async def remove_user(tx: Transaction, subject: str) -> None:
    await tx.connection.execute(_REMOVE, {"subject": subject})


def _one(rows: CursorResult[Any]) -> User | None:
    row = rows.one_or_none()
    return None if row is None else _user(row)


def _user(row: Row[Any]) -> User:
    return User(row.subject, Role(row.role), row.tenant, row.created_at, row.updated_at, row.updated_by)
