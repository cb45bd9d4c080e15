"""A running scheduler keeps records as long as its setting says."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.builders import connect
from tests.conftest import DatabaseUrls
from tests.e2e.cluster import Cluster, eventually
from tests.security.months import make_month, partitions


async def test_a_scheduler_drops_the_months_that_its_setting_gives_up(
    database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    with connect(database_urls.admin) as admin:
        kept = f"runs_{make_month(admin, 4):%Y_%m}"
        dropped = f"runs_{make_month(admin, 40):%Y_%m}"
        assert {kept, dropped} <= partitions(admin)
        async with Cluster(tmp_path, database_urls) as cluster:
            await cluster.start_scheduler(retention_days="400")
            await eventually(lambda: asyncio.to_thread(partitions, admin), lambda there: dropped not in there)
        assert kept in partitions(admin)
