"""What handlers leave behind: a line when an attempt begins and one when it is done, each synced before work goes on.

A file for each process, so that nobody's line can tear another's. Instants are of the machine's monotonic clock, which
is one for all processes and which nobody moves; whoever reads them says what the wall clock was.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.faults.evidence import Effect, Ending

_SUFFIX = ".effects"


class EffectFile:
    """Of this process. `worker`: the name under which faults and records know it."""

    def __init__(self, folder: Path, worker: str) -> None:
        self._worker = worker
        name = f"{worker}-{os.getpid()}{_SUFFIX}"
        self._file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._number = 0

    def begin(self, run_id: UUID, attempt: int, job: str, tenant: str, marker: str, scheduled_for: datetime) -> int:
        """Notes that an attempt began. Answers its number, to be given to `end`."""
        self._number += 1
        self._append(
            {
                "number": self._number,
                "run": str(run_id),
                "attempt": attempt,
                "job": job,
                "tenant": tenant,
                "marker": marker,
                "scheduled_for": scheduled_for.isoformat(),
                "worker": self._worker,
                "pid": os.getpid(),
                "began": time.monotonic(),
            }
        )
        return self._number

    def end(self, number: int, outcome: Ending) -> None:
        """Notes that it is done, and what is about to be reported."""
        self._append({"number": number, "ended": time.monotonic(), "outcome": outcome})

    def result(self, attempt: int) -> str:
        """What an attempt says of itself in its metadata."""
        return f"{attempt}/{self._worker}/{os.getpid()}"

    def _append(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fsync(self._file)


def read_effects(folder: Path) -> list[Effect]:
    """All of all processes. A last line without its end was not yet written when its process was killed."""
    boot = datetime.now(UTC) - timedelta(seconds=time.monotonic())
    return [effect for file in sorted(folder.glob(f"*{_SUFFIX}")) for effect in _of_process(file, boot)]


def _of_process(file: Path, boot: datetime) -> Iterator[Effect]:
    lines = [json.loads(line) for line in file.read_text().split("\n")[:-1]]
    ends = {line["number"]: line for line in lines if "ended" in line}
    for line in lines:
        if "began" not in line:
            continue
        end = ends.get(line["number"])
        yield Effect(
            run_id=UUID(line["run"]),
            attempt=line["attempt"],
            job=line["job"],
            tenant=line["tenant"],
            marker=line["marker"],
            scheduled_for=datetime.fromisoformat(line["scheduled_for"]),
            worker=line["worker"],
            pid=line["pid"],
            began=boot + timedelta(seconds=line["began"]),
            ended=None if end is None else boot + timedelta(seconds=end["ended"]),
            outcome=None if end is None else end["outcome"],
        )
