from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from local_stack.processes import Guardian, LocalStackError, Probe, Processes

REPOSITORY = Path(__file__).parents[3]
SAYS_READY = "import signal, sys; print('ready'); signal.pause()"
IGNORES_SIGTERM = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); signal.pause()"
HAS_A_CHILD = """
import signal, subprocess
child = subprocess.Popen(["sleep", "600"])
print("child", child.pid)
signal.pause()
"""
NOTES_ITS_END = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("ready")
signal.sigwait([signal.SIGTERM])
with open(sys.argv[1], "a") as ends:
    ends.write(sys.argv[2] + "\\n")
"""
A_PARENT = """
import asyncio, sys
from pathlib import Path
from local_stack.processes import Processes

async def main() -> None:
    processes = Processes(Path(sys.argv[1]))
    pids = [await processes.start(name, ["sleep", "600"]) for name in ("one", "two")]
    print(*pids, flush=True)
    await processes.watch()

asyncio.run(main())
"""


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Processes]:
    async with Processes(tmp_path / "logs", grace=10) as started:
        yield started


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", program, *arguments]


def wrote(processes: Processes, name: str, text: str = "ready") -> Probe:
    """Whether it wrote a line with this, to its end: the parts of a line come one by one."""

    async def probe() -> bool:
        lines = processes.log_path(name).read_text().splitlines(keepends=True)
        return any(text in line and line.endswith("\n") for line in lines)

    return probe


async def never() -> bool:
    return False


def alive(pid: int) -> bool:
    """A zombie, whom only its new parent can reap, counts as dead."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    if not Path("/proc/self").exists():
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # reaped since
        return False


def assert_soon_dead(*pids: int, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, f"still alive: {[pid for pid in pids if alive(pid)]}"
        time.sleep(0.02)


async def test_a_process_is_ready_once_its_probe_says_so(processes: Processes) -> None:
    pid = await processes.start("greeter", python(SAYS_READY), ready=wrote(processes, "greeter"))
    assert alive(pid)
    assert processes.pid("greeter") == pid
    assert processes.tail("greeter") == "  ready"


async def test_stdout_and_stderr_go_to_a_log_of_the_process(processes: Processes) -> None:
    program = "import os, sys; print(os.environ['WORD']); sys.exit('and a complaint')"
    await processes.start("speaker", python(program), {"WORD": "a word"})
    with pytest.raises(LocalStackError):
        await asyncio.wait_for(processes.watch(), timeout=60)
    assert processes.log_path("speaker").read_text() == "a word\nand a complaint\n"


async def test_an_end_before_ready_is_told_with_the_last_log_lines(processes: Processes) -> None:
    program = "print('no such database'); raise SystemExit(3)"
    with pytest.raises(LocalStackError) as told:
        await processes.start("scheduler", python(program), ready=never)
    log = processes.log_path("scheduler")
    assert str(told.value) == (
        f"scheduler ended before it was ready (exit code 3). The last lines of {log}:\n  no such database"
    )


async def test_a_process_that_does_not_become_ready_in_time_is_told(processes: Processes) -> None:
    await processes.start("scheduler", python(SAYS_READY), ready=wrote(processes, "scheduler"))
    with pytest.raises(LocalStackError, match=r"scheduler \(pid \d+\) was not ready within 0.1 s(.|\n)*ready"):
        await processes.wait_until("scheduler", never, timeout=0.1)


async def test_a_program_that_does_not_exist_is_told(processes: Processes) -> None:
    with pytest.raises(LocalStackError, match=r"exit code 127(.|\n)*/no/such/program"):
        await processes.start("typo", ["/no/such/program"], ready=never)


async def test_an_unexpected_end_is_noticed_with_its_cause(processes: Processes) -> None:
    await processes.start("steady", python(SAYS_READY))
    await processes.start("worker", python(SAYS_READY), ready=wrote(processes, "worker"))
    os.kill(processes.pid("worker"), signal.SIGKILL)
    with pytest.raises(LocalStackError, match=r"worker ended unexpectedly \(killed by SIGKILL\)(.|\n)*ready"):
        await asyncio.wait_for(processes.watch(), timeout=60)


async def test_an_ended_process_can_be_started_again_and_keeps_its_log(processes: Processes) -> None:
    await processes.start("worker", python("print('first')"))
    with pytest.raises(LocalStackError, match="exit code 0"):
        await asyncio.wait_for(processes.watch(), timeout=60)
    argv = python("import signal; print('second'); signal.pause()")
    await processes.start("worker", argv, ready=wrote(processes, "worker", "second"))
    assert processes.log_path("worker").read_text() == "first\nsecond\n"


async def test_a_running_name_is_not_started_twice(processes: Processes) -> None:
    pid = await processes.start("worker", python(SAYS_READY))
    with pytest.raises(LocalStackError, match=rf"worker is running already \(pid {pid}\)"):
        await processes.start("worker", python(SAYS_READY))


async def test_one_process_can_be_ended_by_a_signal_which_is_no_unexpected_end(processes: Processes) -> None:
    await processes.start("victim", python(SAYS_READY), ready=wrote(processes, "victim"))
    await processes.start("steady", python(SAYS_READY), ready=wrote(processes, "steady"))
    watching = asyncio.ensure_future(processes.watch())
    assert await processes.end("victim", signal.SIGKILL) == -signal.SIGKILL
    assert await processes.end("victim") == -signal.SIGKILL
    os.kill(processes.pid("steady"), signal.SIGKILL)
    with pytest.raises(LocalStackError, match="steady ended unexpectedly"):
        await asyncio.wait_for(watching, timeout=60)


async def test_stop_ends_in_reverse_order_and_is_no_unexpected_end(processes: Processes, tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    for name in ("database", "scheduler", "worker"):
        argv = python(NOTES_ITS_END, str(ends), name)
        await processes.start(name, argv, ready=wrote(processes, name))
    watching = asyncio.ensure_future(processes.watch())
    await processes.stop()
    assert ends.read_text().split() == ["worker", "scheduler", "database"]
    assert not watching.done()
    watching.cancel()


async def test_what_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    async with Processes(tmp_path, grace=0.1) as processes:
        argv = python(IGNORES_SIGTERM)
        pid = await processes.start("stubborn", argv, ready=wrote(processes, "stubborn"))
    assert not alive(pid)


async def test_what_a_process_started_itself_is_ended_with_it(processes: Processes) -> None:
    await processes.start("parent", python(HAS_A_CHILD), ready=wrote(processes, "parent", "child"))
    grandchild = int(processes.tail("parent").split()[-1])
    await processes.stop()
    assert_soon_dead(grandchild)


async def test_children_do_not_get_the_terminals_interrupt(processes: Processes) -> None:
    pid = await processes.start("worker", python(SAYS_READY))
    assert os.getsid(pid) == pid != os.getsid(0)


def test_children_and_guardian_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        python(A_PARENT, str(tmp_path)),
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert parent.stdout is not None
    with parent, parent.stdout as said:
        children = [int(pid) for pid in said.readline().split()]
        assert all(map(alive, children))
        parent.kill()
    assert_soon_dead(*children)


async def test_the_guardian_ends_what_is_watched_and_spares_what_it_was_told_to_forget() -> None:
    guardian = Guardian()
    spared = await asyncio.create_subprocess_exec("sleep", "60")
    watched = await asyncio.create_subprocess_exec("sleep", "60")
    guardian.watch(spared.pid)
    guardian.forget(spared.pid)
    guardian.watch(watched.pid, signal.SIGUSR1)
    await asyncio.to_thread(guardian.close)
    assert not alive(guardian.pid)
    assert alive(spared.pid)
    spared.kill()
    await spared.wait()
    assert await asyncio.wait_for(watched.wait(), timeout=60) == -signal.SIGUSR1


def test_a_guardian_that_somebody_ended_is_told_when_it_is_needed() -> None:
    guardian = Guardian()
    os.kill(guardian.pid, signal.SIGKILL)
    assert_soon_dead(guardian.pid)
    with pytest.raises(LocalStackError, match=rf"guardian process \(pid {guardian.pid}\).*has ended"):
        guardian.watch(os.getpid())
    guardian.close()
