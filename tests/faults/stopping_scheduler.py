"""A scheduler that stops itself (SIGSTOP), once, at a moment that a signal from outside would hardly ever meet. Whoever
broke it kills it there, or lets it go on.

STOPPING_AT: which of `MOMENTS`. STOPPING_FILE: it does so only once there is this file. Everything else is
`python -m scheduler_service`.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import psycopg

from scheduler_service.__main__ import cli

Method = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Moment:
    """After a statement that has `words` and did something. `committed`: once its transaction is; otherwise before."""

    words: str
    committed: bool


MOMENTS = {
    "made": Moment("insert into carillon.live_runs", committed=False),
    "claimed": Moment("nextval('carillon.claim_ids')", committed=True),
    "recorded": Moment("delete from carillon.live_runs l\n  using", committed=True),
}
"""A run is made and its schedule moved on, and the transaction is open; a claim is committed and not sent; a result is
committed and not acknowledged."""


class StoppingStore:
    """Puts itself between the driver and whoever calls it. `stop` is called once, at the first such moment at which
    `is_armed`."""

    def __init__(self, moment: Moment, is_armed: Callable[[], bool], stop: Callable[[], None]) -> None:
        self._moment = moment
        self._is_armed = is_armed
        self._stop = stop
        self._done: WeakSet[psycopg.AsyncConnection[Any]] = WeakSet()
        self._is_over = False

    def install(self) -> None:
        """Around statements, and the ends of transactions."""
        for owner, name in (
            (psycopg.AsyncCursor, "execute"),
            (psycopg.AsyncConnection, "commit"),
            (psycopg.AsyncTransaction, "__aexit__"),
        ):
            setattr(owner, name, self.wrap(getattr(owner, name)))

    def wrap(self, method: Method) -> Method:
        """The method, of a connection or of something that has one."""

        @functools.wraps(method)
        async def stopping(self_: Any, *args: Any, **options: Any) -> Any:
            answer = await method(self_, *args, **options)
            connection = getattr(self_, "connection", self_)
            if isinstance(self_, psycopg.AsyncCursor) and self._moment.words in str(args[0]) and _did_something(self_):
                self._done.add(connection)
            self._look(connection)
            return answer

        return stopping

    def _look(self, connection: psycopg.AsyncConnection[Any]) -> None:
        if self._is_over or connection not in self._done:
            return
        is_open = connection.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS
        if is_open is not self._moment.committed and self._is_armed():
            self._is_over = True
            self._stop()
        elif not is_open:
            self._done.discard(connection)


def _did_something(cursor: psycopg.AsyncCursor[Any]) -> bool:
    """A claim that took nothing answers a row without a claim."""
    result = cursor.pgresult
    if result is None or result.ntuples == 0:
        return bool(result and (result.command_tuples or 0) > 0)
    names = [result.fname(column) for column in range(result.nfields)]
    if b"claim_id" not in names:
        return True
    column = names.index(b"claim_id")
    return any(result.get_value(row, column) is not None for row in range(result.ntuples))


if __name__ == "__main__":
    StoppingStore(
        MOMENTS[os.environ["STOPPING_AT"]],
        Path(os.environ["STOPPING_FILE"]).exists,
        lambda: os.kill(os.getpid(), signal.SIGSTOP),
    ).install()
    cli()
