"""Driver errors, translated in one place: by SQLSTATE, or by its class, which is its first two characters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import psycopg
from psycopg import errors as pg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from scheduler_service.domain.errors import Refusal, Unavailable

_SCHEMA_MISSING = (pg.UndefinedTable, pg.InvalidSchemaName, pg.UndefinedColumn, pg.UndefinedFunction)
_LOST_A_RACE = (pg.SerializationFailure, pg.DeadlockDetected)

HOPELESS: tuple[type[Exception], ...] = (
    psycopg.DataError,
    psycopg.IntegrityError,
    pg.RaiseException,
    pg.DataCorrupted,
    pg.IndexCorrupted,
    pg.InternalError_,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)
"""What one row may be the cause of, also where it is only read. Anything else (the database away, rights) is the whole
step's."""
IN_THE_WAY: tuple[type[Exception], ...] = (*_LOST_A_RACE, pg.LockNotAvailable)
"""Somebody has locked what is needed. Nothing is wrong with it, and it can be had a little later."""
OF_SOME_ROWS = (*HOPELESS, *IN_THE_WAY)


class _Passing(NamedTuple):
    """What a caller is told of a state that passes, and in how many seconds to ask again."""

    message: str
    retry_after: float = 1.0


_AWAY = _Passing("the database cannot be reached; try again in a second")
_CONFLICT = _Passing("the database was busy with a conflicting change; try again")
_TOO_LONG = _Passing("the database ended what took too long, and nothing of it was kept; try again in a second")
_FULL = _Passing("the database has too many connections; try again in a few seconds", 3.0)
_OUT_OF_ROOM = _Passing("the database is out of disk or memory, and nothing was kept; try again in a few seconds", 5.0)

# The longer key counts. None: no passing state of the database but a fault of ours, of which our log must tell.
_BY_SQLSTATE: Mapping[str, _Passing | None] = {
    "08": _AWAY,
    "25006": _Passing("the database takes no changes now: it is read-only, or a standby; try again in a second"),
    "25P03": _TOO_LONG,  # in a transaction, and silent: a replica that was frozen
    "25P04": _TOO_LONG,
    "40": _CONFLICT,
    "40003": _AWAY,
    "53": _OUT_OF_ROOM,
    "53300": _FULL,
    "54": None,
    "54000": _Passing("the database is at one of its limits; its administrator must look", 30.0),  # out of xids, too
    "55": _CONFLICT,
    "55P02": None,
    "55P04": None,
    "57": _AWAY,
    "57014": _TOO_LONG,
    "58": _Passing("the database's disk fails, and nothing was kept; try again in a few seconds", 5.0),
    "XX": None,  # also damaged data: somebody has to look, and asking again does not help
}


class SchemaMissing(Unavailable):
    """The schema is not there, or is another than this code expects."""


class MigrationRefused(Exception):
    """The schema cannot be brought further as things are. The message says what is in the way and what to do; nothing
    is half done."""


def translate(error: BaseException) -> Refusal | None:
    """What a caller is told of a driver's error; None if it is no passing state of the database but a fault of ours."""
    if isinstance(error, PoolTimeout):
        return Unavailable("every database connection is busy; try again in a second")
    cause = _cause(error)
    if isinstance(cause, _SCHEMA_MISSING):
        return SchemaMissing(
            "the database has no schema of this version; run `python -m scheduler_service migrate`", retry_after=5.0
        )
    passing = _passing(cause)
    return Unavailable(passing.message, retry_after=passing.retry_after) if passing else None


def _passing(cause: BaseException | None) -> _Passing | None:
    state = getattr(cause, "sqlstate", None) or ""
    for key in (state, state[:2]):
        if key in _BY_SQLSTATE:
            return _BY_SQLSTATE[key]
    # The driver speaks for itself: it could not connect, or lost its connection.
    return _AWAY if isinstance(cause, (psycopg.OperationalError, psycopg.InterfaceError)) else None


def lacks_rights(error: BaseException) -> bool:
    """Whether the database refused what its login may not do: a fault of how it was set up."""
    return isinstance(_cause(error), pg.InsufficientPrivilege)


def is_read_only(error: BaseException) -> bool:
    """Whether the server lets nobody write: a standby, or a primary that is on its way out."""
    return isinstance(_cause(error), pg.ReadOnlySqlTransaction)


def lost_a_race(error: BaseException) -> bool:
    """Whether the transaction gave way to another (deadlock, serialization): nothing of it was kept, and the same once
    more is likely to go through."""
    return isinstance(_cause(error), _LOST_A_RACE)


def is_database_away(error: BaseException) -> bool:
    """Whether waiting and trying again is the right answer."""
    return isinstance(translate(error), Unavailable)


def _cause(error: BaseException) -> BaseException | None:
    return error.orig if isinstance(error, DBAPIError) else error
