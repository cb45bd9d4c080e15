"""A scheduler of which some store calls fail: before they are sent, or after they were carried out and committed.

FAILING_STORE_SEED: of the choice; the same seed does not make the same run, since processes race, but another one each
time would leave nothing to try again. FAILING_STORE_SHARE: how many of the calls. Everything else is
`python -m scheduler_service`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import psycopg

from scheduler_service.__main__ import cli

Method = Callable[..., Awaitable[Any]]
_ABORTS = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)


class FailingStore:
    """Puts itself between the driver and whoever calls it, in this process."""

    def __init__(self, random: Random, share: float) -> None:
        self._random = random
        self._share = share

    def wrap(self, method: Method) -> Method:
        """The method, of a connection or of something that has one."""

        @functools.wraps(method)
        async def failing(self_: Any, *args: Any, **options: Any) -> Any:
            connection = getattr(self_, "connection", self_)
            if self._is_to_fail():
                await self._fail_before(connection)
            answer = await method(self_, *args, **options)
            if self._is_to_fail():
                await _lose(connection, "it was carried out")
            return answer

        return failing

    def _is_to_fail(self) -> bool:
        return self._random.random() < self._share / 2

    async def _fail_before(self, connection: psycopg.AsyncConnection[Any]) -> None:
        if self._random.random() < 0.3 and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            raise self._random.choice(_ABORTS)("made by the fault harness, before the statement was sent")
        await _lose(connection, "it was not sent")


async def _lose(connection: psycopg.AsyncConnection[Any], what: str) -> None:
    await connection.close()
    raise psycopg.OperationalError(f"the connection was lost by the fault harness; {what}")


def install(store: FailingStore) -> None:
    """Statements, and the ends of transactions, by which what they did is committed."""
    for owner, name in (
        (psycopg.AsyncCursor, "execute"),
        (psycopg.AsyncConnection, "commit"),
        (psycopg.AsyncTransaction, "__aexit__"),
    ):
        setattr(owner, name, store.wrap(getattr(owner, name)))


if __name__ == "__main__":
    install(FailingStore(Random(os.environ["FAILING_STORE_SEED"]), float(os.environ["FAILING_STORE_SHARE"])))
    cli()
