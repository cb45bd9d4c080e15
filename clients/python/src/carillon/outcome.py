"""How an attempt ends."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HANDLER_ERROR = "HANDLER_ERROR"
ATTEMPT_TIMEOUT = "ATTEMPT_TIMEOUT"
CANCELLED = "CANCELLED"
BAD_PAYLOAD = "BAD_PAYLOAD"
BAD_RESULT = "BAD_RESULT"

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

    code: a short word of capitals, digits and underscores, such as `EXPORT_EMPTY`.
    message: one sentence for people, at most 4 KiB. detail: more, at most 16 KiB; longer texts are cut.
    """

    def __init__(self, code: str, message: str, detail: str = "") -> None:
        if not _CODE.fullmatch(code):
            raise ValueError(
                f"Failed(code, message): the code {code!r} must be capitals, digits and underscores, "
                "such as 'EXPORT_EMPTY', at most 63 characters"
            )
        super().__init__(code, message, detail)
        self.code = code
        self.message = str(message)
        self.detail = str(detail)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class Cancelled(asyncio.CancelledError):
    """The run was asked to stop.

    A `CancelledError`, so that `except Exception` lets it pass in plain functions as it does in async ones.
    """
