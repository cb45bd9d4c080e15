"""PostgreSQL's postmaster as a process: whether it is there and ready, and how it is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def end_leftover(pgdata: Path) -> None:
    """Ends a postmaster that still serves this data, though the process that started it is gone."""
    pid = _recorded_pid(pgdata)
    if pid is None:
        return
    if not _serves(pid, pgdata):
        # A stranger may have the pid now; PostgreSQL would take it for a postmaster and refuse to start.
        # Children of the old postmaster it would still find, by the shared memory that they hold.
        if _exists(pid):
            (pgdata / "postmaster.pid").unlink(missing_ok=True)
        return
    for how in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(pid, how)
        poll(lambda: not _serves(pid, pgdata), seconds=15)
        if not _serves(pid, pgdata):
            return


def is_ready(pgdata: Path, pid: int) -> bool:
    """Line 1 of postmaster.pid is the pid, line 8 the status (PostgreSQL's miscinit.h)."""
    with suppress(FileNotFoundError):
        lines = (pgdata / "postmaster.pid").read_text().splitlines()
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"
    return False


def end(postmaster: subprocess.Popen[bytes]) -> None:
    """Fast shutdown, then immediate, then SIGKILL. The OS may then use the pid again."""
    for how, seconds in ((signal.SIGINT, 30), (signal.SIGQUIT, 10), (signal.SIGKILL, 10)):
        postmaster.send_signal(how)
        with suppress(subprocess.TimeoutExpired):
            postmaster.wait(seconds)
            return


def poll(condition: Callable[[], bool], *, seconds: float) -> None:
    """Returns when the condition holds, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def environment() -> dict[str, str]:
    """Nothing of the caller's PG* variables, which would steer PostgreSQL's programs elsewhere."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _recorded_pid(pgdata: Path) -> int | None:
    with suppress(FileNotFoundError, ValueError, IndexError):
        return int((pgdata / "postmaster.pid").read_text().splitlines()[0])
    return None


def _exists(pid: int) -> bool:
    with suppress(OSError):
        os.kill(pid, 0)
        return True
    return False


def _serves(pid: int, pgdata: Path) -> bool:
    """Whether this live process is the postmaster of this data; after a reboot the pid may be anybody's."""
    if Path("/proc/self").exists():
        with suppress(OSError):
            return Path(f"/proc/{pid}/cwd").readlink() == pgdata.resolve()
        return False
    listing = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False)
    return str(pgdata) in listing.stdout
