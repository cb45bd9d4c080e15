"""What a service asks to follow its failure, in the headers of its answer.

`Carillon-Retry: false` ends the run: trying again changes nothing. `Retry-After` (RFC 9110, 10.2.3) says when the next
attempt is due, as seconds or as a date; the job's longest delay bounds it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from carillon.outcome import LONGEST_RETRY_AFTER

RETRY = "Carillon-Retry"
RETRY_AFTER = "Retry-After"
_SHOWN = 60
_SECONDS = re.compile(r"[0-9]+", re.ASCII)
# More digits than the longest wait has, and few enough to be read.
_MOST_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Asked:
    """`retry_after` is in seconds; None leaves it to the job's policy. `problem`: what could not be read, as the rest
    of a sentence."""

    retry: bool = True
    retry_after: float | None = None
    problem: str = ""


def asked_by(headers: Mapping[str, str], now: datetime) -> Asked:
    """What the headers of a failure ask for. `now` counts where the answer does not say when it was made."""
    word = headers.get(RETRY, "true").strip().lower()
    if word == "false":
        return Asked(retry=False)
    problem = "" if word == "true" else f"; its {RETRY} {_quoted(headers[RETRY])} is neither true nor false"
    if (when := headers.get(RETRY_AFTER)) is None:
        return Asked(problem=problem)
    try:
        return Asked(retry_after=_wait(when.strip(), _made_at(headers, now)), problem=problem)
    except ValueError:
        return Asked(problem=f"{problem}; its {RETRY_AFTER} {_quoted(when)} is neither seconds nor a date")


def bounded(seconds: float) -> float | None:
    """A wait from 0 s to the longest there is. A time that has passed says nothing of how long to wait: None."""
    return min(seconds, LONGEST_RETRY_AFTER) if seconds >= 0 else None


def _wait(text: str, made_at: datetime) -> float | None:
    if _SECONDS.fullmatch(text):
        digits = text.lstrip("0")
        return bounded(float(digits or 0)) if len(digits) <= _MOST_DIGITS else LONGEST_RETRY_AFTER
    return bounded((_instant(text) - made_at).total_seconds())


def _made_at(headers: Mapping[str, str], now: datetime) -> datetime:
    """By the clock of the service, which its dates are read from too."""
    try:
        return _instant(headers["Date"])
    except (KeyError, ValueError):
        return now


def _instant(text: str) -> datetime:
    """The instant of an HTTP date in any of its three forms, which all are UTC. Raises ValueError."""
    try:
        found = parsedate_to_datetime(text)
        return found.astimezone(timezone.utc) if found.tzinfo else found.replace(tzinfo=timezone.utc)
    except (ValueError, TypeError, OverflowError, IndexError):
        raise ValueError("no HTTP date") from None


def _quoted(text: str) -> str:
    return repr("".join(filter(str.isprintable, text))[:_SHOWN])
