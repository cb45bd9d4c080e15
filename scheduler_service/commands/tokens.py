"""`python -m scheduler_service tokens`: service tokens, in the database."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from scheduler_service.commands.operators import duration, fail, on_database, operator, printable, said
from scheduler_service.domain.access import ANY_SERVICE, Scope
from scheduler_service.domain.credentials import ALL_SCOPES, WORK_ONLY
from scheduler_service.domain.errors import InvalidInput
from scheduler_service.domain.service_tokens import TokenRecord, parse_scopes
from scheduler_service.usecases import service_tokens as tokens

cli = typer.Typer(
    no_args_is_help=True, help="Service tokens in the database: create, list, rotate, revoke. Every replica follows."
)

_EFFECTIVE = "Every replica knows it within 5 seconds."


@cli.command()
def create(
    service: Annotated[str, typer.Argument(help="What it is bound to; `*`: a worker for every service.")],
    scopes: Annotated[
        str, typer.Option(help=f"Some of {','.join(Scope)}. Default: all; `work` for `*`.", show_default=False)
    ] = "",
    expires: Annotated[
        timedelta | None, typer.Option(parser=duration, help="After so long, such as 90d. Default: never.")
    ] = None,
    description: Annotated[str, typer.Option(help="For people, such as where it is used.")] = "",
) -> None:
    """Makes a token and prints it, once: alone on stdout, so that it can be piped to where secrets are kept."""
    default = WORK_ONLY if service == ANY_SERVICE else ALL_SCOPES
    try:
        wanted = parse_scopes(scopes) if scopes else default
    except InvalidInput as refusal:
        raise fail(refusal.message) from None
    issued = on_database(
        lambda database: tokens.create_token(
            database, operator("tokens create"), service, wanted, lifetime=expires, description=description
        )
    )
    typer.echo(issued.reveal())
    _say(f"created {_described(issued.record)}. It is shown only now. {_EFFECTIVE}")


@cli.command("list")
def show(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array instead of a table.")] = False,
) -> None:
    """Shows every token there ever was, without secrets. Those of CARILLON_SERVICE_TOKENS are not among them."""
    records = on_database(lambda database: tokens.list_tokens(database, operator("tokens list")))
    if as_json:
        typer.echo(json.dumps([_as_json(record) for record in records], indent=2))
    else:
        Console(highlight=False, soft_wrap=True, markup=False).print(_table(records))


@cli.command()
def rotate(
    token_id: Annotated[str, typer.Argument(help="The id, which is what stands before the dot.")],
    overlap: Annotated[
        timedelta, typer.Option(parser=duration, help="How long the old token counts yet, at most 30d.")
    ] = "24h",  # type: ignore[assignment]  # typer parses defaults too
) -> None:
    """Makes a token in the place of another, with its binding and scopes, and prints it, once, alone on stdout. The
    old one expires after the overlap."""
    issued, old = on_database(
        lambda database: tokens.rotate_token(database, operator("tokens rotate"), token_id, overlap)
    )
    typer.echo(issued.reveal())
    _say(
        f"created {_described(issued.record)}. It is shown only now. {old.token_id} counts until"
        f" {_instant(old.expires_at)}: put the new one in its place before. {_EFFECTIVE}"
    )


@cli.command()
def revoke(token_id: Annotated[str, typer.Argument(help="The id, which is what stands before the dot.")]) -> None:
    """Ends a token at once: calls with it are refused, and streams that it opened end."""
    on_database(lambda database: tokens.revoke_token(database, operator("tokens revoke"), token_id))
    _say(f"revoked {token_id}. {_EFFECTIVE}")


def _say(sentence: str) -> None:
    said.print(printable(sentence), markup=False)


def _described(record: TokenRecord) -> str:
    bound = "every service" if record.service == ANY_SERVICE else record.service
    until = f", until {_instant(record.expires_at)}" if record.expires_at else ""
    return f"{record.token_id} for {bound}, scopes {', '.join(sorted(record.scopes))}{until}"


def _table(records: list[TokenRecord]) -> Table:
    table = Table("id", "service", "scopes", "state", "created", "by", "expires", "last used", "description", box=None)
    # `rotate` and `revoke` ask for it: whole however narrow the terminal.
    table.columns[0].min_width = max((len(record.token_id) for record in records), default=0)
    now = datetime.now(UTC)
    for record in records:
        cells = (
            record.token_id,
            record.service,
            ",".join(sorted(record.scopes)),
            _state(record, now),
            _instant(record.created_at),
            record.created_by,
            _instant(record.expires_at) or "never",
            _instant(record.last_used_at) or "never",
            record.description,
        )
        table.add_row(*map(printable, cells))
    return table


def _state(record: TokenRecord, now: datetime) -> str:
    if record.is_revoked():
        return f"revoked {_instant(record.revoked_at)}"
    return "expired" if record.has_expired(now) else "counts"


def _instant(instant: datetime | None) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%MZ") if instant else ""


def _as_json(record: TokenRecord) -> dict[str, object]:
    instants = {
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "revoked_at": record.revoked_at,
        "last_used_at": record.last_used_at,
    }
    return {
        "id": record.token_id,
        "service": record.service,
        "scopes": sorted(record.scopes),
        "description": record.description,
        "created_by": record.created_by,
        "replaces": record.replaces or None,
        "revoked_by": record.revoked_by or None,
        **{name: instant.astimezone(UTC).isoformat() if instant else None for name, instant in instants.items()},
    }
