"""`make fuzz`: 100,000 mutated JWTs and service tokens, and 100,000 malformed calls of a scheduler process.

Exits 0 only if no forgery was accepted, nothing crashed, no answer told of the inside, and memory stayed where it was.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import tempfile
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress

from tests.security.fuzz.campaign import Report, fuzz
from tests.security.fuzz.forgeries import Verdicts, try_forgeries
from tests.security.scratch import scratch_database

_MOST_GROWN = 50.0
_MOST_SHOWN = 20


def main(
    forgeries: int = typer.Option(100_000, help="How many JWTs and service tokens."),
    requests: int = typer.Option(100_000, help="How many calls."),
    seed: int | None = typer.Option(None, help="The seed of an earlier run, to see it again. Default: a new one."),
) -> None:
    """Fuzzes, and says what came of it (about ten minutes on two free cores)."""
    chosen = secrets.randbelow(1 << 32) if seed is None else seed
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"see it again with --seed {chosen}", style="dim")
    with Progress(console=console, disable=not console.is_terminal) as progress:
        forging = progress.add_task("JWTs and tokens", total=forgeries)
        verdicts = asyncio.run(try_forgeries(forgeries, chosen, lambda: progress.advance(forging)))
        calling = progress.add_task("malformed calls", total=requests)
        with scratch_database() as urls, tempfile.TemporaryDirectory(prefix="carillon-fuzz-") as home:
            report = asyncio.run(
                fuzz(urls, Path(home), requests, chosen, lambda calls: progress.advance(calling, calls))
            )
    for sentence in (*verdicts.accepted, *verdicts.odd, *report.faults)[:_MOST_SHOWN]:
        console.print(f"wrong: {sentence}")
    console.print(", ".join(f"{number} {code}" for code, number in report.codes.most_common()))
    console.print(line(verdicts, report))
    sys.exit(bool(verdicts.accepted or verdicts.odd or report.faults or report.crashes or report.grown > _MOST_GROWN))


def line(verdicts: Verdicts, report: Report) -> str:
    """For machines."""
    return (
        f"jwts={verdicts.tried} accepted={len(verdicts.accepted)} requests={report.requests} crashes={report.crashes}"
        f" internal={report.internal} tracebacks={report.tracebacks} rss_mb={report.grown:+.1f}"
    )


if __name__ == "__main__":
    typer.run(main)
