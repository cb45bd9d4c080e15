"""Whether this replica can do its work: the database answers, and its schema is the one this code knows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from scheduler_service.domain.access import ANONYMOUS
from scheduler_service.store.database import Database
from scheduler_service.store.errors import translate
from scheduler_service.store.migrations import schema_problem


class Readiness:
    """`problem` says what is in the way. `migrate`, where it is given, is run once, before anything else works."""

    def __init__(self, database: Database, migrate: Callable[[], object] | None) -> None:
        self._database = database
        self._migrate = migrate
        self.problem: str | None = "it has not looked at its database yet"

    async def look(self) -> bool:
        """Looks again. Answers whether `problem` changed."""
        before = self.problem
        self.problem = await self._look()
        return self.problem != before

    async def _look(self) -> str | None:
        problem = await self._check()
        if problem is None or self._migrate is None:
            return problem
        # Also where the database refuses this replica: its logins are given by the migration.
        try:
            await asyncio.to_thread(self._migrate)
        except Exception as error:
            return _said(error)
        self._migrate = None
        return await self._check()

    async def _check(self) -> str | None:
        try:
            async with self._database.acting_for(ANONYMOUS) as tx:
                return await schema_problem(tx.connection)
        except Exception as error:
            return _said(error)


def _said(error: Exception) -> str:
    if (refusal := translate(error)) is None:
        raise error
    return f"{refusal.message} ({str(error).strip().splitlines()[0]})"
