"""`make demo` and `make up`, as people run them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
from carillon import Client
from carillon.v1 import run_pb2

from tests.e2e.cluster import PATIENCE, eventually
from tests.ports import lasting_port

ROOT = Path(__file__).parent.parent.parent


@asynccontextmanager
async def local_stack(*arguments: str, **environment: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "local_stack", *arguments),
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=PIPE,
        stderr=STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def printed(process: Process, words: str) -> str:
    """All lines up to the one with these words."""
    assert process.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(2 * PATIENCE):
        while not lines or words not in lines[-1]:
            line = await process.stdout.readline()
            assert line, f"it ended without {words!r}:\n{''.join(lines)}"
            lines.append(line.decode())
    return "".join(lines)


def below(home: Path) -> list[str]:
    """Processes that still use this folder."""
    return [
        " ".join(process.info["cmdline"] or ())
        for process in psutil.process_iter(["cmdline", "environ"])
        if str(home) in " ".join(process.info["cmdline"] or ()) or home_of(process) == str(home)
    ]


def home_of(process: psutil.Process) -> str | None:
    return (process.info["environ"] or {}).get("CARILLON_HOME")


async def test_the_demo_shows_that_records_and_deliveries_agree() -> None:
    async with local_stack("demo", "--seconds", "4") as demo:
        output, _ = await asyncio.wait_for(demo.communicate(), 3 * PATIENCE)
    last = output.decode().strip().splitlines()[-1]
    figures = re.fullmatch(r"demo: runs=(\d+) completed=(\d+) messages=(\d+) received=(\d+) lost=0", last)
    assert figures, output.decode()
    runs, completed, messages, received = map(int, figures.groups())
    assert runs == completed >= 12
    assert messages == received >= 12
    assert demo.returncode == 0


async def test_up_serves_survives_the_death_of_its_parent_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ports = {name: str(lasting_port()) for name in ("CARILLON_PORT", "CARILLON_METRICS_PORT", "CARILLON_WORKER_PORT")}
    settings = {"CARILLON_HOME": str(tmp_path / "home"), **ports}
    async with local_stack("up", **settings) as up:
        text = await printed(up, "Ctrl-C stops everything")
        assert f"127.0.0.1:{ports['CARILLON_PORT']} (gRPC)" in text
        assert len(re.findall(r"buf curl", text)) == 3

        other = {**settings, **{name: str(lasting_port()) for name in ports}}
        async with local_stack("up", **other) as second:
            refused, _ = await asyncio.wait_for(second.communicate(), PATIENCE)
        assert second.returncode == 1
        assert "another" in refused.decode()
        assert "Traceback" not in refused.decode()

        async with local_stack("up", **{**settings, "CARILLON_HOME": str(tmp_path / "other")}) as third:
            refused, _ = await asyncio.wait_for(third.communicate(), PATIENCE)
        assert f"port {ports['CARILLON_PORT']}" in refused.decode()

        up.send_signal(signal.SIGKILL)
        await up.wait()
    await eventually(lambda: asyncio.to_thread(below, tmp_path / "home"), lambda left: not left)

    async with local_stack("up", **settings) as again:
        text = await printed(again, "Ctrl-C stops everything")
        await the_readmes_job_runs(text, f"127.0.0.1:{ports['CARILLON_PORT']}", tmp_path)
        again.send_signal(signal.SIGINT)
        await printed(again, "nothing is left running")
        assert await asyncio.wait_for(again.wait(), PATIENCE) == 130
    assert below(tmp_path / "home") == []


async def the_readmes_job_runs(text: str, target: str, folder: Path) -> None:
    """The README's first job, with the token that `make up` printed."""
    exported = dict(re.findall(r"^export (\w+)=(\S+)$", text, re.MULTILINE))
    readme = (ROOT / "README.md").read_text()
    (folder / "digest.py").write_text(readme.partition("```python\n")[2].partition("```")[0])
    service = await asyncio.create_subprocess_exec(
        *(sys.executable, "digest.py"),
        cwd=folder,
        env={**os.environ, "CARILLON_TARGET": target, "CARILLON_SERVICE_TOKEN": exported["CARILLON_SERVICE_TOKEN"]},
        stderr=PIPE,
    )
    try:
        assert service.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while b"registered 1 jobs of my-service" not in (line := await service.stderr.readline()):
                assert line, "it ended before it was registered"
        async with Client(target, token=exported["TOKEN"]) as client:
            [made] = await client.trigger_job("my-service/weekly-digest")
            seen = [run async for run in client.watch_runs(run=made.name)]
        assert (seen[-1].state, seen[-1].items.succeeded) == (run_pb2.RUN_STATE_COMPLETED, 2)
        service.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(service.wait(), PATIENCE) == 0
    finally:
        if service.returncode is None:
            service.kill()
        await service.wait()
