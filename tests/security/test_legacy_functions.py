"""What people ask by SQL, through logins of their own."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from scheduler_service.domain.run import RunState
from tests import builders
from tests.builders import MadeJob, connect, days_ago
from tests.conftest import DatabaseUrls
from tests.security.sql_case import AUDITOR, CALLERS, STRANGER, Caller, Connection, acting, logins


@pytest.fixture
def admin(database_urls: DatabaseUrls) -> Iterator[Connection]:
    with connect(database_urls.admin) as connection, logins(connection):
        yield connection


@pytest.fixture
def job(admin: Connection) -> MadeJob:
    """With a run that completed, one that failed, one that runs and one that waits, a day from each other."""
    job = builders.make_job(admin)
    error = {"code": "HANDLER_ERROR", "message": "smtp said no", "detail": ""}
    items: dict[str, Any] = {"items_processed": 3, "items_succeeded": 2, "items_failed": 1}
    builders.make_ended_run(admin, job, at=days_ago(4), duration=timedelta(seconds=2), trigger="SCHEDULE", **items)
    builders.make_ended_run(
        admin, job, RunState.FAILED, at=days_ago(3), duration=timedelta(seconds=4), error=error, tenant="acme"
    )
    builders.claim(admin, builders.make_live_run(admin, job, at=days_ago(2)), builders.make_session(admin))
    builders.make_live_run(admin, job, at=days_ago(1), triggered_by="service:email-service")
    return job


def ask(admin: Connection, query: str, *values: object, caller: str = AUDITOR) -> list[Any]:
    with acting(admin, Caller(caller)):
        return admin.execute(query.encode(), values).fetchall()


def test_history_has_the_legacy_columns_newest_first(admin: Connection, job: MadeJob) -> None:
    columns = (
        "status, duration_ms, items_processed, items_succeeded, items_failed, error_message, triggered_by,"
        " triggered_by_user, completed_at is null, job_name"
    )
    name = "email-service/weekly-digest"
    assert ask(admin, f"select {columns} from carillon.get_job_execution_history('weekly-digest')") == [
        ("pending", None, None, None, None, None, "manual", None, True, name),
        ("running", None, None, None, None, None, "manual", None, True, name),
        ("failed", 4000, 0, 0, 0, "smtp said no", "manual", "alice", False, name),
        ("completed", 2000, 3, 2, 1, None, "scheduler", "alice", False, name),
    ]


@pytest.mark.parametrize(
    ("limit", "offset", "found"), [(2, 0, [0, 1]), (2, 1, [1, 2]), (9, 3, [3]), (0, 0, []), (5, 9, [])]
)
def test_history_is_paged(admin: Connection, job: MadeJob, limit: int, offset: int, found: list[int]) -> None:
    everything = ask(admin, "select id from carillon.get_job_execution_history('email-service/weekly-digest')")
    query = """select id from carillon.get_job_execution_history(%s, "limit" => %s, "offset" => %s)"""
    assert ask(admin, query, "weekly-digest", limit, offset) == [everything[place] for place in found]


def test_history_takes_any_number_of_rows_but_none_below_zero(admin: Connection, job: MadeJob) -> None:
    query = """select id from carillon.get_job_execution_history('weekly-digest', "limit" => %s, "offset" => %s)"""
    assert len(ask(admin, query, 2**31 - 1, 2**31 - 1)) == 0
    assert len(ask(admin, query, 2**31 - 1, 1)) == 3
    for limit, offset, said in (
        (-1, 0, '"limit" is -1 and must be 0 or more'),
        (5, -2, '"offset" is -2 and must be 0 or more'),
        (None, 0, '"limit" is null and must be 0 or more'),
    ):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match=said):
            ask(admin, query, limit, offset)


def test_stats_count_what_has_ended_since_an_instant(admin: Connection, job: MadeJob) -> None:
    columns = (
        "job_name, total_runs, completed_runs, failed_runs, skipped_runs, success_percent, average_duration_ms,"
        " longest_duration_ms, items_processed"
    )
    query = f"select {columns} from carillon.get_job_execution_stats('weekly-digest'"
    name = "email-service/weekly-digest"
    assert ask(admin, f"{query})") == [(name, 2, 1, 1, 0, 50, 3000, 4000, 3)]
    assert ask(admin, f"{query}, %s)", days_ago(3.5)) == [(name, 1, 0, 1, 0, 0, 4000, 4000, 0)]
    assert ask(admin, f"{query}, now())") == [(name, 0, 0, 0, 0, None, None, None, 0)]


def test_a_name_that_is_none_or_several_is_answered_with_what_to_write(admin: Connection, job: MadeJob) -> None:
    with pytest.raises(psycopg.errors.NoDataFound, match="there is no job named nightly"):
        ask(admin, "select * from carillon.get_job_execution_history('nightly')")
    builders.make_job(admin, "kpi-service")
    said = "several jobs are named weekly-digest: email-service/weekly-digest, kpi-service/weekly-digest"
    with pytest.raises(psycopg.errors.AmbiguousParameter, match=said):
        ask(admin, "select * from carillon.get_job_execution_stats('weekly-digest')")
    assert ask(admin, "select total_runs from carillon.get_job_execution_stats('kpi-service/weekly-digest')") == [(0,)]


ASKED = (
    "select * from carillon.get_job_execution_history('weekly-digest')",
    "select * from carillon.get_job_execution_stats('weekly-digest')",
    "select * from carillon.job_status",
    "select * from carillon.failed_runs",
    "select * from carillon.waiting_runs",
)


@pytest.mark.parametrize("query", ASKED)
def test_rights_come_from_the_login_role_alone(admin: Connection, job: MadeJob, query: str) -> None:
    assert ask(admin, query)
    for caller in (Caller(STRANGER, CALLERS["admin"].says), CALLERS["admin"]):
        with acting(admin, caller), pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
            admin.execute(query.encode())


def test_the_views_say_how_jobs_and_runs_fare(admin: Connection, job: MadeJob) -> None:
    builders.make_schedule(admin, job, next_run_at=days_ago(-1))
    builders.make_ended_run(admin, job, at=days_ago(0.01))
    status = "select last_state::text, pending, running, completed_last_day, failed_last_day, next_run_at > now()"
    assert ask(admin, f"{status} from carillon.job_status") == [("COMPLETED", 1, 1, 1, 0, True)]
    failed = "select service, job, tenant_id, error_code, error_message from carillon.failed_runs"
    assert ask(admin, failed) == [("email-service", "weekly-digest", "acme", "HANDLER_ERROR", "smtp said no")]
    waiting = "select job, overdue_by > interval '23 hours', blocked from carillon.waiting_runs"
    assert ask(admin, waiting) == [("weekly-digest", True, False)]


def test_functions_and_views_have_the_rights_of_who_asks(admin: Connection) -> None:
    views = admin.execute(
        "select relname, reloptions from pg_class where relkind = 'v' and relnamespace = 'carillon'::regnamespace"
    ).fetchall()
    assert {name for name, _ in views} == {"job_status", "failed_runs", "waiting_runs"}
    assert {tuple(options) for _, options in views} == {("security_invoker=true",)}
