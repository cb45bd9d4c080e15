"""What the table `users` says of a JWT's subject, asked at most each few seconds for each subject."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import structlog

from scheduler_service.domain.access import Kind, Principal
from scheduler_service.domain.errors import Unavailable
from scheduler_service.domain.user import Role, User
from scheduler_service.store import users as store
from scheduler_service.store.database import Database
from scheduler_service.store.errors import is_database_away

log = structlog.get_logger()

_FRESH_SECONDS = 5.0
_LAST_ANSWER_SECONDS = 60.0
_RETRY_SECONDS = 1.0
_PATIENCE_SECONDS = 3.0
_MOST_SUBJECTS = 10_000

Ask = Callable[[str], Awaitable[User | None]]


@dataclass(slots=True)
class _Answer:
    user: User | None
    at: float


class UserDirectory:
    """While the database is away, the last answer goes on for a minute. `clock` is monotonic; `most`: how many
    subjects are remembered."""

    def __init__(self, ask: Ask, *, clock: Callable[[], float] = time.monotonic, most: int = _MOST_SUBJECTS) -> None:
        self._ask = ask
        self._clock = clock
        self._most = most
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._failed_at = float("-inf")

    @classmethod
    def of(cls, database: Database) -> UserDirectory:
        return cls(partial(_find, database))

    async def find(self, subject: str) -> User | None:
        """Errors: Unavailable."""
        if not self._is_known(subject, _FRESH_SECONDS):
            await self._look(subject)
        answer = self._answers.get(subject)
        if answer is None or self._clock() - answer.at >= _LAST_ANSWER_SECONDS:
            raise Unavailable("the database cannot say now what you may do; try again in a second")
        self._answers.move_to_end(subject)
        return answer.user

    def still_is(self, principal: Principal) -> bool:
        """Whether the subject still is what the principal is, by the last answer; asks again beside it. As for calls,
        an answer that could not be renewed for a minute counts no longer, and none is none."""
        if not self._is_known(principal.name, _FRESH_SECONDS) and self._may_ask():
            self._begin(principal.name)
        answer = self._answers.get(principal.name)
        if answer is None or self._clock() - answer.at >= _LAST_ANSWER_SECONDS:
            return False
        # Who has a stream open is not forgotten for others, who only call.
        self._answers.move_to_end(principal.name)
        user = answer.user
        if user is None:
            return principal.kind is Kind.USER and not principal.tenant
        return (principal.kind is Kind.ADMIN) == (user.role is Role.ADMIN) and principal.tenant == user.tenant

    async def _look(self, subject: str) -> None:
        if subject not in self._asking and not self._may_ask():
            return
        await asyncio.shield(self._begin(subject))

    def _begin(self, subject: str) -> asyncio.Task[None]:
        """One question at a time for each subject."""
        if subject not in self._asking:
            task = self._asking[subject] = asyncio.create_task(self._learn(subject), name="users")
            task.add_done_callback(partial(self._asked, subject))
        return self._asking[subject]

    def _asked(self, subject: str, task: asyncio.Task[None]) -> None:
        self._asking.pop(subject, None)
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("users: a question failed", exc_info=fault)

    async def _learn(self, subject: str) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                user = await self._ask(subject)
        except Exception as error:
            if not isinstance(error, TimeoutError) and not is_database_away(error):
                raise
            self._failed_at = self._clock()
            return
        self._answers[subject] = _Answer(user, self._clock())
        self._answers.move_to_end(subject)
        while len(self._answers) > self._most:
            self._answers.popitem(last=False)

    def _is_known(self, subject: str, within: float) -> bool:
        answer = self._answers.get(subject)
        return answer is not None and self._clock() - answer.at < within

    def _may_ask(self) -> bool:
        return self._clock() - self._failed_at >= _RETRY_SECONDS


async def _find(database: Database, subject: str) -> User | None:
    async with database.as_engine() as connection:
        return await store.find_user(connection, subject)
