"""`python -m scheduler_service users`: what the subjects of JWTs may do, where JWTs do not say it themselves."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from scheduler_service.commands.operators import on_database, operator, printable, said
from scheduler_service.domain.user import Role, User
from scheduler_service.usecases import users

cli = typer.Typer(
    no_args_is_help=True,
    help="Who is an admin and who a tenant's user, by the `sub` of JWTs: set, list, remove. It counts with"
    " CARILLON_JWT_ROLES_FROM=users; every replica follows within 5 seconds.",
)

_Subject = Annotated[str, typer.Argument(help="The `sub` of the person's JWTs.", show_default=False)]


@cli.command("set")
def put(
    subject: _Subject,
    role: Annotated[Role, typer.Option(help="An admin sees everything, a user its tenant.", show_default=False)],
    tenant: Annotated[str, typer.Option(help="A user's tenant.", show_default=False)] = "",
) -> None:
    """Makes somebody an admin, or a user of a tenant, whatever it was before."""
    user = User(subject, role, tenant)
    after = on_database(lambda database: users.set_user(database, operator("users set"), user))
    _say(f"{after.subject} is {_described(after)}")


@cli.command("list")
def show(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array instead of a table.")] = False,
) -> None:
    """Shows everybody, by subject."""
    listed = on_database(lambda database: users.list_users(database, operator("users list")))
    if as_json:
        typer.echo(json.dumps([_as_json(user) for user in listed], indent=2))
    else:
        Console(highlight=False, soft_wrap=True, markup=False).print(_table(listed))


@cli.command()
def remove(subject: _Subject) -> None:
    """Takes somebody's role or tenant away: it sees nothing any more, and its open streams end."""
    on_database(lambda database: users.remove_user(database, operator("users remove"), subject))
    _say(f"{subject} is neither an admin nor a tenant's user any more")


def _say(sentence: str) -> None:
    said.print(f"{printable(sentence)}.", markup=False)


def _described(user: User) -> str:
    return "an admin" if user.role is Role.ADMIN else f"a user of tenant {user.tenant}"


def _table(listed: list[User]) -> Table:
    table = Table("subject", "role", "tenant", "since", "by", box=None)
    for user in listed:
        cells = (user.subject, user.role.value, user.tenant, _instant(user.updated_at), user.updated_by)
        table.add_row(*map(printable, cells))
    return table


def _instant(instant: datetime | None) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%MZ") if instant else ""


def _as_json(user: User) -> dict[str, object]:
    return {
        "subject": user.subject,
        "role": user.role.value,
        "tenant": user.tenant or None,
        "created_at": user.created_at.astimezone(UTC).isoformat() if user.created_at else None,
        "updated_at": user.updated_at.astimezone(UTC).isoformat() if user.updated_at else None,
        "updated_by": user.updated_by,
    }
