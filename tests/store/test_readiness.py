"""How soon a replica looks at its database again."""

from __future__ import annotations

from sqlalchemy import make_url

from local_stack.ports import LOCALHOST
from scheduler_service.engine.readiness import Readiness
from scheduler_service.store.database import Database
from tests.conftest import DatabaseUrls
from tests.faults.proxy import FaultProxy


async def test_a_database_that_is_away_is_looked_for_sooner_than_one_that_is_there(database_urls: DatabaseUrls) -> None:
    """What comes due meanwhile waits for the look that finds it again, and is to be a run within a second."""
    server = make_url(database_urls.api)
    with FaultProxy((server.host or LOCALHOST, server.port or 0)) as proxy:
        api, engine = (
            make_url(url).set(host=LOCALHOST, port=proxy.port).render_as_string(hide_password=False)
            for url in (database_urls.api, database_urls.engine)
        )
        database = Database(api, engine)
        readiness = Readiness(database, None)
        assert await readiness.look()
        assert (readiness.problem, readiness.period) == (None, 1.0)
        proxy.cut()
        assert await readiness.look()
        assert readiness.period < 0.5
        proxy.heal()
        assert await readiness.look()
        assert (readiness.problem, readiness.period) == (None, 1.0)
        await database.close()


async def test_who_has_to_migrate_first_does_not_hurry(database_urls: DatabaseUrls) -> None:
    """Each look would try to."""
    nowhere = make_url(database_urls.api).set(port=1).render_as_string(hide_password=False)
    database, tried = Database(nowhere, nowhere), []

    def migrate() -> None:
        tried.append(True)
        raise ConnectionError("nobody is there")

    readiness = Readiness(database, migrate)
    await readiness.look()
    assert (tried, readiness.period) == ([True], 1.0)
    await database.close()
