"""`make time-oracle`: the engine against the oracle around every clock change of every zone from 2005 to 2037.

Each mismatch is printed as it is found; the last line sums up, and the exit code is 1 if there was any.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

import typer
from rich.console import Console
from rich.progress import track

from tests.time_oracle.comparison import Tally, compare
from tests.time_oracle.expressions import EXPRESSIONS
from tests.time_oracle.transitions import Transition, distinct_transitions, zone_names

_CHUNK = 4


def main(processes: int = 2) -> None:
    """Compare everything, with as many processes at once (about ten minutes on two free cores)."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    transitions = distinct_transitions()
    console.print(f"{len(transitions)} distinct transitions, {len(EXPRESSIONS)} expressions", style="dim")
    owed = mismatches = 0
    with ProcessPoolExecutor(processes) as pool:
        tallies = pool.map(_compare_all, transitions, chunksize=_CHUNK)
        for tally in _with_progress(tallies, len(transitions), console):
            owed += tally.occurrences
            mismatches += len(tally.mismatches)
            for mismatch in tally.mismatches:
                console.print(mismatch)
    console.print(
        f"zones={len(zone_names())} transitions={len(transitions)} occurrences={owed} mismatches={mismatches}"
    )
    sys.exit(1 if mismatches else 0)


def _compare_all(transition: Transition) -> Tally:
    return compare(transition, EXPRESSIONS)


def _with_progress(tallies: Iterable[Tally], total: int, console: Console) -> Iterator[Tally]:
    """A bar on a terminal, elsewhere a line for each tenth."""
    if console.is_terminal:
        yield from track(tallies, "transitions", total=total, console=console)
        return
    for number, tally in enumerate(tallies, start=1):
        yield tally
        if number * 10 // total > (number - 1) * 10 // total:
            console.print(f"{number} of {total} transitions")


if __name__ == "__main__":
    typer.run(main)
