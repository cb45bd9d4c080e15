"""`make up`: everything started, what runs where, a token, and something to try."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from carillon import Client
from rich.console import Console
from rich.table import Table

from local_stack.ports import LOCALHOST
from local_stack.seed import put_tenant_schedules, wait_for_jobs
from local_stack.stack import ROOT, DatabaseUrls, Ports, Stack

Main = Coroutine[Any, Any, int]


def home() -> Path:
    """CARILLON_HOME, or `.carillon` in the checkout."""
    return Path(os.environ.get("CARILLON_HOME") or ROOT / ".carillon").absolute()


async def run() -> int:
    console = Console(highlight=False)
    urls = DatabaseUrls.from_environment()
    stack = Stack(home(), Ports.usual(), urls)
    try:
        with console.status("starting PostgreSQL, the scheduler, a worker and the examples"):
            await stack.start()
            async with Client(stack.target, token=stack.secrets.admin_jwt()) as client:
                await wait_for_jobs(client)
                await put_tenant_schedules(client)
        console.print(_what_runs_where(stack))
        _print_what_to_try(console, stack)
        await stack.watch()
    finally:
        console.print("stopping")
        await stack.stop()
        console.print("stopped; nothing is left running, and the data stays in", str(stack.home), soft_wrap=True)
    return 0


def _what_runs_where(stack: Stack) -> Table:
    table = Table(title="Carillon is up", title_justify="left", box=None, pad_edge=False)
    for column in ("what", "where", "log"):
        table.add_column(column, overflow="fold")
    ports = stack.ports
    rows = (
        ("scheduler", f"{stack.target} (gRPC), http://{LOCALHOST}:{ports.scheduler_metrics}/metrics"),
        ("worker", f"http://{LOCALHOST}:{ports.worker_metrics}/metrics"),
        ("email-service", f"http://{LOCALHOST}:{ports.email}"),
        ("kpi-service", f"handlers, writing to {stack.kpi_output}"),
        ("smtp-sink", f"{LOCALHOST}:{ports.smtp}, keeping mail in {stack.mailbox}"),
    )
    if stack.postgres:
        table.add_row("PostgreSQL", f"{LOCALHOST}:{stack.postgres.port}", str(stack.postgres.log_path))
    for name, where in rows:
        table.add_row(name, where, str(stack.processes.log_path(name)))
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
        "Try:",
        f"{call} {header} {service}JobService/ListJobs",
        f"{call} {header} -d '{digest}' {service}JobService/TriggerJob",
        f"""{call} {header} -d '{{"page_size": 5}}' {service}RunService/ListRuns""",
        "",
        "Ctrl-C stops everything.",
    )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
