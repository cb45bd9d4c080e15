"""How often callers may call, on this replica: a principal for calls that make work, an address for credentials that
fail."""

from __future__ import annotations

import hashlib
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import unquote

from prometheus_client import CollectorRegistry, Counter

from scheduler_service.domain.access import Action, Principal
from scheduler_service.domain.errors import RateLimited, Unauthenticated
from scheduler_service.domain.rates import Buckets, Rate, RateLimits
from scheduler_service.identity.credentials import Connection, Credentials

Metadata = Iterable[tuple[str, str | bytes]]

_MINUTE = 60.0
_TRIGGER_BURST_SECONDS = 10
_MOST_KNOWN = 10_000
_CREDENTIALS = ("authorization", "x-service-token")


@dataclass(frozen=True, slots=True)
class _Limit:
    """`setting`: the variable that changes it. `says`: what was done too often, in a refusal's words."""

    name: str
    setting: str
    says: str
    rate: Rate


def _registrations(per_minute: int) -> _Limit:
    """As many at once as in a minute: a deploy starts all copies of a service together."""
    says = f"changes what its service declares more often than {per_minute:,} times a minute"
    rate = Rate(per_minute / _MINUTE, per_minute)
    return _Limit("registrations", "CARILLON_REGISTRATIONS_PER_MINUTE", says, rate)


def _triggers(per_second: int) -> _Limit:
    """Ten seconds' worth at once."""
    says = f"starts runs more often than {per_second:,} times a second"
    rate = Rate(per_second, per_second * _TRIGGER_BURST_SECONDS)
    return _Limit("triggers", "CARILLON_TRIGGERS_PER_SECOND", says, rate)


def _failed_credentials(per_minute: int) -> _Limit:
    """As many at once as in a minute."""
    says = f"too many calls from this address had credentials that do not hold: over {per_minute:,} a minute"
    rate = Rate(per_minute / _MINUTE, per_minute)
    return _Limit("credentials", "CARILLON_FAILED_CREDENTIALS_PER_MINUTE", says, rate)


_LIMITED: Mapping[str, str] = {
    "/carillon.v1.RegistryService/RegisterJobs": "registrations",
    "/carillon.v1.RegistryService/RemoveJob": "registrations",
    "/carillon.v1.JobService/TriggerJob": "triggers",
    "/carillon.v1.JobService/BackfillJob": "triggers",
    "/carillon.v1.ScheduleService/RunSchedule": "triggers",
}


class Limits:
    """The limits of one replica, and how many calls they refused."""

    def __init__(
        self,
        registry: CollectorRegistry,
        allowed: RateLimits = RateLimits(),  # noqa: B008  # a value
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        of_principals = (_registrations(allowed.registrations_per_minute), _triggers(allowed.triggers_per_second))
        self._of_principals = {limit.name: (limit, Buckets(limit.rate)) for limit in of_principals}
        self._failed = _failed_credentials(allowed.failed_credentials_per_minute)
        self._failures = Buckets(self._failed.rate)
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._refused = Counter(
            "carillon_rate_limited",
            "Calls that were refused because their caller, or for `credentials` their address, calls too often.",
            ["limit"],
            registry=registry,
        )
        for name in (*self._of_principals, self._failed.name):
            self._refused.labels(name)

    async def principal(
        self, credentials: Credentials, metadata: Metadata, connection: Connection, action: Action | None = None
    ) -> Principal:
        """Who calls. Once an address has sent too many credentials that fail, the next are refused unread, except
        those that held before: other callers may share the address. Errors: RateLimited, and as Credentials'."""
        sent = [(key, value) for key, value in metadata if key in _CREDENTIALS]
        if not sent:
            return await credentials.principal(metadata, connection, action)
        now, address, shown = self._clock(), _address(connection.address), _digest(sent)
        if shown not in self._known and (wait := self._failures.wait(address, now)):
            self._refuse(self._failed, self._failed.says, wait)
        try:
            principal = await credentials.principal(metadata, connection, action)
        except Unauthenticated:
            self._failures.take(address, now)
            self._known.pop(shown, None)
            raise
        self._remember(shown)
        return principal

    def admit(self, principal: Principal, method: str) -> None:
        """Counts a call. Errors: RateLimited."""
        name = _LIMITED.get(method)
        if name is None:
            return
        limit, buckets = self._of_principals[name]
        who = (principal.kind, principal.service or principal.name, principal.tenant)
        if wait := buckets.take(who, self._clock()):
            self._refuse(limit, f"{principal} {limit.says}", wait)

    def _refuse(self, limit: _Limit, sentence: str, wait: float) -> NoReturn:
        self._refused.labels(limit.name).inc()
        raise RateLimited(
            f"{sentence} ({limit.setting}, on each replica); try again in {wait:.3g} s",
            retry_after=wait,
            setting=limit.setting,
        )

    def _remember(self, shown: bytes) -> None:
        self._known[shown] = None
        self._known.move_to_end(shown)
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)


def _digest(sent: Iterable[tuple[str, str | bytes]]) -> bytes:
    return hashlib.sha256(repr(sent).encode(errors="surrogatepass")).digest()


def _address(peer: str) -> str:
    """Whom a peer such as `ipv4:192.0.2.1:5000` is counted with: its address, or the network of its IPv6 address, of
    which one host has as many as it likes."""
    kind, _, rest = peer.partition(":")
    if kind != "ipv6":
        return rest.rpartition(":")[0] or peer
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        return str(ipaddress.IPv6Network((host, 64), strict=False))
    except ValueError:
        return host
