"""What processes logged that no fault explains: errors that nobody foresaw, each with its traceback."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

_AWAY = ("OperationalError", "InterfaceError", "AdminShutdown", "CannotConnectNow", "TooManyConnections")
_TRACEBACK = "Traceback (most recent call last):"


def unforeseen(logs: Iterable[Path]) -> list[str]:
    """A sentence for each sort of them, with how often it came. That the database is away explains the driver's errors;
    whatever else has a traceback is a fault of the process."""
    return [f"{name}: {what} ({times} times)" for (name, what), times in Counter(_all(sorted(logs))).items()]


def _all(logs: Iterable[Path]) -> Iterator[tuple[str, str]]:
    for log in logs:
        lines = log.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines):
            if '"exception": [' in line and not _is_away(line):
                yield log.stem, _said(line)
            elif _TRACEBACK in line:
                yield log.stem, next((each for each in lines[number + 1 :] if not each.startswith((" ", "\t"))), "")


def _is_away(line: str) -> bool:
    return any(f'"exc_type": "{error}"' in line for error in _AWAY)


def _said(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:  # cut off by the end of its process
        return line[:200]
    error = entry["exception"][0]
    return f"{entry['event']}: {error['exc_type']}: {error['exc_value']}"
