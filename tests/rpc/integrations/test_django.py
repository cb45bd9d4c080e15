"""Jobs in a Django project: registered by each process that serves, once, and by no other."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.e2e.cluster import fetch
from tests.ports import lasting_port
from tests.rpc.client.conftest import ScriptedScheduler
from tests.rpc.integrations.conftest import NOBODY, PATIENCE, Programs, post, registered

SETTINGS = {"DJANGO_SETTINGS_MODULE": "examples.django_service.settings"}

# Does what is asked of Django, and then says whether Carillon's thread runs.
REPORT = """
import sys, threading
try:
    {}
finally:
    names = [thread.name for thread in threading.enumerate()]
    print("carillon runs" if "carillon" in names else "carillon does not run", names.count("carillon"))
"""
COMMAND = "from django.core.management import execute_from_command_line as run; run(['manage.py', *{!r}])"
OWN_COMMAND = """
from carillon.integrations.django import start
from django.apps import AppConfig
from django.conf import settings
from examples.django_service.jobs import jobs

class Own(AppConfig):
    name = "examples.django_service"

    def ready(self):
        start(jobs, commands=["check"])

settings.configure(INSTALLED_APPS=["__main__.Own"])
"""
WSGI = """
from wsgiref.simple_server import make_server
from examples.django_service.wsgi import application
make_server("127.0.0.1", {}, application).serve_forever()
"""

# Calls two views, signed, not signed and by a service without keys, and says what came of it.
VERIFIED = """
import asyncio, sys
from django.conf import settings
settings.configure(ALLOWED_HOSTS=["testserver"])
from django.http import HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.test import RequestFactory
from carillon import Jobs, SigningKeysMissing
from carillon.integrations.django import verified
from tests.signed import KEY, signed

BODY = b'{"run":"r-1","service":"django-service","job":"mail"}'

def plain(request):
    return HttpResponse(request.body)

async def asynchronous(request):
    return HttpResponse(request.body)

def call(view, **headers):
    data = {"content_type": "application/json", "headers": headers}
    request = RequestFactory(enforce_csrf_checks=True).post("/x", BODY, **data)
    middleware = CsrfViewMiddleware(lambda request: None)
    middleware.process_request(request)
    assert middleware.process_view(request, view, (), {}) is None, "CSRF"
    answer = view(request)
    answer = asyncio.run(answer) if asyncio.iscoroutine(answer) else answer
    return answer.status_code, answer.content.decode()

for view in (plain, asynchronous):
    jobs = Jobs("django-service", signing_keys=[KEY])
    checked = verified(jobs, "mail")(view)
    print(checked.__name__, *call(checked, **signed(BODY)))
    print(checked.__name__, *call(checked, **signed(BODY + b" ")))
    print(checked.__name__, *call(verified(jobs, "other")(view), **signed(BODY)))
    try:
        call(verified(Jobs("django-service"))(view), **signed(BODY))
    except SigningKeysMissing as missing:
        print(view.__name__, "raises", missing)
"""


@pytest.fixture
def project(tmp_path: Path) -> dict[str, str]:
    """The example's settings, with a migrated database."""
    return {**SETTINGS, "DJANGO_SERVICE_DB": str(tmp_path / "sessions.sqlite3")}


async def migrated(programs: Programs, project: dict[str, str]) -> None:
    await programs.run("-m", "examples.django_service", "migrate", **project)


def servers(port: int) -> dict[str, list[str]]:
    """Each way to serve the project, as arguments for Python."""
    return {
        "runserver": ["-m", "examples.django_service", "runserver", str(port)],
        "runserver without reloader": ["-m", "examples.django_service", "runserver", str(port), "--noreload"],
        "WSGI server": ["-c", WSGI.format(port)],
        "ASGI server": ["-m", "uvicorn", "examples.django_service.asgi:application", "--port", str(port)],
    }


@pytest.mark.parametrize("server", list(servers(0)))
async def test_a_server_registers_once_and_its_view_is_the_jobs_endpoint(
    scheduler: ScriptedScheduler, programs: Programs, project: dict[str, str], server: str
) -> None:
    await migrated(programs, project)
    port = lasting_port()
    project["DJANGO_SERVICE_URL"] = f"http://127.0.0.1:{port}"
    await programs.start(*servers(port)[server], **project)
    manifest = await registered(scheduler)
    [job] = manifest.jobs
    assert (manifest.service, job.job, job.timing.cron) == ("django-service", "clear-sessions", "0 4 * * *")
    await programs.processes.wait_until("program", lambda: listens(manifest.base_url), PATIENCE)
    assert await post(manifest.base_url + job.target.http.endpoint) == (200, b'{"metrics": {"deleted": 0}}')
    assert scheduler.registrations.empty()


async def listens(url: str) -> bool:
    status, _ = await fetch(url)
    return status != 0


@pytest.mark.parametrize("command", [["check"], ["migrate"], ["shell", "-c", "pass"]], ids=lambda command: command[0])
async def test_a_management_command_registers_nothing(
    programs: Programs, project: dict[str, str], command: list[str]
) -> None:
    assert "carillon does not run" in await programs.run("-c", REPORT.format(COMMAND.format(command)), **project)


async def test_the_process_that_only_reloads_the_server_registers_nothing(
    programs: Programs, project: dict[str, str]
) -> None:
    # The apps are loaded before the port is found to be wrong.
    await programs.start("-c", REPORT.format(COMMAND.format(["runserver", "no port"])), **project)
    assert '"no port" is not a valid port number' in await programs.says("carillon does not run")


async def test_whatever_else_loads_the_apps_is_taken_for_a_server_and_starting_twice_starts_once(
    programs: Programs, project: dict[str, str]
) -> None:
    twice = "import django; django.setup(); from django.apps import apps; apps.get_app_config('django_service').ready()"
    assert "carillon runs 1" in await programs.run("-c", REPORT.format(twice), **project)


async def test_a_command_of_the_projects_own_may_be_said_to_serve(programs: Programs) -> None:
    assert "carillon runs 1" in await programs.run("-c", OWN_COMMAND + REPORT.format(COMMAND.format(["check"])))


async def test_a_server_that_found_no_scheduler_ends_in_order(programs: Programs, project: dict[str, str]) -> None:
    await migrated(programs, project)
    server = servers(lasting_port())["runserver without reloader"]
    await programs.start(*server, **{**project, "CARILLON_TARGET": NOBODY})
    await programs.says("the jobs of django-service are not registered: UNAVAILABLE")
    await programs.says("Quit the server with CONTROL-C.")
    assert await programs.processes.end("program", signal.SIGINT) == 0
    assert "Traceback" not in await programs.says("")


async def test_only_calls_that_the_worker_signed_reach_a_view(programs: Programs) -> None:
    written = (await programs.run("-c", VERIFIED)).splitlines()
    for view, lines in (("plain", written[:4]), ("asynchronous", written[4:])):
        assert lines[0].startswith(f"{view} 200 {{")
        assert lines[1].startswith(f"{view} 401 the signature is wrong")
        assert lines[2] == f"{view} 401 the call is for another job than other"
        assert lines[3].startswith(f"{view} raises the call cannot be verified: set CARILLON_SIGNING_KEYS")
