"""`make faults`: breaks Carillon for a quarter of an hour, and judges what is left."""

from __future__ import annotations

import asyncio
import builtins
import pickle
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from local_stack.errors import LocalStackError
from tests.faults.checker import Thresholds, judge
from tests.faults.fault_run import FaultRun, NotDrained, Outcome, site_of_its_own
from tests.faults.nemesis import KINDS
from tests.faults.plan import Plan
from tests.faults.site import NotReady

SENTENCES = (NotReady, NotDrained, LocalStackError)
"""What keeps a run from its end, and says all there is to say."""


def main(
    seconds: Annotated[float, typer.Option(help="Of load, with faults; longer if not everything was broken.")] = 780.0,
    seed: Annotated[
        int | None, typer.Option(help="Of what is broken, and when. Default: another one each time.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="A folder for logs, effects, evidence and database, which then stay.")
    ] = None,
) -> None:
    """Exits 0 only if the judgement, which is the last line, says `verdict=pass`."""
    plan = Plan(seconds, secrets.randbelow(1_000_000) if seed is None else seed, overtime=seconds / 2)
    home = Path(tempfile.mkdtemp(prefix="carillon-faults-")) if keep is None else keep.absolute()
    passed = False
    try:
        passed = _run(plan, home, keep_database=keep is not None)
    finally:
        if passed and keep is None:
            shutil.rmtree(home, ignore_errors=True)
        elif not passed:
            _say(f"logs and effects are in {home}")
    sys.exit(not passed)


def _run(plan: Plan, home: Path, *, keep_database: bool) -> bool:
    began = time.monotonic()

    def say(line: str) -> None:
        _say(f"[{time.monotonic() - began:5.0f}s] {line}")

    try:
        outcome = asyncio.run(_broken(plan, home, say, keep_database))
    except SENTENCES as error:
        _say(str(error))
        return False
    except builtins.BaseExceptionGroup as errors:
        # What no sentence tells is shown whole.
        if errors.split(SENTENCES)[1] is not None:
            raise
        for sentence in _leaves(errors):
            _say(sentence)
        return False
    evidence = outcome.evidence
    (home / "evidence.pickle").write_bytes(pickle.dumps(evidence))
    _say(outcome.table)
    _say(outcome.figures())
    for sentence in outcome.unforeseen:
        _say(f"  in a log, unforeseen: {sentence}")
    judgement = judge(evidence, Thresholds(kinds=KINDS))
    for reason in judgement.reasons:
        _say(f"  {reason}")
    _say(judgement.line())
    return judgement.verdict == "pass"


def _leaves(error: Any) -> Iterator[str]:
    """What the errors of a group say, and of the groups in it."""
    if not hasattr(error, "exceptions"):
        yield str(error)
    for each in getattr(error, "exceptions", ()):
        yield from _leaves(each)


async def _broken(plan: Plan, home: Path, say: Callable[[str], None], keep_database: bool) -> Outcome:
    """Ctrl-C cancels this, and all that was started is ended on the way out."""
    async with site_of_its_own(home, plan, keep_database=keep_database) as site:
        return await FaultRun(site, plan, say).run()


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - what this program is for


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
