"""cronsim as a third opinion, where it is right.

cronsim 2.7 has our rule for days, for fixed times in gaps and repeats, and for literal ones. It is left out where:

- it does not know the form: `@daily` and its like, `@every`, and names before `L` (`sunL`);
- a step follows a range of one (`9-9/2`), which it reads as `9/2`;
- an expression follows the clock, and the clock does not change on the full hour by full hours (Lord Howe, Chatham,
  Pyongyang, Caracas, St John's at 00:01): it steps by elapsed hours there, passes over times, and may never end.

Where several local times of a gap make one instant, it names that instant for each; we compare instants.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from itertools import takewhile

from cronsim import CronSim

from tests.time_oracle.grammar import CronRule, EveryRule
from tests.time_oracle.oracle import Window, clock
from tests.time_oracle.transitions import Transition

HOUR = timedelta(hours=1)
_UNKNOWN = re.compile(r"@|[a-z]{3}L\b", re.IGNORECASE)
_STEP_AFTER_RANGE_OF_ONE = re.compile(r"\b(\d+)-\1/")


def between(
    expression: str, rule: CronRule | EveryRule, transition: Transition, window: Window
) -> list[datetime] | None:
    """The instants in the window, each once; None where cronsim is not asked."""
    if isinstance(rule, EveryRule) or _UNKNOWN.search(expression) or _STEP_AFTER_RANGE_OF_ONE.search(expression):
        return None
    if rule.literal and not _changes_by_full_hours(transition):
        return None
    steps = CronSim(expression, window.after.astimezone(clock(transition.time_zone)))
    instants = (step.astimezone(UTC) for step in steps)
    return sorted(set(takewhile(lambda instant: instant <= window.until, instants)))


def _changes_by_full_hours(transition: Transition) -> bool:
    local = transition.instant + transition.before
    return local.minute == 0 and transition.shift % HOUR == timedelta()
