"""Starts the programs of the local stack, keeps their logs, and ends them: none outlives this process.

Who ends what:
- `Processes.stop` ends children in the reverse order of their start: SIGTERM, then SIGKILL after the grace.
- Each child leads a session of its own, so the terminal's Ctrl-C reaches only this process, which then stops.
- Should this process die without stopping, SIGKILL included, a guardian ends them.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from local_stack.errors import LocalStackError
from local_stack.guardian import Guardian, gate, gated

__all__ = ["Guardian", "LocalStackError", "Probe", "Processes", "last_lines"]

Probe = Callable[[], Awaitable[bool]]

_POLL = 0.05
_TAIL_BYTES = 64 * 1024


def last_lines(log: Path, lines: int = 20, *, since: int = 0) -> str:
    """The last lines of a log file, indented for an error message; `since` is a byte offset."""
    with suppress(FileNotFoundError), log.open("rb") as file:
        file.seek(max(since, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        found = file.read().decode(errors="replace").splitlines()[-lines:]
        if found:
            return "\n".join(f"  {line}" for line in found)
    return "  (nothing was logged)"


@dataclass(frozen=True)
class _Command:
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path | None
    ready: Probe | None


@dataclass
class _Child:
    name: str
    command: _Command
    log: Path
    log_since: int
    process: asyncio.subprocess.Process
    served: bool  # set once it was ready, this time or an earlier one
    stopping: bool = False  # set when we end it, so that its end is no news
    ended: asyncio.Task[int] = field(init=False)

    def how_it_ended(self) -> str:
        code = self.process.returncode
        return f"exit code {code}" if code is None or code >= 0 else f"killed by {signal.Signals(-code).name}"

    def was_ended(self) -> bool:
        """By a signal, which it may have obeyed in order (exit code 0). What fails by itself ends otherwise."""
        return self.process.returncode is not None and self.process.returncode <= 0

    def complaint(self, what: str) -> LocalStackError:
        tail = last_lines(self.log, since=self.log_since)
        return LocalStackError(f"{self.name} {what}. The last lines of {self.log}:\n{tail}")


@dataclass(frozen=True)
class End:
    """Of a process, that nobody here asked for. `may_return`: it had served, and was ended by a signal. `error`: says
    how it ended, with its last log lines."""

    name: str
    how: str
    may_return: bool
    error: LocalStackError


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
        command = _Command(argv, {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}, cwd, ready)
        return await self._start(name, command, timeout, has_served=False)

    async def start_again(self, name: str, *, timeout: float = 30.0) -> int | None:
        """As it was started before. Returns its pid once it is ready, None if it was ended by a signal meanwhile.

        Errors: as `start`.
        """
        before = self._children[name]
        try:
            return await self._start(name, before.command, timeout, has_served=before.served)
        except LocalStackError:
            if self._children[name].was_ended():
                return None
            raise

    async def _start(self, name: str, command: _Command, timeout: float, *, has_served: bool) -> int:
        child = await self._spawn(name, command, has_served)
        if command.ready is not None:
            await self.wait_until(name, command.ready, timeout)
        child.served = True
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
        raise (await self.next_end()).error

    async def next_end(self) -> End:
        """Waits until a process ends that nobody here stopped; one that ended before this call counts too."""
        while True:
            child = await self._unexpected.get()
            if self._children.get(child.name) is child:  # not stopped or started again since
                how = child.how_it_ended()
                complaint = child.complaint(f"ended unexpectedly ({how})")
                return End(child.name, how, child.served and child.was_ended(), complaint)

    async def end(self, name: str, how: signal.Signals = signal.SIGTERM) -> int:
        """Ends one process by a signal, SIGKILL after the grace, and answers its exit code (below 0: the signal).

        Its end is no news for `watch`. It may be started again under its name.
        """
        await self._end(self._children[name], how)
        return self._children[name].ended.result()

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

    async def _spawn(self, name: str, command: _Command, has_served: bool) -> _Child:
        self._guardian = self._guardian or Guardian()
        log, log_since = self._open_log(name)
        with gate() as (waiting, opening):
            process = await asyncio.create_subprocess_exec(
                *gated(command.argv, log), stdin=waiting, env=command.env, cwd=command.cwd, start_new_session=True
            )
            self._guardian.watch(process.pid)
            os.write(opening, b"go\n")
        child = _Child(name, command, log, log_since, process, has_served)
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

    async def _end(self, child: _Child, how: signal.Signals = signal.SIGTERM) -> None:
        child.stopping = True
        if not child.ended.done():
            with suppress(ProcessLookupError):
                child.process.send_signal(how)
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
