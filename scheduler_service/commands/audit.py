"""`python -m scheduler_service audit`: the audit trail, without a scheduler."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from scheduler_service.commands.operators import on_database, operator, printable, said
from scheduler_service.domain.audit import Event, EventFilter
from scheduler_service.domain.audit_chain import EMPTY, Head
from scheduler_service.store.database import Database
from scheduler_service.store.pages import MAX_SIZE
from scheduler_service.usecases import audit
from scheduler_service.usecases.audit import Verdict

cli = typer.Typer(no_args_is_help=True, help="The audit trail: who changed what, and that nobody changed the trail.")


_COLUMNS = ("principal", "action", "resource", "request")
_WIDE = 10_000


def _head(text: str) -> Head:
    """Reads `position:hash`, as `audit head` prints it."""
    position, colon, written = text.strip().partition(":")
    try:
        head = Head(int(position), bytes.fromhex(written))
    except ValueError:
        head, colon = EMPTY, ""
    if not colon or not head.fits_together:
        raise typer.BadParameter(f"{text!r} is no head; write position:hash, as `audit head` printed it")
    return head


def _instant(text: str) -> datetime:
    """Reads ISO 8601; without an offset it is UTC."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time; write one such as 2026-03-01T12:00:00Z") from None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


@cli.command()
def head() -> None:
    """Prints the end of the chain as one line, `position:hash`. Keep it outside the database: who removes the newest
    events is only found by whoever knows a head from before."""
    found = on_database(lambda database: audit.get_audit_head(database, operator("audit head")))
    typer.echo(_written(found))


@cli.command()
def verify(
    known: Annotated[
        list[Head] | None,
        typer.Option("--head", parser=_head, help="A head that was kept, `position:hash`; may be given again."),
    ] = None,
) -> None:
    """Computes the whole chain again, and prints a verdict: `holds`, or `broken` with the first link that does not
    hold. Ends with 1 if it is broken."""
    verdict = on_database(lambda database: _verified(database, known or []))
    waiting = _waiting(verdict.unsealed)
    if verdict.broken is None:
        typer.echo(f"holds: {_written(verdict.verified)}{waiting}")
        return
    broken = verdict.broken
    where = f"position {broken.position}" if broken.position else f"event {broken.event_id}"
    typer.echo(f"broken at {where}: {broken.problem}: {broken.description}; before it, the chain holds{waiting}")
    raise typer.Exit(1)


def _waiting(unsealed: int) -> str:
    if unsealed == 0:
        return ""
    return "; 1 event waits for its seal" if unsealed == 1 else f"; {unsealed:,} events wait for their seal"


async def _verified(database: Database, known: list[Head]) -> Verdict:
    caller, after = operator("audit verify"), EMPTY
    while True:
        verdict = await audit.verify_audit_trail(database, caller, known, after)
        if verdict.complete:
            return verdict
        after = verdict.verified
        said.print(f"{after.position:,} events hold so far")


@cli.command("list")
def show(
    principal: Annotated[str, typer.Option(help="Of whom, such as `admin:alice`; `engine:` is all of that kind.")] = "",
    action: Annotated[str, typer.Option(help="Such as `PauseJob`, or `tokens create`.")] = "",
    resource: Annotated[str, typer.Option(help="Of this resource, and what lies below it.")] = "",
    tenant: Annotated[str, typer.Option(help="Of this tenant's things.")] = "",
    request_id: Annotated[str, typer.Option(help="Of one call.")] = "",
    since: Annotated[datetime | None, typer.Option(parser=_instant, help="At or after.", show_default=False)] = None,
    until: Annotated[datetime | None, typer.Option(parser=_instant, help="Before.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="All that is known of each, one JSON object a line.")] = False,
) -> None:
    """Prints events, the newest first."""
    wanted = EventFilter(principal, action, resource, tenant, request_id, since, until)
    events = on_database(lambda database: _listed(database, wanted, limit))
    if not as_json:
        # What is piped is not to be folded.
        width = None if sys.stdout.isatty() else _WIDE
        Console(highlight=False, markup=False, emoji=False, width=width).print(_table(events))
        return
    for event in events:
        typer.echo(json.dumps(_as_json(event), ensure_ascii=False))


async def _listed(database: Database, wanted: EventFilter, limit: int) -> list[Event]:
    caller, found, token = operator("audit list"), list[Event](), ""
    while len(found) < limit:
        size = min(limit - len(found), MAX_SIZE)
        page, token = await audit.list_audit_events(database, caller, wanted, size=size, token=token)
        found += page
        if not token:
            break
    return found


def _table(events: list[Event]) -> Table:
    table = Table("time", *(Column(name, overflow="fold") for name in _COLUMNS), box=None)
    for event in events:
        at = f"{event.event_at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
        cells = (event.principal, event.action, event.resource, event.request_id)
        table.add_row(at, *map(printable, cells))
    return table


def _as_json(event: Event) -> dict[str, object]:
    return {
        "event_id": event.event_id,
        "time": event.event_at.astimezone(UTC).isoformat(),
        "principal": event.principal,
        "action": event.action,
        "resource": event.resource,
        "tenant": event.tenant,
        "before": event.before,
        "after": event.after,
        "request_id": event.request_id,
        "address": event.address,
        "position": event.position,
    }


def _written(found: Head) -> str:
    return f"{found.position}:{found.hash.hex()}"
