"""How many calls a replica has in hand: each costs memory, streams (`Work`, `WatchRuns`) for as long as their caller
likes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scheduler_service.domain.access import Kind, Principal
from scheduler_service.domain.errors import RateLimited

STREAMS_OF_A_USER = 20
_STREAM_RETRY_SECONDS = 5.0
_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class CallCaps:
    """`streams`: of one method in all. `streams_of_one`: of one method and one principal. `calls_of_one`: calls that
    are no streams, of one principal. `public`: of one method that anybody may call; `public_of_one`: from one
    address."""

    streams: int = 2000
    streams_of_one: int = 500
    calls_of_one: int = 250
    public: int = 200
    public_of_one: int = 10


@dataclass(frozen=True, slots=True)
class _Place:
    """Calls that are counted together, and how many there may be. `full`: what is said if there are so many."""

    counted: Hashable
    most: int
    full: str
    setting: str = ""


class OpenCalls:
    """Counts streams of each method for themselves, so that those who watch take no place from those who work; and of
    those who watch, users leave a quarter of the places to services and admins, and a tenant's users half of theirs to
    other tenants."""

    def __init__(self, caps: CallCaps = CallCaps()) -> None:
        self._caps = caps
        self._open: Counter[Hashable] = Counter()

    @contextmanager
    def stream(self, method: str, principal: Principal) -> Iterator[None]:
        """Holds a place for a stream. Errors: RateLimited if there is none."""
        with self._held(self._of_stream(method, principal), _STREAM_RETRY_SECONDS):
            yield

    @contextmanager
    def call(self, principal: Principal) -> Iterator[None]:
        """Holds a place for any other call. Errors: RateLimited if there is none."""
        with self._held(self._of_call(principal), _RETRY_SECONDS):
            yield

    @contextmanager
    def public(self, method: str, address: str) -> Iterator[None]:
        """Holds a place for a call that anybody may make. Errors: RateLimited if there is none."""
        most, most_of_one, name = self._caps.public, self._caps.public_of_one, method.rpartition("/")[2]
        places = (
            _Place((method, address), most_of_one, f"{address} has {most_of_one:,} {name} calls open; close some"),
            _Place(method, most, f"this replica has {most:,} {name} calls open; try again"),
        )
        with self._held(places, _STREAM_RETRY_SECONDS):
            yield

    def _of_call(self, principal: Principal) -> tuple[_Place, ...]:
        most, setting = self._caps.calls_of_one, "CARILLON_MAX_CALLS_PER_PRINCIPAL"
        who = (principal.kind, principal.service or principal.name, principal.tenant)
        full = f"{principal} makes {most:,} calls at a time on this replica, as many as {setting} allows"
        return (_Place(who, most, f"{full}; make fewer, or try again", setting),)

    def _of_stream(self, method: str, principal: Principal) -> tuple[_Place, ...]:
        caps, name = self._caps, method.rpartition("/")[2]
        of_one, of_all = "CARILLON_MAX_STREAMS_PER_PRINCIPAL", "CARILLON_MAX_STREAMS"
        everybody = _Place(
            method,
            caps.streams,
            f"this replica has {caps.streams:,} {name} streams open, as many as {of_all} allows; try again, or add a"
            " replica",
            of_all,
        )
        if principal.kind is not Kind.USER:
            full = f"{principal} has {caps.streams_of_one:,} {name} streams open on this replica, as many as {of_one}"
            return (
                _Place((method, principal), caps.streams_of_one, f"{full} allows; close some", of_one),
                everybody,
            )
        most = min(STREAMS_OF_A_USER, caps.streams_of_one)
        of_users = max(caps.streams * 3 // 4, 1)
        of_tenant = max(of_users // 2, 1)
        left = "the others are kept for others; close some, or add a replica"
        return (
            _Place(
                (method, principal), most, f"{principal} has {most} {name} streams open on this replica; close some"
            ),
            _Place(
                (method, "tenant", principal.tenant), of_tenant, f"your tenant has {of_tenant:,} {name} streams; {left}"
            ),
            _Place((method, Kind.USER), of_users, f"users have {of_users:,} {name} streams open; {left}", of_all),
            everybody,
        )

    @contextmanager
    def _held(self, places: tuple[_Place, ...], retry: float) -> Iterator[None]:
        for place in places:
            if self._open[place.counted] >= place.most:
                metadata = {"setting": place.setting} if place.setting else {}
                raise RateLimited(place.full, retry_after=retry, **metadata)
        for place in places:
            self._open[place.counted] += 1
        try:
            yield
        finally:
            for place in places:
                self._open[place.counted] -= 1
                if not self._open[place.counted]:
                    del self._open[place.counted]
