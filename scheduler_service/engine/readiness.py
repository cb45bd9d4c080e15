"""Whether this replica can do its work: the database answers, this code can work with its schema, and nobody has
weakened what keeps callers apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

import structlog

from scheduler_service.domain.access import ANONYMOUS
from scheduler_service.store.catalogue import catalogue_problem
from scheduler_service.store.connection import answering_within
from scheduler_service.store.database import Database
from scheduler_service.store.errors import MigrationRefused, is_database_away, lacks_rights, translate
from scheduler_service.store.login_check import login_problem
from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE
from scheduler_service.store.migrations import Schema, expected_version, look_at_schema

log = structlog.get_logger()

INSPECTION_SECONDS = 60.0
# Between two looks. While the database is away, what comes due waits for the look that finds it again.
_PERIOD = 1.0
_PERIOD_AWAY = 0.25
# What does not answer for so long is no database to work with.
_PATIENCE = 5.0


class Readiness:
    """`problem` says what is in the way. `migrate`, where it is given, is run once, before anything else works.

    The catalogue is inspected when the schema becomes good, then each minute of `clock` (seconds), and at each look
    while something is wrong. `advice`: SQL for someone to run, since a login lacks settings; looked for whenever this
    becomes ready.
    """

    def __init__(
        self, database: Database, migrate: Callable[[], object] | None, clock: Callable[[], float] = monotonic
    ) -> None:
        self._database = database
        self._migrate = migrate
        self._clock = clock
        self._inspect_at = 0.0
        self._newer = 0
        self._was_read_only = False
        self._is_away = False
        self.problem: str | None = "it has not looked at its database yet"
        self.advice: list[str] = []

    @property
    def period(self) -> float:
        """After how many seconds to look again."""
        return _PERIOD_AWAY if self._is_away and self._migrate is None else _PERIOD

    async def look(self) -> bool:
        """Looks again. Answers whether `problem` changed."""
        before = self.problem
        self.problem = await self._look()
        return self.problem != before

    async def _look(self) -> str | None:
        problem = await self._check()
        if problem is None:
            self._migrate = None  # it is for the start: what goes wrong later is told, not migrated away
        if self._migrate is None:
            return problem
        # Also where the database refuses this replica: its logins are given by the migration.
        try:
            await asyncio.to_thread(self._migrate)
        except MigrationRefused as refused:
            return str(refused)
        except Exception as error:
            return _said(error)
        self._migrate = None
        # What a login is given counts for connections that are opened from now on.
        await self._database.forget_connections()
        return await self._check()

    async def _check(self) -> str | None:
        self._is_away = False
        try:
            with answering_within(_PATIENCE):
                async with self._database.acting_for(ANONYMOUS) as tx:
                    takes_changes = await tx.takes_changes()
                    schema = await look_at_schema(tx.connection)
            if not takes_changes or self._was_read_only:
                # The address may lead to another server by now; what was opened meanwhile may still be with the first.
                await self._database.forget_connections()
            self._was_read_only = not takes_changes
            if not takes_changes:
                self._is_away = True
                return "the database takes no changes: it is read-only, or a standby"
            self._tell_of_newer(schema)
            problem = schema.problem
            if problem is None and (self.problem is not None or self._clock() >= self._inspect_at):
                problem = await self._inspect()
                self._inspect_at = self._clock() + INSPECTION_SECONDS
            if problem is None and self.problem is not None:
                self.advice = await self._database.what_logins_lack()
            return problem
        except Exception as error:
            self._is_away = is_database_away(error)
            return _said(error)

    def _tell_of_newer(self, schema: Schema) -> None:
        """Once for each version."""
        if schema.is_newer and schema.problem is None and schema.version != self._newer:
            self._newer = schema.version
            log.info(
                "a newer release has migrated the schema; this one works on, and no longer compares all of it",
                schema=schema.version,
                known=expected_version(),
            )

    async def _inspect(self) -> str | None:
        """What in the catalogue makes it unsafe to serve."""
        async with self._database.as_engine() as connection:
            problem = await login_problem(connection, ENGINE_ROLE)
        if problem is not None:
            return problem
        async with self._database.acting_for(ANONYMOUS) as tx:
            return await login_problem(tx.connection, API_ROLE) or await catalogue_problem(tx.connection)


def _said(error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0]
    if lacks_rights(error):
        return f"a login lacks its role's rights, which `python -m scheduler_service migrate` gives it ({first_line})"
    refusal = translate(error)
    # What nobody foresaw may pass as well: whoever looks goes on looking.
    said = refusal.message if refusal else f"looking at the database failed with {type(error).__name__}"
    return f"{said} ({first_line})"
