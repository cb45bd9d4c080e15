"""The names under which the scheduler logs in, and the settings that PostgreSQL gives each of their connections.

They are set with the role, since PgBouncer passes on no start-up options, and since what one client sets in a session
would stay for the next client of that server connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection

API_ROLE = "carillon_api"
ENGINE_ROLE = "carillon_engine"

# A replica that freezes in a transaction, or whose host is gone, must not keep its row locks: what is locked is passed
# over by everyone else. Each as `show` says it.
_LIMITS: Mapping[str, str] = {
    "statement_timeout": "1min",
    "idle_in_transaction_session_timeout": "15s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
# A call that waits for a lock keeps its connection from the others.
_CALLS: Mapping[str, str] = {"lock_timeout": "10s"}
# With statistics from an empty table the planner reads a partial index on state for a keyed update, and costs ten
# times as much; on the engine's statements these plans are never right. It has no others: what its pool runs beside
# the hot connections goes by keys as well.
_PLANS: Mapping[str, str] = {
    "jit": "off",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # A plan kept from when live_runs was small walks the whole table once it is large.
    "plan_cache_mode": "force_custom_plan",
}

# What a connection has counts, wherever it comes from. A Unix socket has no TCP settings.
_LACKING = text(
    "select session_user, name, wanted from unnest(cast(:names as text[]), cast(:wanted as text[])) as w(name, wanted)"
    " where current_setting(name) <> wanted and not (name like 'tcp%' and inet_server_addr() is null)"
)


def is_database_url(text: str) -> bool:
    """Whether both that read it can: the driver, and the pool."""
    try:
        conninfo_to_dict(text)
        make_url(text)
    except (psycopg.Error, ArgumentError, ValueError):
        return False
    return True


def settings_of(group: str) -> Mapping[str, str]:
    """What each connection of a login with the rights of `group` (API_ROLE, ENGINE_ROLE) should have."""
    return {**_LIMITS, **(_PLANS if group == ENGINE_ROLE else _CALLS)}


@dataclass(frozen=True, slots=True)
class Login:
    """A name and password to give one of the service's roles; `url` is the one the scheduler will connect with."""

    group: str
    url: str = field(repr=False)

    @property
    def user(self) -> str:
        return make_url(self.url).username or ""


def give_login(connection: psycopg.Connection, login: Login) -> None:
    """Makes the login, or makes it so: its rights, password (none in the URL: as it is) and settings."""
    url = make_url(login.url)
    user, password = str(url.username or ""), url.password
    role = sql.Identifier(user)
    if user != login.group:
        if connection.execute("select from pg_roles where rolname = %s", [user]).fetchone() is None:
            connection.execute(sql.SQL("create role {}").format(role))
        connection.execute(sql.SQL("grant {} to {}").format(sql.Identifier(login.group), role))
    if password is None:
        connection.execute(sql.SQL("alter role {} login").format(role))
    else:
        # Only the hash is sent: a statement may be logged.
        hashed = connection.pgconn.encrypt_password(str(password).encode(), user.encode(), b"scram-sha-256").decode()
        connection.execute(sql.SQL("alter role {} login password {}").format(role, sql.Literal(hashed)))
    _give_settings(connection, user, login.group)


def _give_settings(connection: psycopg.Connection, user: str, group: str) -> None:
    row = connection.execute("select coalesce(rolconfig, '{}') from pg_roles where rolname = %s", [user]).fetchone()
    there = set(row[0]) if row else set()
    for name, value in settings_of(group).items():
        # Of two replicas that alter one role at once, one fails: only what has to be.
        if f"{name}={value}" not in there:
            connection.execute(_alteration(user, name, value))


async def what_login_lacks(connection: AsyncConnection, group: str) -> str | None:
    """What to run so that the connection's login has its settings, as one line of SQL; None if it has them."""
    wanted = settings_of(group)
    values = {"names": list(wanted), "wanted": list(wanted.values())}
    rows = (await connection.execute(_LACKING, values)).all()
    return "; ".join(_alteration(*row).as_string() for row in rows) or None


def _alteration(user: str, name: str, value: str) -> sql.Composed:
    return sql.SQL("alter role {} set {} = {}").format(sql.Identifier(user), sql.Identifier(name), sql.Literal(value))
