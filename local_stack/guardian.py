"""Ends what a parent started, should the parent die without doing so itself, SIGKILL included.

The guardian is a small process that knows the children's pids and holds a pipe from the parent; the pipe's end is
the news of its death. A pipe works on every OS and survives a change of user; PR_SET_PDEATHSIG does neither, and
fires when the starting thread ends.

A child first waits at a gate (`read` in a shell that then becomes the program, so the pid stays). The gate
opens only once the guardian knows the pid: at no moment would a SIGKILL of the parent leave a child behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from local_stack.errors import LocalStackError

_PROGRAM = Path(__file__).with_name("guardian_program.py")
_GATE = 'read -r go && log=$1 && shift && exec "$@" </dev/null >>"$log" 2>&1'


class Guardian:
    """Ends the watched processes if this process dies without having called `close`.

    Each gets its first signal at once, the last watched first; after 10 s, SIGKILL for its process group.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PROGRAM)], stdin=subprocess.PIPE, bufsize=0, start_new_session=True
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def watch(self, pid: int, first_signal: signal.Signals = signal.SIGTERM) -> None:
        """Errors: LocalStackError if somebody ended the guardian."""
        try:
            self._tell(f"watch {pid} {int(first_signal)}\n")
        except BrokenPipeError:
            raise LocalStackError(
                f"the guardian process (pid {self.pid}), which cleans up if this one is killed, has ended; "
                "stop and start again"
            ) from None

    def forget(self, pid: int) -> None:
        """To be called once `pid` has been reaped, before the OS may use the number again."""
        with suppress(BrokenPipeError):
            self._tell(f"forget {pid}\n")

    def close(self) -> None:
        """Ends whatever is still watched, then the guardian."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _tell(self, order: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(order.encode())


@contextmanager
def gate() -> Iterator[tuple[int, int]]:
    """A pipe for one `gated` start: (the child's stdin, where to write a line once the child is watched)."""
    waiting, opening = os.pipe()
    try:
        yield waiting, opening
    finally:
        os.close(waiting)
        os.close(opening)


def gated(argv: Sequence[str], log: Path) -> list[str]:
    """The command that waits for a line on stdin, then becomes `argv` with its output appended to `log`."""
    return ["/bin/sh", "-c", _GATE, "sh", str(log), *argv]
