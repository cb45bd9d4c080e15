"""How an attempt ends."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from carillon.structs import Seconds, to_duration

HANDLER_ERROR = "HANDLER_ERROR"
ATTEMPT_TIMEOUT = "ATTEMPT_TIMEOUT"
CANCELLED = "CANCELLED"
BAD_PAYLOAD = "BAD_PAYLOAD"
BAD_RESULT = "BAD_RESULT"

LONGEST_RETRY_AFTER = timedelta(days=7).total_seconds()
"""The scheduler takes no longer wait, in seconds."""

_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,62}")


@dataclass(frozen=True, slots=True)
class ItemCounts:
    """How many items an attempt worked through."""

    processed: int = 0
    succeeded: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Completed:
    """The work is done.

    items: counts, where the target counted for itself; `None` counts what `run.item` recorded.
    metrics, metadata: JSON objects of at most 64 KiB each, kept with the run.
    """

    items: ItemCounts | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Failed(Exception):
    """The attempt failed; the job's retry policy decides what follows.

    code: a short word of capitals, digits and underscores, such as `EXPORT_EMPTY`; a job's `never_retry` may name it.
    message: one sentence for people, at most 4 KiB. detail: more, at most 16 KiB; longer texts are cut.
    retry: False ends the run, whatever attempts it has left: trying again would change nothing.
    retry_after: seconds, or a timedelta, until the next attempt, in place of the policy's delay and at most its
    longest; more than 7 days count as 7 days.

    Raises ValueError or TypeError for a code that is none, for a `retry_after` that is no time to wait, and for both
    `retry=False` and `retry_after`.
    """

    def __init__(
        self, code: str, message: str, detail: str = "", *, retry: bool = True, retry_after: Seconds | None = None
    ) -> None:
        if not is_code(code):
            raise ValueError(
                f"Failed(code, message): the code {code!r} must be capitals, digits and underscores, "
                "such as 'EXPORT_EMPTY', at most 63 characters"
            )
        if not isinstance(retry, bool):
            raise TypeError(f"Failed(..., retry=...) must be True or False, not {retry!r}")
        if not retry and retry_after is not None:
            raise ValueError(
                "Failed(..., retry=False, retry_after=...) says two things: leave out retry_after to end the run, or "
                "retry=False to have it tried again"
            )
        super().__init__(code, message, detail)
        self.code = code
        self.message = str(message)
        self.detail = str(detail)
        self.retry = retry
        self.retry_after = None if retry_after is None else _wait(retry_after)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def took_too_long(seconds: float) -> Failed:
    """How an attempt fails that was given that time."""
    return Failed(ATTEMPT_TIMEOUT, f"the attempt took longer than {seconds:g} s")


def is_code(text: str) -> bool:
    """Whether `text` can be a failure's code."""
    return _CODE.fullmatch(text) is not None


def _wait(given: Seconds) -> float:
    """In seconds, as the scheduler takes it. Raises ValueError or TypeError."""
    seconds: Any = given.total_seconds() if isinstance(given, timedelta) else given
    if isinstance(seconds, (int, float)) and LONGEST_RETRY_AFTER < seconds < math.inf:
        return LONGEST_RETRY_AFTER
    duration = to_duration(seconds, "Failed(..., retry_after=...)")
    return float(duration.seconds + duration.nanos / 1e9)


class Cancelled(asyncio.CancelledError):
    """The run was asked to stop.

    A `CancelledError`, so that `except Exception` lets it pass in plain functions as it does in async ones.
    """
