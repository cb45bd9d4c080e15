"""What commands have in common: who gives them, the database that they work on, and what a refusal looks like."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import secrets
import socket
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

import typer
from rich.console import Console

from scheduler_service.domain.access import Kind, Origin, Principal
from scheduler_service.domain.errors import Refusal
from scheduler_service.settings import SettingsError, read_database_settings
from scheduler_service.store.database import Database
from scheduler_service.store.errors import translate

T = TypeVar("T")

said = Console(stderr=True, highlight=False, soft_wrap=True)
"""For everything that is no result: results alone stand on stdout, so that they can be piped."""

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION = re.compile(r"([0-9]{1,6})([smhdw])")


def fail(sentence: str) -> typer.Exit:
    """To be raised: says why on stderr, and ends with 2."""
    said.print(sentence, style="red", markup=False)
    return typer.Exit(2)


def printable(text: str) -> str:
    """What others chose, and a terminal is shown, must not steer it."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def operator(command: str) -> Principal:
    """Whoever gives a command, such as `tokens create`: the operating system's user."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user needs no name
        name = str(os.getuid())
    return Principal(Kind.OPERATOR, name=name, origin=Origin(socket.gethostname(), secrets.token_hex(8), command))


def on_database(work: Callable[[Database], Awaitable[T]]) -> T:
    """Does it on CARILLON_DATABASE_URL, as the API's role. What is refused ends the command."""
    try:
        url = read_database_settings().database_url.get_secret_value()
    except SettingsError as error:
        raise fail(str(error)) from None
    try:
        return asyncio.run(_on(url, work))
    except Refusal as refusal:
        raise fail(refusal.message) from None
    except Exception as error:
        if (refusal_of := translate(error)) is None:
            raise
        raise fail(f"{refusal_of.message}: {str(error).splitlines()[0]}") from None


async def _on(url: str, work: Callable[[Database], Awaitable[T]]) -> T:
    # No command does anything as the engine; the pool of that role is never used.
    database = Database(url, url, pool_size=1)
    try:
        return await work(database)
    finally:
        await database.close()


def duration(text: str) -> timedelta:
    """Reads `90d`, `24h`, `30m`, `45s` or `2w`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no duration; write a number and s, m, h, d or w, such as 90d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
