"""Answers that were given to mutations with a `request_id`."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from scheduler_service.store.database import Transaction


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """What was asked (its digest) and answered."""

    digest: bytes
    response: bytes


async def lock_request(tx: Transaction, request_id: str) -> None:
    """Makes others of the same principal and id wait until this transaction has ended."""
    await tx.connection.execute(
        text("select pg_advisory_xact_lock(hashtextextended(:request_id, hashtextextended(:principal, 0)))"),
        {"request_id": _kept_as(tx, request_id), "principal": f"carillon.requests {tx.principal}"},
    )


async def find_request(tx: Transaction, request_id: str) -> AnsweredRequest | None:
    """What the caller was answered before under this id."""
    row = (
        await tx.connection.execute(
            text(
                "select digest, response from carillon.requests"
                " where principal = :principal and request_id = :request_id"
            ),
            {"principal": str(tx.principal), "request_id": _kept_as(tx, request_id)},
        )
    ).one_or_none()
    return AnsweredRequest(bytes(row.digest), bytes(row.response)) if row is not None else None


async def keep_request(tx: Transaction, request_id: str, answered: AnsweredRequest) -> None:
    """Records an answer. The engine forgets it after 24 h."""
    await tx.connection.execute(
        text(
            "insert into carillon.requests (principal, request_id, digest, response, created_at)"
            " values (:principal, :request_id, :digest, :response, :now)"
        ),
        {
            "principal": str(tx.principal),
            "request_id": _kept_as(tx, request_id),
            "digest": answered.digest,
            "response": answered.response,
            "now": tx.now,
        },
    )


def _kept_as(tx: Transaction, request_id: str) -> str:
    """A user may have JWTs of several tenants: each has ids of its own. No tenant's name has a slash."""
    tenant = tx.principal.tenant
    return f"{tenant}/{request_id}" if tenant else request_id
