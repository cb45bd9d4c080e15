"""`make up`: everything started, what runs where, a token, and something to try."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from carillon import Client
from rich.console import Console
from rich.table import Table
from rich.text import Text

from local_stack.ports import LOCALHOST
from local_stack.seed import put_tenant_schedules
from local_stack.stack import ROOT, DatabaseUrls, Ports, Stack

Main = Coroutine[Any, Any, int]


def home() -> Path:
    """CARILLON_HOME, or `.carillon` in the checkout."""
    return Path(os.environ.get("CARILLON_HOME") or ROOT / ".carillon").absolute()


async def run() -> int:
    console = Console(highlight=False)
    urls = DatabaseUrls.from_environment()
    stack = Stack(home(), Ports.usual(), urls)
    started = False
    try:
        with console.status("starting PostgreSQL, the scheduler, a worker and the examples"):
            await stack.start()
            started = True
            async with Client(stack.target, token=stack.secrets.admin_jwt()) as client:
                await put_tenant_schedules(client)
        console.print(_what_runs_where(stack))
        _print_what_to_try(console, stack)
        await stack.keep_running(lambda line: console.print(line, markup=False, soft_wrap=True))
    finally:
        await stack.stop()
        if started:
            console.print("stopped; nothing is left running, and the data stays in", str(stack.home), soft_wrap=True)
    return 0


def _what_runs_where(stack: Stack) -> Table:
    table = Table(title="Carillon is up", title_justify="left", box=None, pad_edge=False, show_header=False)
    ports, pid, http = stack.ports, stack.processes.pid, f"http://{LOCALHOST}"
    rows = (
        ("scheduler", f"pid {pid('scheduler')}, {stack.target} (gRPC), {http}:{ports.scheduler_metrics}/metrics"),
        ("worker", f"pid {pid('worker')}, {http}:{ports.worker_metrics}/metrics"),
        ("email-service", f"{http}:{ports.email}, sending a welcome mail every 2 s"),
        ("kpi-service", f"handlers, writing to {stack.kpi_output}"),
        ("smtp-sink", f"{LOCALHOST}:{ports.smtp}, keeping mail in {stack.mailbox}"),
        ("PostgreSQL", f"{LOCALHOST}:{stack.postgres.port}" if stack.postgres else "as CARILLON_DATABASE_URL says"),
        ("logs", str(stack.processes.log_path("scheduler").parent)),
    )
    for name, where in rows:
        table.add_row(name, Text(where, overflow="fold"))
    return table


def _print_what_to_try(console: Console, stack: Stack) -> None:
    call = f"{ROOT / '.venv/bin/buf'} curl --protocol grpc --http2-prior-knowledge"
    header = '-H "authorization: Bearer $TOKEN"'
    service = f"http://{stack.target}/carillon.v1."
    digest = '{"name": "services/email-service/jobs/weekly-digest"}'
    lines = (
        "",
        "An admin token, good for twelve hours:",
        f"export TOKEN={stack.secrets.admin_jwt()}",
        "",
        "A service token, for a service of your own that is named my-service:",
        f"export CARILLON_SERVICE_TOKEN={stack.secrets.my_service_token}",
        "",
        "The database, for `python -m scheduler_service tokens`, `users` and `audit`, and, as its superuser, for psql:",
        f"export CARILLON_DATABASE_URL={stack.urls.api if stack.urls else ''}",
        f"export SUPERUSER_URL={stack.urls.migration if stack.urls else ''}",
        "",
        "Try:",
        f"{call} {header} {service}JobService/ListJobs",
        f"{call} {header} -d '{digest}' {service}JobService/TriggerJob",
        f"""{call} {header} -d '{{"page_size": 5}}' {service}RunService/ListRuns""",
        "",
        "What you end by its pid, such as the scheduler (kill -9), is started again; PostgreSQL is not."
        " Ctrl-C stops everything.",
    )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
