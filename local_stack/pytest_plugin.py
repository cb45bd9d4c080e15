"""pytest fixtures for services that want to be tested with the real scheduler.

    async def test_the_digest_is_sent(carillon_scheduler):
        target, token = carillon_scheduler.target, carillon_scheduler.service_token("email-service")
        async with Jobs("email-service", target=target, token=token) as jobs: ...

`carillon_scheduler`: a scheduler on a PostgreSQL of its own, started once for each test process that asks for it.
`carillon_worker`: the same, with a worker service for jobs that are endpoints.
`carillon_services`: who gets a token. Say it in the ini file (`carillon_services = email-service kpi-service`), or
override the fixture, with scope "session".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import pytest

if TYPE_CHECKING:
    from local_stack.lone_scheduler import LoneScheduler


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("carillon_services", "Services that get a token of carillon_scheduler.", type="args", default=[])


@pytest.fixture(scope="session")
def carillon_services(pytestconfig: pytest.Config) -> Sequence[str]:
    """The services that get a token of `carillon_scheduler`; the ini option of that name unless overridden."""
    return cast("Sequence[str]", pytestconfig.getini("carillon_services"))


@pytest.fixture(scope="session")
def carillon_scheduler(carillon_services: Sequence[str]) -> Iterator[LoneScheduler]:
    """A real scheduler: `target`, `admin_token()`, `service_token("email-service")`, `start_worker()`."""
    # Here, so that a session that does not ask for it loads nothing.
    from local_stack.lone_scheduler import LoneScheduler

    with LoneScheduler(carillon_services) as scheduler:
        yield scheduler


@pytest.fixture(scope="session")
def carillon_worker(carillon_scheduler: LoneScheduler) -> LoneScheduler:
    """`carillon_scheduler`, with a worker service for the jobs that are endpoints."""
    carillon_scheduler.start_worker()
    return carillon_scheduler
