"""`make bench`: how fast runs move, beside the floor that PostgreSQL sets, in turns on the same tables."""

from __future__ import annotations

import argparse
import asyncio
import os
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.place import fresh_place
from benchmarks.scenarios import Figures, idle_tick, measure
from benchmarks.stack import EngineAlone, Stack
from benchmarks.whole_stack import WholeStack
from operations import memory

STACKS: dict[str, type[Stack]] = {"engine": EngineAlone, "whole": WholeStack}
_RATIOS = {"engine": "ratio", "whole": "whole_ratio"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--stack", choices=STACKS, action="append", help="what to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=4, help="rounds that count (default: 4)")
    parser.add_argument("--runs", type=int, default=20_000, help="runs a round (default: 20,000)")
    parser.add_argument("--schedules", type=int, default=1_000_000, help="for the idle tick (default: 1,000,000)")
    options = parser.parse_args()
    # The engine and the worker that are measured in this process, as in processes of their own.
    memory.collect_rarely()
    asyncio.run(_bench(options))


async def _bench(options: argparse.Namespace) -> None:
    console = Console()
    measured: dict[str, Figures] = {}
    with fresh_place() as place:
        for name in options.stack or STACKS:
            with console.status(f"measuring {STACKS[name].name}"):
                measured[name] = await measure(place, STACKS[name](), rounds=options.rounds, count=options.runs)
        place.tidy()
        with console.status("measuring the idle tick"):
            idle = await idle_tick(place, options.schedules)
    console.print(_table(measured, idle, options))
    console.print(_MEANING.format(cores=os.cpu_count()), style="dim")
    console.print(_summary(measured, idle), soft_wrap=True)


_MEANING = (
    "ratio: what the engine (scheduler and database) reaches of the floor, in the worse of flow and drain; at least 0.5"
    " is promised. whole_ratio: the same with gRPC and a worker in Python, which share the {cores} cores with"
    " PostgreSQL. The other figures are the whole stack's."
)


def _summary(measured: dict[str, Figures], idle: float) -> str:
    """One line for machines. What was not measured is left out."""
    said = [f"{key}={measured[name].ratio:.2f}" for name, key in _RATIOS.items() if name in measured]
    seen = measured.get("whole") or measured["engine"]
    said += [f"flow={median(seen.flow):.0f}", f"drain={median(seen.drain):.0f}"]
    said += [f"p50_ms={seen.p50:.1f}", f"p99_ms={seen.p99:.1f}", f"burst_ms={seen.burst:.0f}"]
    return " ".join(["bench:", *said, f"idle_tick_us={idle:.0f}"])


def _table(measured: dict[str, Figures], idle: float, options: argparse.Namespace) -> Table:
    table = Table(title=f"medians of {options.rounds} rounds of {options.runs:,} runs")
    for column in ("", "what", "measured", "floor", "ratio"):
        table.add_column(column, justify="left" if column in ("", "what") else "right")
    for name, figures in measured.items():
        for what, ours, floor in (
            ("insert, dispatch, complete (runs/s)", figures.flow, figures.flow_floor),
            ("drain a backlog (runs/s)", figures.drain, figures.drain_floor),
        ):
            ratio = median(ours) / median(floor)
            table.add_row(name, what, f"{median(ours):,.0f}", f"{median(floor):,.0f}", f"{ratio:.2f}")
        table.add_row(name, "due to handler start, p50 / p99 (ms)", f"{figures.p50:.1f} / {figures.p99:.1f}", "", "")
        table.add_row(name, "1,000 due at one instant: last start (ms)", f"{figures.burst:.0f}", "", "")
    table.add_row("", f"idle tick among {options.schedules:,} schedules (µs)", f"{idle:.0f}", "", "")
    return table


if __name__ == "__main__":
    main()
