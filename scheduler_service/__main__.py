"""`python -m scheduler_service`: serves, or does one of an operator's chores."""

from __future__ import annotations

import asyncio
import os
import sys

import typer
from rich.console import Console

from operations import logs, memory
from operations.probes import PortTaken
from operations.signals import stopping_event
from scheduler_service.app import App
from scheduler_service.commands import audit, tokens, users
from scheduler_service.settings import Settings, SettingsError, read_settings
from scheduler_service.store.errors import MigrationRefused, translate
from scheduler_service.store.migrations import expected_version
from scheduler_service.store.migrations import migrate as migrate_schema

cli = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False)
cli.add_typer(audit.cli, name="audit")
cli.add_typer(tokens.cli, name="tokens")
cli.add_typer(users.cli, name="users")
_errors = Console(stderr=True, highlight=False)


def _fail(sentence: str) -> typer.Exit:
    _errors.print(sentence, style="red", markup=False, soft_wrap=True)
    return typer.Exit(2)


def _settings() -> Settings:
    try:
        return read_settings()
    except SettingsError as error:
        raise _fail(str(error)) from None


@cli.callback(invoke_without_command=True)
def serve(context: typer.Context) -> None:
    """Serves gRPC until SIGTERM or Ctrl-C, then drains. Settings come from CARILLON_... variables; see the README."""
    if context.invoked_subcommand is not None:
        return
    settings = _settings()
    logs.configure(settings.log_format, settings.log_level)
    memory.collect_rarely()
    try:
        asyncio.run(_serve(settings))
    except PortTaken as error:
        raise _fail(f"CARILLON_HOST, CARILLON_PORT, CARILLON_METRICS_PORT: {error}") from None


async def _serve(settings: Settings) -> None:
    if not await App(settings).run(stopping_event()):
        # Python would wait for threads and connections that the database keeps.
        sys.stdout.flush()
        os._exit(0)


@cli.command()
def migrate() -> None:
    """Brings the database's schema to this version, with CARILLON_MIGRATION_URL, and gives the roles their logins."""
    settings = _settings()
    url = settings.migration_url.get_secret_value()
    if not url:
        raise _fail("CARILLON_MIGRATION_URL is not set; it names a role that may create roles and the schema")
    try:
        version = migrate_schema(url, settings.logins())
    except MigrationRefused as refused:
        raise _fail(str(refused)) from None
    except Exception as error:
        if (refusal := translate(error)) is None:
            raise
        raise _fail(f"{refusal.message}: {str(error).splitlines()[0]}") from None
    own = expected_version()
    newer = f", of a newer release than this one ({own}): it stays" if version > own else ""
    Console(highlight=False).print(f"the schema is at version {version}{newer}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(cli())
