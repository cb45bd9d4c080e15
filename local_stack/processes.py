"""Starts the programs of the local stack, keeps their logs, and ends them: none outlives this process.

Who ends what:
- `Processes.stop` ends children in the reverse order of their start: SIGTERM, then SIGKILL after the grace.
- Each child leads a session of its own, so the terminal's Ctrl-C reaches only this process, which then stops.
- Should this process die without stopping, SIGKILL included, a guardian ends them. It is a small process that
  knows their pids and holds a pipe from here; the pipe's end is the news of the death. A pipe works on every
  OS and survives a change of user; PR_SET_PDEATHSIG does neither, and fires when the starting thread ends.

A child first waits at a gate (`read` in a shell that then becomes the program, so the pid stays). The gate
opens only once the guardian knows the pid: at no moment would a SIGKILL here leave a child behind.

The guardian is this file run as a program in Python's isolated mode: import only the standard library here.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NoReturn

Probe = Callable[[], Awaitable[bool]]

_GATE = 'read -r go && log=$1 && shift && exec "$@" </dev/null >>"$log" 2>&1'
_POLL = 0.05
_GUARDIAN_GRACE = 10.0
_TAIL_BYTES = 64 * 1024


class LocalStackError(Exception):
    """The local stack cannot go on; the message is a sentence for the person who started it."""


class Guardian:
    """Ends the watched processes if this process dies without having called `close`.

    Each gets its first signal at once, the last watched first; after 10 s, SIGKILL for its process group.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, bufsize=0, start_new_session=True
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


def last_lines(log: Path, lines: int = 20, *, since: int = 0) -> str:
    """The last lines of a log file, indented for an error message; `since` is a byte offset."""
    with suppress(FileNotFoundError), log.open("rb") as file:
        file.seek(max(since, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        found = file.read().decode(errors="replace").splitlines()[-lines:]
        if found:
            return "\n".join(f"  {line}" for line in found)
    return "  (nothing was logged)"


@dataclass
class _Child:
    name: str
    log: Path
    log_since: int
    process: asyncio.subprocess.Process
    stopping: bool = False  # set when we end it, so that its end is no news
    ended: asyncio.Task[int] = field(init=False)

    def how_it_ended(self) -> str:
        code = self.process.returncode
        return f"exit code {code}" if code is None or code >= 0 else f"killed by {signal.Signals(-code).name}"

    def complaint(self, what: str) -> LocalStackError:
        tail = last_lines(self.log, since=self.log_since)
        return LocalStackError(f"{self.name} {what}. The last lines of {self.log}:\n{tail}")


class Processes:
    """The child programs of one parent, by name. To be used from one event loop.

    `log_dir` gets `<name>.log` for each, begun afresh by the first start of that name. `grace` is the time in
    seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, log_dir: Path, *, grace: float = 10.0) -> None:
        self._log_dir = log_dir
        self._grace = grace
        self._guardian: Guardian | None = None
        self._children: dict[str, _Child] = {}
        self._unexpected: asyncio.Queue[_Child] = asyncio.Queue()

    async def __aenter__(self) -> Processes:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        cwd: Path | None = None,
        ready: Probe | None = None,
        timeout: float = 30.0,
    ) -> int:
        """Starts `argv` and returns its pid, with `ready` only once that answers True.

        `env` is laid over this process's environment. A name may be started again once its process has ended.
        Errors: LocalStackError if the name is running, or as `wait_until`; the process is left to `stop`.
        """
        if name in self._children and not self._children[name].ended.done():
            raise LocalStackError(f"{name} is running already (pid {self.pid(name)})")
        child = await self._spawn(name, argv, {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}, cwd)
        if ready is not None:
            await self.wait_until(name, ready, timeout)
        return child.process.pid

    async def wait_until(self, name: str, probe: Probe, timeout: float = 30.0) -> None:
        """Asks `probe` until it answers True.

        Errors: LocalStackError with the last log lines if the process ends first, or after `timeout` seconds.
        """
        child = self._children[name]
        asking = asyncio.ensure_future(_until_true(probe))
        try:
            await asyncio.wait({asking, child.ended}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                return asking.result()
            if child.ended.done():
                raise child.complaint(f"ended before it was ready ({child.how_it_ended()})")
            raise child.complaint(f"(pid {child.process.pid}) was not ready within {timeout:g} s")
        finally:
            asking.cancel()

    async def watch(self) -> NoReturn:
        """Waits until a process ends that nobody stopped (also one that ended before this call), and raises.

        Errors: LocalStackError that names the process and how it ended, with its last log lines.
        """
        while True:
            child = await self._unexpected.get()
            if self._children.get(child.name) is child:  # not stopped or started again since
                raise child.complaint(f"ended unexpectedly ({child.how_it_ended()})")

    async def stop(self) -> None:
        """Ends every process, the last started first. Stopping twice is fine; so is starting afterwards."""
        while self._children:
            child = next(reversed(self._children.values()))
            await self._end(child)
            del self._children[child.name]
        if self._guardian is not None:
            self._guardian.close()
            self._guardian = None

    def pid(self, name: str) -> int:
        return self._children[name].process.pid

    def log_path(self, name: str) -> Path:
        return self._log_dir / f"{name}.log"

    def tail(self, name: str, lines: int = 20) -> str:
        """The last lines that `name` wrote, indented by two spaces."""
        return last_lines(self.log_path(name), lines)

    async def _spawn(self, name: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path | None) -> _Child:
        self._guardian = self._guardian or Guardian()
        log, log_since = self._open_log(name)
        with gate() as (waiting, opening):
            process = await asyncio.create_subprocess_exec(
                *gated(argv, log), stdin=waiting, env=env, cwd=cwd, start_new_session=True
            )
            self._guardian.watch(process.pid)
            os.write(opening, b"go\n")
        child = _Child(name, log, log_since, process)
        child.ended = asyncio.create_task(self._reap(child), name=f"reap {name}")
        self._children.pop(name, None)
        self._children[name] = child
        return child

    def _open_log(self, name: str) -> tuple[Path, int]:
        log = self.log_path(name).absolute()
        log.parent.mkdir(parents=True, exist_ok=True)
        if name not in self._children:
            log.write_bytes(b"")
        return log, log.stat().st_size

    async def _reap(self, child: _Child) -> int:
        code = await child.process.wait()
        _kill_group(child.process.pid)
        if self._guardian is not None:
            self._guardian.forget(child.process.pid)
        if not child.stopping:
            self._unexpected.put_nowait(child)
        return code

    async def _end(self, child: _Child) -> None:
        child.stopping = True
        if not child.ended.done():
            with suppress(ProcessLookupError):
                child.process.terminate()
            await asyncio.wait({child.ended}, timeout=self._grace)
        if not child.ended.done():
            _kill_group(child.process.pid)
        await child.ended


async def _until_true(probe: Probe) -> None:
    while not await probe():  # noqa: ASYNC110 - what we ask is another process, which cannot set an Event
        await asyncio.sleep(_POLL)


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        os.killpg(leader, signal.SIGKILL)


def _guard(orders: Iterable[str]) -> None:
    """The guardian's life: take orders until the pipe ends, then end what is still watched."""
    watched: dict[int, int] = {}
    for order in orders:
        verb, *numbers = order.split()
        if verb == "watch":
            watched[int(numbers[0])] = int(numbers[1])
        else:
            watched.pop(int(numbers[0]), None)
    for pid in reversed(watched):
        with suppress(ProcessLookupError):
            os.kill(pid, watched[pid])
    deadline = time.monotonic() + _GUARDIAN_GRACE
    while any(map(_exists, watched)) and time.monotonic() < deadline:
        time.sleep(_POLL)
    for pid in watched:
        _kill_group(pid)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    _guard(sys.stdin)
