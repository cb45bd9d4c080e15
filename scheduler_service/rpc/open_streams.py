"""How many streams (`Work`, `WatchRuns`) a replica holds open: each costs memory for as long as its caller likes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from scheduler_service.domain.access import Principal
from scheduler_service.domain.errors import RateLimited

MOST = 2000
MOST_OF_ONE = 500
_RETRY_SECONDS = 5.0


class OpenStreams:
    """Counts each method for itself, so that those who watch take no place from those who work.

    `most`: of one method in all. `most_of_one`: of one method and one principal.
    """

    def __init__(self, most: int = MOST, most_of_one: int = MOST_OF_ONE) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._all: Counter[str] = Counter()
        self._by_principal: Counter[tuple[str, Principal]] = Counter()

    @contextmanager
    def one(self, method: str, principal: Principal) -> Iterator[None]:
        """Holds a place for a stream. Errors: RateLimited if there is none."""
        self._refuse_if_full(method, principal)
        self._all[method] += 1
        self._by_principal[method, principal] += 1
        try:
            yield
        finally:
            self._all[method] -= 1
            self._by_principal[method, principal] -= 1
            if not self._by_principal[method, principal]:
                del self._by_principal[method, principal]

    def _refuse_if_full(self, method: str, principal: Principal) -> None:
        name = method.rpartition("/")[2]
        if self._by_principal[method, principal] >= self._most_of_one:
            raise RateLimited(
                f"{principal} has {self._most_of_one} {name} streams open on this replica, as many as "
                "CARILLON_MAX_STREAMS_PER_PRINCIPAL allows; close some",
                retry_after=_RETRY_SECONDS,
            )
        if self._all[method] >= self._most:
            raise RateLimited(
                f"this replica has {self._most} {name} streams open, as many as CARILLON_MAX_STREAMS allows; "
                "try again, or add a replica",
                retry_after=_RETRY_SECONDS,
            )
