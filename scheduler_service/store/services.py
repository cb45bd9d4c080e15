"""Rows of `services`."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from scheduler_service.store.database import Transaction


@dataclass(frozen=True, slots=True)
class Service:
    """A program that owns jobs, as it registered last."""

    service: str
    base_url: str = ""
    generation: int = 0


_LOCK = text("select service, base_url, generation from carillon.services where service = :service for no key update")
_OPEN = text(
    "insert into carillon.services (service, registered_at, registered_by) values (:service, :now, :principal)"
    " on conflict (service) do nothing"
)
_SAVE = text(
    "update carillon.services set base_url = :base_url, generation = :generation, registered_at = :now,"
    " registered_by = :principal where service = :service"
)


async def lock_service(tx: Transaction, service: str) -> Service:
    """The service's row, made if it is missing, and locked: registrations of one service follow each other."""
    while True:
        row = (await tx.connection.execute(_LOCK, {"service": service})).one_or_none()
        if row is not None:
            return Service(row.service, row.base_url, row.generation)
        await tx.connection.execute(_OPEN, {"service": service, "now": tx.now, "principal": str(tx.principal)})


async def save_service(tx: Transaction, service: Service) -> None:
    """What was registered now."""
    await tx.connection.execute(
        _SAVE,
        {
            "service": service.service,
            "base_url": service.base_url,
            "generation": service.generation,
            "now": tx.now,
            "principal": str(tx.principal),
        },
    )
