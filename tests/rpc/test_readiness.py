"""A replica that no longer looks whether it can do its work does not say that it can."""

from __future__ import annotations

import asyncio

from local_stack.ports import LOCALHOST
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import eventually, fetch
from tests.security.schedulers import scheduler


async def test_a_replica_whose_readiness_nobody_looks_at_is_not_ready(database_urls: DatabaseUrls) -> None:
    async with scheduler(database_urls) as app:
        url = f"http://{LOCALHOST}:{app.metrics_port}/readyz"
        await eventually(lambda: fetch(url), lambda answer: answer == (200, "serving\n"))
        (looking,) = (task for task in asyncio.all_tasks() if task.get_name() == "readiness")
        looking.cancel()
        await asyncio.wait({looking})
        said = await eventually(lambda: fetch(url), lambda answer: answer[0])
        assert said == (503, "loop readiness of this replica has ended\n")
