"""`make up`, and a person who kills what runs to see it recover."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from carillon import Client
from carillon.v1 import run_pb2

from tests.e2e.test_local_stack import below, local_stack, printed
from tests.ports import lasting_port

PORTS = ("CARILLON_PORT", "CARILLON_METRICS_PORT", "CARILLON_WORKER_PORT")


def settings(home: Path) -> dict[str, str]:
    return {"CARILLON_HOME": str(home), **{name: str(lasting_port()) for name in PORTS}}


async def test_a_killed_scheduler_and_worker_are_started_again_and_go_on(tmp_path: Path) -> None:
    given = settings(tmp_path / "home")
    async with local_stack("up", **given) as up:
        text = await printed(up, "Ctrl-C stops everything")
        [token] = re.findall(r"^export TOKEN=(\S+)$", text, re.MULTILINE)
        pids = dict(re.findall(r"^(scheduler|worker) +pid (\d+),", text, re.MULTILINE))
        for name, pid in pids.items():
            os.kill(int(pid), signal.SIGKILL)
            told = await printed(up, f"{name} is back")
            assert f"{name} has ended (killed by SIGKILL); it is started again in 0.5 s" in told
            assert f"(pid {pid})" not in told
        async with Client(f"127.0.0.1:{given['CARILLON_PORT']}", token=token) as client:
            [run] = await client.trigger_job("email-service/weekly-digest")
            seen = [change async for change in client.watch_runs(run=run.name)]
        assert seen[-1].state == run_pb2.RUN_STATE_COMPLETED
        up.send_signal(signal.SIGINT)
        await printed(up, "nothing is left running")
        assert await up.wait() == 130
    assert below(tmp_path / "home") == []


async def test_a_scheduler_that_ends_by_itself_ends_the_stack_with_its_reason(tmp_path: Path) -> None:
    async with local_stack("up", CARILLON_LEASE_SECONDS="6", **settings(tmp_path / "home")) as up:
        text = await printed(up, "at least three times CARILLON_HEARTBEAT_SECONDS")
        assert "scheduler ended before it was ready (exit code" in text
        assert await up.wait() == 1
    assert below(tmp_path / "home") == []
