"""The pytest plugin, as a service's own tests use it: found by its entry point, in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.cluster import ROOT, environment_without_carillon

A_SERVICES_TESTS = """
import asyncio

import pytest
from aiohttp import web
from carillon import Client, Jobs
from carillon.v1 import run_pb2

async def test_a_handler_is_carried_out(carillon_scheduler):
    jobs = Jobs(
        "email-service", target=carillon_scheduler.target, token=carillon_scheduler.service_token("email-service")
    )

    @jobs.handler("digest", config={"size": 7})
    async def digest(payload: dict[str, int]) -> dict[str, int]:
        return payload

    await jobs.register()
    async with jobs, Client(carillon_scheduler.target, token=carillon_scheduler.admin_token()) as client:
        [run] = await client.trigger_job("email-service/digest")
        states = [seen async for seen in client.watch_runs(run=run.name)]
    assert states[-1].state == run_pb2.RUN_STATE_COMPLETED


async def test_an_endpoint_is_called(carillon_worker):
    called = asyncio.Event()

    async def answer(request):
        called.set()
        return web.Response()

    app = web.Application()
    app.router.add_post("/digest", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/digest"
    jobs = Jobs("kpi.service", target=carillon_worker.target, token=carillon_worker.service_token("kpi.service"))
    jobs.endpoint("digest", url)
    await jobs.register()
    async with Client(carillon_worker.target, token=carillon_worker.admin_token()) as client:
        [run] = await client.trigger_job("kpi.service/digest")
        states = [seen async for seen in client.watch_runs(run=run.name)]
    await runner.cleanup()
    assert called.is_set()
    assert states[-1].state == run_pb2.RUN_STATE_COMPLETED


def test_it_is_the_same_scheduler_for_all(carillon_scheduler, carillon_worker):
    assert carillon_scheduler is carillon_worker


def test_a_service_without_a_token_is_told_how_to_get_one(carillon_scheduler):
    with pytest.raises(LookupError, match="'other' has no token here; there are: email-service, kpi.service"):
        carillon_scheduler.service_token("other")
"""

INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""

BY_FIXTURE = """
import pytest

@pytest.fixture(scope="session")
def carillon_services():
    return ["email-service", "kpi.service"]
"""

WITHOUT_IT = """
import sys

def test_nothing_is_loaded(pytestconfig):
    assert pytestconfig.pluginmanager.has_plugin("local_stack.pytest_plugin")
    heavy = {"local_stack.lone_scheduler", "local_stack.stack", "psycopg", "grpc", "carillon"}
    assert not heavy & set(sys.modules)
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that tells of the services' distribution as its wheel does; their code is in the tree."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder, [name for name in packed.namelist() if ".dist-info/" in name])
    return folder


@dataclass(frozen=True)
class Done:
    pid: int
    code: int
    said: str
    complained: str


def run_pytest(where: Path, installed: Path, files: dict[str, str]) -> Done:
    for name, text in files.items():
        (where / name).write_text(text)
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v"],
        cwd=where,
        env=environment_without_carillon() | {"PYTHONPATH": f"{installed}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said, complained = process.communicate()
    return Done(process.pid, process.returncode, said, complained)


@pytest.mark.parametrize("by", ["ini", "fixture"])
def test_a_services_tests_run_with_a_real_scheduler_that_leaves_nothing(
    by: str, installed: Path, tmp_path: Path
) -> None:
    files = {"test_service.py": A_SERVICES_TESTS}
    if by == "ini":
        files["pytest.ini"] = f"{INI}carillon_services = email-service kpi.service\n"
    else:
        files |= {"pytest.ini": INI, "conftest.py": BY_FIXTURE}
    done = run_pytest(tmp_path, installed, files)
    assert done.code == 0, done.said + done.complained
    assert "4 passed" in done.said
    assert done.complained == ""
    assert list(Path(tempfile.gettempdir()).glob(f"carillon-lone-*-{done.pid}-*")) == []


def test_a_session_that_does_not_ask_for_it_loads_nothing(installed: Path, tmp_path: Path) -> None:
    done = run_pytest(tmp_path, installed, {"test_other.py": WITHOUT_IT, "pytest.ini": "[pytest]\n"})
    assert done.code == 0, done.said + done.complained
