"""`make demo`: the main job on real input, and whether the records say what really happened.

Emails really arrive at an SMTP sink, and KPI files are really written; at the end both are compared with the records.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parseaddr
from pathlib import Path

from carillon import Client
from carillon.v1 import run_pb2
from rich.console import Console
from rich.live import Live
from rich.table import Table

from local_stack.processes import LocalStackError
from local_stack.seed import EMAIL_JOBS, KPI_JOBS, TENANTS, put_tenant_schedules
from local_stack.stack import Ports, Stack

_SHOWN_RUNS = 16
_SETTLED_WITHIN = 60.0
_MINUTE = "%a %d %b %H:%M"


@dataclass
class Seen:
    """The newest state of each run that was watched."""

    runs: dict[str, run_pb2.Run] = field(default_factory=dict)

    def table(self) -> Table:
        table = Table(title="Runs, as they happen (newest last)", title_justify="left", box=None, pad_edge=False)
        for column in ("state", "job", "tenant", "because", "due (UTC)", "items", "took"):
            table.add_column(column, justify="right" if column in ("items", "took") else "left", no_wrap=True)
        for run in sorted(self.runs.values(), key=lambda run: run.name)[-_SHOWN_RUNS:]:
            table.add_row(*_row(run))
        return table


def _row(run: run_pb2.Run) -> tuple[str, ...]:
    state = run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")
    colour = {"COMPLETED": "green", "RUNNING": "cyan", "FAILED": "red"}.get(state, "yellow")
    return (
        f"[{colour}]{state}[/]",
        _short(run.job),
        run.tenant,
        run_pb2.TriggerSource.Name(run.trigger_source).removeprefix("TRIGGER_SOURCE_"),
        run.scheduled_time.ToDatetime().strftime("%H:%M:%S"),
        str(run.items.processed) if run.items.processed else "",
        f"{run.duration.ToMilliseconds()} ms" if run.HasField("duration") else "",
    )


def _short(job: str) -> str:
    _, service, _, name = job.split("/")
    return f"{service}/{name}"


def the_console() -> Console:
    """As wide as the terminal; wide enough for every column where there is none."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=150)


async def run(seconds: float) -> int:
    console = the_console()
    home = Path(tempfile.mkdtemp(prefix="carillon-demo-"))
    stack = Stack(home, Ports.free())
    try:
        with console.status("starting PostgreSQL, the scheduler, a worker and two example services"):
            await stack.start()
        async with Client(stack.target, token=stack.secrets.admin_jwt()) as client:
            return await _show(console, stack, client, seconds)
    finally:
        await stack.stop()
        if stack.postgres:
            await asyncio.to_thread(stack.postgres.remove)
        shutil.rmtree(home)


async def _show(console: Console, stack: Stack, client: Client, seconds: float) -> int:
    await put_tenant_schedules(client)
    async with _watched(console, client):
        await _set_going(client)
        stopped = asyncio.ensure_future(stack.watch())
        await asyncio.wait({stopped}, timeout=seconds)
        if stopped.done():
            stopped.result()
        stopped.cancel()
        await _settle(client)
    console.print(await _next_times(client))
    outcome = await compare(client, stack)
    console.print(outcome.tables())
    console.print(outcome.line(), soft_wrap=True)
    return 0 if outcome.holds else 1


async def _set_going(client: Client) -> None:
    """What needs no waiting: the digest by hand, each sync by hand for each tenant, and one often by schedule."""
    await client.trigger_job("email-service/weekly-digest")
    for job in KPI_JOBS:
        await client.trigger_job(job, tenants=list(TENANTS))
    for tenant, time_zone in TENANTS.items():
        await client.put_schedule(
            "kpi-service/shopify", tenant=tenant, schedule="often", cron="@every 5s", time_zone=time_zone
        )


@asynccontextmanager
async def _watched(console: Console, client: Client) -> AsyncIterator[None]:
    seen = Seen()
    with Live(console=console, refresh_per_second=8) if console.is_terminal else nullcontext() as live:

        async def follow(job: str) -> None:
            async for run in client.watch_runs(job=job):
                seen.runs[run.name] = run
                if live:
                    live.update(seen.table())
                elif run.HasField("finish_time"):
                    console.print("  ".join(_row(run)), soft_wrap=True)

        followers = [asyncio.ensure_future(follow(job)) for job in (*EMAIL_JOBS, *KPI_JOBS)]
        try:
            yield
        finally:
            for follower in followers:
                follower.cancel()
            ended = await asyncio.gather(*followers, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error


async def _settle(client: Client) -> None:
    """Nothing new from here on, and everything that was begun has ended."""
    for job in (*EMAIL_JOBS, *KPI_JOBS):
        await client.pause_job(job)
    try:
        async with asyncio.timeout(_SETTLED_WITHIN):
            async for run in client.list_runs(states=["PENDING", "RUNNING"]):
                async for _ in client.watch_runs(run=run.name):
                    pass  # the stream of one run ends with the run
    except TimeoutError:
        raise LocalStackError(f"runs were still live {_SETTLED_WITHIN:.0f} s after everything was paused") from None


async def _next_times(client: Client) -> Table:
    table = Table(title="\nNext fire times", title_justify="left", box=None, pad_edge=False)
    for column in ("job", "tenant", "time zone", "there", "UTC"):
        table.add_column(column, no_wrap=True)
    for job in (EMAIL_JOBS[0], *KPI_JOBS):
        await client.resume_job(job)
    async for schedule in client.list_schedules():
        if schedule.effective_timing.cron.startswith("@every") or not schedule.HasField("next_run_time"):
            continue
        _, _, _, job, _, tenant, _, _ = schedule.name.split("/")
        there = datetime.fromisoformat(schedule.next_run_local_time).strftime(_MINUTE)
        utc = schedule.next_run_time.ToDatetime().strftime(_MINUTE)
        table.add_row(job, tenant, schedule.effective_timing.time_zone, there, utc)
    return table


@dataclass(frozen=True)
class Comparison:
    """The records beside what the targets received."""

    states: Counter[str]
    items_sent: int
    mails: list[dict[str, str]]
    mails_by_run: Counter[str]
    recorded_mails: dict[str, int]
    kpi_files: set[str]
    recorded_kpis: set[str]

    @property
    def lost(self) -> int:
        """Effects without a record, records without their effect, and effects that came twice."""
        runs = self.mails_by_run.keys() | self.recorded_mails.keys()
        mails = sum(abs(self.mails_by_run[run] - self.recorded_mails.get(run, 0)) for run in runs)
        return mails + len(self.kpi_files ^ self.recorded_kpis)

    @property
    def holds(self) -> bool:
        everything_completed = self.states.total() == self.states["COMPLETED"] + self.states["SKIPPED"]
        something_happened = bool(self.mails and self.kpi_files)
        return everything_completed and something_happened and self.lost == 0

    def tables(self) -> Table:
        both = Table.grid(padding=(0, 4))
        states = Table(title="\nRuns by state", title_justify="left", box=None, pad_edge=False, show_header=False)
        for state, count in sorted(self.states.items()):
            states.add_row(state, str(count))
        states.add_row("items sent", str(self.items_sent))
        states.add_row("KPI files", str(len(self.kpi_files)))
        mails = Table(title="\nMessages really received (the last six)", title_justify="left", box=None, pad_edge=False)
        for column in ("to", "subject", "run"):
            mails.add_column(column, no_wrap=True)
        for mail in self.mails[-6:]:
            mails.add_row(parseaddr(mail["to"])[1], mail["subject"], f"…{mail['run'][-12:]}")
        both.add_row(states, mails)
        return both

    def line(self) -> str:
        return (
            f"demo: runs={self.states.total()} completed={self.states['COMPLETED']} messages={self.items_sent}"
            f" received={len(self.mails)} lost={self.lost}"
        )


async def compare(client: Client, stack: Stack) -> Comparison:
    """Reads every record through the API, and what the targets kept from their files."""
    runs = [run async for run in client.list_runs()]
    completed = [run for run in runs if run.state == run_pb2.RUN_STATE_COMPLETED]
    mailing = {run.name.removeprefix("runs/"): run for run in completed if _short(run.job) in EMAIL_JOBS}
    mails = _received(stack.mailbox)
    return Comparison(
        states=Counter(run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_") for run in runs),
        items_sent=sum(run.items.succeeded for run in mailing.values()),
        mails=mails,
        mails_by_run=Counter(mail["run"] for mail in mails),
        recorded_mails={name: run.items.succeeded for name, run in mailing.items()},
        kpi_files={file.stem for file in stack.kpi_output.glob("*.json")},
        recorded_kpis={run.name.removeprefix("runs/") for run in completed if _short(run.job) in KPI_JOBS},
    )


def _received(mailbox: Path) -> list[dict[str, str]]:
    lines = mailbox.read_text().splitlines() if mailbox.exists() else []
    messages = [{key.lower(): value for key, value in json.loads(line)["headers"].items()} for line in lines]
    return [{"to": m["to"], "subject": m["subject"], "run": m["x-carillon-run"]} for m in messages]
