"""What a watcher is sent, decided without a database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from scheduler_service.domain.record import ItemCounts, Progress, Run
from scheduler_service.domain.run import RunState, TriggerSource, new_run_id
from scheduler_service.domain.watching import OVERLAP, Look, Standing, Watched

NOW = datetime(2026, 3, 1, 9, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def live(state: RunState = RunState.PENDING) -> Run:
    return Run(
        run_id=new_run_id(NOW),
        service="email-service",
        job="weekly-digest",
        tenant="-",
        schedule="",
        revision=0,
        state=state,
        trigger=TriggerSource.MANUAL,
        origin="",
        triggered_by="admin:alice",
        scheduled_for=NOW,
        scheduled_local=None,
        time_zone="",
        created_at=NOW,
        run_after=NOW,
        started_at=None,
        finished_at=None,
        duration=None,
        attempt=1,
        max_attempts=3,
        worker="",
        labels={},
        payload={},
        metrics={},
        metadata={},
        items=ItemCounts(),
        progress=None,
        error=None,
        cancel_requested_at=None,
    )


def ended(run: Run, at: datetime = NOW) -> Run:
    return replace(run, state=RunState.COMPLETED, finished_at=at)


def look(*runs: Run, now: datetime = NOW) -> Look:
    return Look(
        now,
        live={run.run_id: Standing.of(run) for run in runs if run.finished_at is None},
        ended={run.run_id: run.finished_at for run in runs if run.finished_at is not None},
    )


def sent(watched: Watched, *runs: Run, now: datetime = NOW, since_then: tuple[Run, ...] = ()) -> list[Run]:
    """What a look sends, if the runs are then read as they are, or as `since_then` has them."""
    found: dict[UUID, Run] = {run.run_id: run for run in (*runs, *since_then)}
    changed = watched.changed(look(*runs, now=now))
    return [found[run_id] for run_id in changed if run_id in found and watched.is_news(found[run_id])]


def watching() -> Watched:
    return Watched(since=NOW - OVERLAP)


def test_a_live_run_is_sent_once_until_it_changes() -> None:
    watched, run = watching(), live()
    assert sent(watched, run) == [run]
    assert sent(watched, run) == []
    for changed in (
        replace(run, state=RunState.RUNNING),
        replace(run, attempt=2),
        replace(run, progress=Progress(1, 2, "", NOW)),
        replace(run, progress=Progress(1, 2, "", NOW + SECOND)),
        replace(run, cancel_requested_at=NOW),
    ):
        assert sent(watched, changed) == [changed]
        assert sent(watched, changed) == []


def test_an_outcome_is_sent_once_though_looks_overlap() -> None:
    watched, run = watching(), live()
    sent(watched, run)
    assert sent(watched, ended(run)) == [ended(run)]
    assert sent(watched, ended(run), now=NOW + SECOND) == []


def test_a_run_that_began_and_ended_between_two_looks_is_sent() -> None:
    watched = watching()
    run = ended(live(), NOW + SECOND)
    assert sent(watched, run, now=NOW + 2 * SECOND) == [run]


def test_a_run_that_is_live_no_longer_is_sent_however_late_the_next_look() -> None:
    watched, run = watching(), live()
    sent(watched, run)
    much_later = NOW + timedelta(hours=1)
    done = ended(run, NOW + SECOND)
    assert sent(watched, now=much_later, since_then=(done,)) == [done]
    assert sent(watched, now=much_later) == []


def test_a_long_gap_between_looks_loses_nothing() -> None:
    watched = watching()
    sent(watched)
    run = ended(live(), NOW + SECOND)
    much_later = NOW + timedelta(hours=1)
    assert sent(watched, run, now=much_later) == [run]
    assert len(watched) == 0


def test_a_run_that_ends_between_being_looked_at_and_being_read_is_sent_once() -> None:
    watched, run = watching(), live()
    assert sent(watched, run, since_then=(ended(run),)) == [ended(run)]
    assert sent(watched, ended(run)) == []


def test_what_ended_before_the_watch_is_no_news() -> None:
    watched, run = watching(), ended(live())
    watched.pass_over(look(run))
    assert sent(watched, run) == []


def test_outcomes_are_forgotten_after_the_overlap() -> None:
    watched = watching()
    runs = [ended(live()) for _ in range(100)]
    sent(watched, *runs)
    assert len(watched) == 100
    sent(watched, now=NOW + OVERLAP + SECOND)
    assert len(watched) == 0


def test_a_clock_that_steps_back_repeats_no_outcome() -> None:
    watched = watching()
    run = ended(live())
    sent(watched, run)
    sent(watched, now=NOW + timedelta(minutes=1))
    since = watched.since
    sent(watched, now=NOW - timedelta(minutes=1))
    assert watched.since == since


def test_a_run_that_is_gone_for_good_is_forgotten() -> None:
    watched, run = watching(), live()
    sent(watched, run)
    assert watched.changed(look()) == [run.run_id]
    watched.forget(run.run_id)
    assert watched.changed(look()) == []
