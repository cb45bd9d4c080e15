"""Driver errors, translated in one place."""

from __future__ import annotations

import psycopg
from psycopg import errors as pg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from scheduler_service.domain.errors import Refusal, Unavailable

_SCHEMA_MISSING = (pg.UndefinedTable, pg.InvalidSchemaName, pg.UndefinedColumn, pg.UndefinedFunction)
_TRY_AGAIN = (pg.SerializationFailure, pg.DeadlockDetected, pg.LockNotAvailable, pg.QueryCanceled)


class SchemaMissing(Unavailable):
    """The schema is not there, or is another than this code expects."""


class MigrationRefused(Exception):
    """The schema cannot be brought further as things are. The message says what is in the way and what to do; nothing
    is half done."""


def translate(error: BaseException) -> Refusal | None:
    """What a caller is told of a driver's error; None if it is no passing state of the database but a fault of ours."""
    if isinstance(error, PoolTimeout):
        return Unavailable("every database connection is busy; try again in a second")
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, _SCHEMA_MISSING):
        return SchemaMissing(
            "the database has no schema of this version; run `python -m scheduler_service migrate`", retry_after=5.0
        )
    if isinstance(cause, _TRY_AGAIN):
        return Unavailable("the database was busy with a conflicting change; try again")
    if isinstance(cause, (psycopg.OperationalError, psycopg.InterfaceError)):
        return Unavailable("the database cannot be reached; try again in a second")
    return None


def lacks_rights(error: BaseException) -> bool:
    """Whether the database refused what its login may not do: a fault of how it was set up."""
    return isinstance(error.orig if isinstance(error, DBAPIError) else error, pg.InsufficientPrivilege)


def is_database_away(error: BaseException) -> bool:
    """Whether waiting and trying again is the right answer."""
    return isinstance(translate(error), Unavailable)
