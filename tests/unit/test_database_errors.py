"""What each SQLSTATE that a database in trouble answers with becomes for a caller, without exception."""

from __future__ import annotations

import grpc
import psycopg
import pytest
from google.rpc import error_details_pb2
from psycopg import errors as pg
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from scheduler_service.domain.errors import Refusal
from scheduler_service.rpc.errors import status_of
from scheduler_service.store.errors import SchemaMissing, is_database_away, is_read_only, lost_a_race, translate

CLASSES = ("08", "25", "40", "53", "54", "55", "57", "58", "XX")
SQLSTATES = sorted(code for code in pg._sqlcodes if code[:2] in CLASSES)
# Faults of ours, or of whoever set the database up; and damaged data, which passes by no waiting.
FAULTS = {
    *("25000", "25001", "25002", "25003", "25004", "25005", "25007", "25008", "25P01", "25P02"),
    *("54001", "54011", "54023"),
    *("55P02", "55P04"),
    *("XX000", "XX001", "XX002"),
}


def said(error: BaseException) -> Refusal:
    refusal = translate(error)
    assert refusal is not None
    return refusal


def test_all_of_them_are_looked_at() -> None:
    assert len(SQLSTATES) >= 50
    assert set(SQLSTATES) > FAULTS
    assert {code[:2] for code in SQLSTATES} == set(CLASSES)


@pytest.mark.parametrize("sqlstate", sorted(set(SQLSTATES) - FAULTS))
@pytest.mark.parametrize("wrapped", [False, True], ids=["of the driver", "of the pool"])
def test_a_state_that_passes_is_unavailable_with_a_hint_when_to_try_again(sqlstate: str, wrapped: bool) -> None:
    error: Exception = pg.lookup(sqlstate)("what the server said")
    error = OperationalError("select 1", {}, error) if wrapped else error
    status = status_of(said(error))
    assert status.code == grpc.StatusCode.UNAVAILABLE.value[0]
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert 1000 <= retry.retry_delay.ToMilliseconds() <= 30_000
    assert "what the server said" not in status.message
    assert is_database_away(error)


@pytest.mark.parametrize("sqlstate", sorted(FAULTS))
def test_a_fault_is_none_and_told_in_our_log(sqlstate: str) -> None:
    assert translate(pg.lookup(sqlstate)()) is None
    assert not is_database_away(pg.lookup(sqlstate)())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (psycopg.OperationalError("connection refused"), "cannot be reached"),
        (psycopg.InterfaceError("the connection is closed"), "cannot be reached"),
        (pg.ConnectionTimeout("timeout"), "cannot be reached"),
        (pg.CrashShutdown(), "cannot be reached"),
        (PoolTimeout(), "every database connection is busy"),
        (pg.ReadOnlySqlTransaction(), "read-only, or a standby"),
        (pg.IdleInTransactionSessionTimeout(), "ended what took too long"),
        (pg.QueryCanceled(), "ended what took too long"),
        (pg.DiskFull(), "out of disk or memory"),
        (pg.OutOfMemory(), "out of disk or memory"),
        (pg.TooManyConnections(), "too many connections"),
        (pg.IoError(), "disk fails"),
        (pg.DeadlockDetected(), "conflicting change"),
        (pg.LockNotAvailable(), "conflicting change"),
        (pg.StatementCompletionUnknown(), "cannot be reached"),
        (pg.ProgramLimitExceeded(), "at one of its limits"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else None,
)
def test_it_says_what_is_wrong(error: Exception, words: str) -> None:
    assert words in said(error).message


@pytest.mark.parametrize(
    "error", [pg.UniqueViolation(), pg.SyntaxError(), ValueError(), psycopg.InternalError()], ids=repr
)
def test_what_is_no_state_of_the_database_is_none(error: Exception) -> None:
    assert translate(error) is None


def test_a_schema_that_is_missing_is_told_apart() -> None:
    assert isinstance(said(pg.UndefinedTable()), SchemaMissing)


def test_who_gave_way_and_who_is_read_only_are_told_apart_by_whom_it_concerns() -> None:
    races = {code for code in SQLSTATES if lost_a_race(pg.lookup(code)())}
    assert races == {"40001", "40P01"}
    assert {code for code in SQLSTATES if is_read_only(pg.lookup(code)())} == {"25006"}
