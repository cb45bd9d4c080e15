"""Whether this replica can do its work: the database answers, and its schema is the one this code knows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from scheduler_service.domain.access import ANONYMOUS
from scheduler_service.store.database import Database
from scheduler_service.store.errors import translate
from scheduler_service.store.migrations import schema_problem


class Readiness:
    """`problem` says what is in the way. `migrate`, where it is given, is run once the schema is missing or older."""

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
        try:
            problem = await self._schema_problem()
            if problem and self._migrate:
                await asyncio.to_thread(self._migrate)
                problem = await self._schema_problem()
        except Exception as error:
            if (refusal := translate(error)) is None:
                raise
            return refusal.message
        return problem

    async def _schema_problem(self) -> str | None:
        async with self._database.acting_for(ANONYMOUS) as tx:
            return await schema_problem(tx.connection)
