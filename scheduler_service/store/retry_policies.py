"""The retry policy of a live run: what statements that read it for a decision have in their last columns.

Whatever stands there is a policy. The checks on `jobs` see to it; but if they are gone, no row shall stop the others
that are decided about with it, and no interval be longer than Python can say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, LiteralString

from scheduler_service.domain.retry import RetryPolicy

_SHORT: LiteralString = "least(greatest({}, interval '0'), interval '7 days')"
OF_THE_JOB: LiteralString = f"""
{_SHORT.format("j.retry_delay")}, least(greatest(j.retry_multiplier, 1), 100), {_SHORT.format("j.retry_max_delay")},
least(greatest(j.retry_jitter, 0), 1), j.never_retry"""
"""After the run's own `max_attempts`; `j` is `jobs`."""


def policy_of(row: Sequence[Any]) -> RetryPolicy:
    """From a row that ends in `max_attempts` and these columns."""
    max_attempts, delay, multiplier, max_delay, jitter, never_retry = row[-6:]
    return RetryPolicy(max_attempts, delay, multiplier, max_delay, jitter, _texts(never_retry))


def _texts(codes: Iterable[Any]) -> tuple[str, ...]:
    """Those among what may be of several dimensions, and hold nulls."""
    return tuple(text for code in codes for text in (_texts(code) if isinstance(code, list) else (code,)) if text)
