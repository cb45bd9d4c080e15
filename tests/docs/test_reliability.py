"""What docs/reliability.md promises is shown by tests that are there, and the defaults that it names are the code's."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from carillon import lease, reporting, rpc
from pydantic import BaseModel

from benchmarks.failover import PARTS
from scheduler_service.domain.job import DEFAULT_POLICIES
from scheduler_service.domain.timing.catch_up import ON_TIME
from scheduler_service.engine import clock_watch, pulses, reap, taking_back
from scheduler_service.loops import loop
from scheduler_service.settings import Settings
from scheduler_service.store import database, logins
from scheduler_service.store.retention import REQUESTS_KEPT
from tests.docs.test_security import functions_of
from tests.e2e.cluster import ROOT
from tests.faults.checker import Judgement
from worker_service.settings import Settings as WorkerSettings

PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")

# What must be tried at least, by a word of its row's first cell.
FAULTS = (
    *("between writing a run and moving its schedule on", "only scheduler killed just before", "many replicas at once"),
    *("restarted faster", "past 100 occurrences", "transaction that stalls", "answer lost", "middle of a run"),
    *("stopped past its lease", "completion races the reaper", "old snapshot", "reaper cannot mend", "reaper is dead"),
    *("same name", "session's row removed", "two reapers", "heartbeats and nothing else", "heartbeats fail"),
    *("never reaches the worker", "idle stream", "half-open TCP", "GOAWAY", "acknowledgement is lost", "listens"),
    *("PgBouncer", "stopped at once", "connections used up", "deadlock", "serialization failure", "clocks jump"),
    *("tenants look", "kills its worker", "old and a new release", "cannot be evaluated"),
    *("failover", "disk is full", "slow"),
)


def section(heading: str) -> str:
    found = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert found, heading
    return found


def rows(text: str) -> list[list[str]]:
    """Of all tables, with their heads."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not re.fullmatch(r"[| -]+", line)]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


BROKEN = rows(section("What happens when something breaks"))[1:]


@pytest.mark.parametrize("row", BROKEN, ids=lambda row: str(row[0]))
def test_every_fault_names_what_must_hold_tests_that_are_there_and_what_was_seen(row: list[str]) -> None:
    fault, must, shown_by, seen = row
    assert all((fault, must, seen))
    file = ""
    names = re.findall(r"`([^`]*)`", shown_by)
    assert names
    for name in names:
        path, _, test = name.partition("::")
        file = path or file
        assert test, name
        assert test in functions_of(file), name


def test_every_fault_that_must_be_tried_has_its_row() -> None:
    faults = [fault for fault, *_ in BROKEN]
    assert [word for word in FAULTS if not any(word in fault for fault in faults)] == []
    assert len(set(faults)) == len(faults)


def test_every_promise_is_said() -> None:
    said = re.findall(r"^(?:\| )?([SL]\d+)\b", section("What is promised"), re.MULTILINE)
    assert said == [*(f"S{number}" for number in range(1, 11)), *(f"L{number}" for number in range(1, 7))]


def test_the_last_line_of_make_faults_has_the_words_that_are_explained() -> None:
    line = Judgement(10, 5, 1, 2, 0, 0, 0, 0, 0, "pass", ()).line()
    text = section("How to see it break")
    words = re.findall(r"(\w+)=", line)
    assert re.search(r"^musts=.*$", text, re.MULTILINE), "the page shows no such line"
    assert re.findall(r"(\w+)=", re.findall(r"^musts=.*$", text, re.MULTILINE)[0]) == words
    explained = {word for cell, *_ in rows(text) for word in re.findall(r"`(\w+)`", cell)}
    assert explained == set(words)


def span(value: timedelta | None) -> str:
    assert value is not None
    for unit, name in ((86_400, "day"), (3_600, "h"), (60, "min")):
        if value.total_seconds() % unit == 0:
            return f"{value.total_seconds() / unit:g} {name}"
    return f"{value.total_seconds():g} s"


def setting(settings: type[BaseModel], name: str) -> str:
    return f"{settings.model_fields[name].default:g} s"


def limit(name: str) -> str:
    return re.sub(r"(\d)(?=[a-z])", r"\1 ", logins._LIMITS[name])


JOB = DEFAULT_POLICIES
assert JOB.catch_up is not None
DEFAULTS = {
    "a worker's lease: how long a silent one keeps its runs": setting(Settings, "lease_seconds"),
    "between its heartbeats": setting(Settings, "heartbeat_seconds"),
    "it stops its runs without an acknowledged heartbeat": f"{lease.MARGIN:.0%} of the lease before its end",
    "between its reports of starts": f"{reporting.STARTS_SECONDS:g} s",
    "a claim that it does not list is taken back": f"{taking_back.IN_FLIGHT_SECONDS:g} s after it was made",
    "attempts of a run": f"{JOB.retry.max_attempts}",
    "between them": span(JOB.retry.delay),
    "an attempt": span(JOB.attempt_timeout),
    "the reaper ends an attempt that its worker does not": f"{span(reap.TIMEOUT_MARGIN)} later",
    "to end after a cancel request": span(JOB.cancel_grace),
    "what is late counts as on time": f"below {ON_TIME.total_seconds():g} s",
    "what is later is caught up": f"the {JOB.catch_up.value.lower()}, up to {span(JOB.catch_up_window)} late",
    "a loop looks without having been told": f"each {loop.POLL:g} s",
    "a loop tries again after an error": f"after {loop._SHORTEST_BACKOFF:g} s, doubling to {loop._LONGEST_BACKOFF:g} s",
    "a loop that is idle counts as dead": f"after {pulses.IDLE_SECONDS:g} s",
    "a call waits for a connection to PostgreSQL": f"{database._POOL_SECONDS:g} s",
    "PostgreSQL ends a statement; a transaction that is idle": (
        f"after {limit('statement_timeout')}; after {limit('idle_in_transaction_session_timeout')}"
    ),
    "a client's call": f"{rpc.CALL_SECONDS:g} s",
    "a scheduler's drain; a worker's": "; ".join(setting(each, "drain_seconds") for each in (Settings, WorkerSettings)),
    f"reaping pauses after the database's clock jumped by over {clock_watch.CLOCK_TOLERANCE:g} s": (
        f"1 lease, {clock_watch.LONGEST_SUSPENSION} at most"
    ),
    "a `request_id` is kept": f"{REQUESTS_KEPT.total_seconds() / 3_600:g} h",
}


@pytest.mark.parametrize("what", DEFAULTS)
def test_a_default_is_what_the_code_says(what: str) -> None:
    said = {cell: default for cell, default, *_ in rows(section("Timeouts and defaults"))}
    assert said[what] == DEFAULTS[what]


def test_the_figures_are_those_that_are_measured() -> None:
    shown = re.findall(r"^failover: .*$", PERFORMANCE, re.MULTILINE)
    keys = [f"{part.name}_{figure.key}{which}" for part in PARTS for figure in part.figures for which in ("", "_worst")]
    assert [re.findall(r"(\w+)=[\d.]+", line) for line in shown] == [["rounds", *keys]]


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^):]+)\)", PAGE))))
def test_every_link_leads_to_a_heading_that_is_there(link: str) -> None:
    page, _, anchor = link.partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert not anchor or anchor in [re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings]
