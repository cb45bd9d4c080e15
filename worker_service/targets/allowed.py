"""What the worker may call: the hosts and ports that an operator listed, at addresses that may be connected to."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Protocol

import structlog
from carillon.execution import Failed

from worker_service.targets import hosts
from worker_service.targets.hosts import Address, Host, HostError
from worker_service.targets.networks import Networks

TARGET_NOT_ALLOWED = "TARGET_NOT_ALLOWED"
ANY = "*"

_SERVICE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")

_log = structlog.stdlib.get_logger("worker_service")


@dataclass(frozen=True, slots=True)
class Target:
    """`host:port` or `service@host:port` as an operator listed it.

    host: a name or an address, exactly; `*.` and a domain for the names that have one label more, as certificates
    mean it; `*` for any host. port: None for any. service: whose jobs may call it; None for all.
    """

    host: Host
    port: int | None
    service: str | None = None

    def covers(self, service: str, host: Host, port: int) -> bool:
        return self.service in (None, service) and self.port in (None, port) and self._covers_host(host)

    def _covers_host(self, host: Host) -> bool:
        if self.host == ANY:
            return True
        if isinstance(self.host, str) and self.host.startswith("*."):
            return isinstance(host, str) and host.partition(".")[2] == self.host[2:]
        return self.host == host


def read_target(text: str) -> Target:
    """Errors: HostError."""
    if "://" in text:
        raise HostError("begins with a scheme: drop http://, https:// or grpc://, and write host:port")
    service, at, place = text.rpartition("@")
    if (parts := hosts.split_port(place)) is None or (at and not _SERVICE.fullmatch(service)):
        raise HostError("must be host:port, such as email-service:8080, *.internal:8080 or 10.0.0.1:*")
    host, port = parts
    return Target(_read_listed(host), None if port == ANY else hosts.read_port(port), service if at else None)


def _read_listed(host: str) -> Host:
    if host == ANY:
        return ANY
    if not host.startswith("*."):
        return hosts.read_host(host)
    domain = hosts.read_host(host[2:])
    if not isinstance(domain, str):
        raise HostError("has a wildcard before an address; CARILLON_ALLOWED_NETWORKS takes networks")
    return f"*.{domain}"


class LookUp(Protocol):
    """The addresses of a name, as a service's job asks for it. Errors: NotResolved."""

    async def __call__(self, name: str, service: str, /) -> Collection[Address]: ...


class Gate:
    """Lets calls through to what is allowed.

    targets: the list; networks: what addresses of names may be besides public. An address that an operator wrote
    itself needs no network.
    """

    def __init__(self, targets: Collection[Target], networks: Networks, look_up: LookUp) -> None:
        self._targets = tuple(targets)
        self._networks = networks
        self._look_up = look_up

    async def admit(
        self, what: str, service: str, host: Host, port: int, *, listed: bool = False
    ) -> tuple[Address, ...]:
        """The addresses to connect to, each of them checked.

        what: the call, to begin a sentence. service: whose job it is. listed: whether the operator named this very
        place elsewhere.
        Errors: Failed with `TARGET_NOT_ALLOWED`; NotResolved.
        """
        where = hosts.place(host, port)
        covering = [target for target in self._targets if target.covers(service, host, port)]
        if not listed and not covering:
            raise _refused(what, f"{where} is not among CARILLON_ALLOWED_TARGETS")
        if isinstance(host, str):
            addresses, allowed = tuple(await self._look_up(host, service)), self._networks
        else:
            named = listed or any(target.host == host for target in covering)
            addresses, allowed = (host,), Networks([ip_network(host)]) if named else self._networks
        if refused := [address for address in addresses if not allowed.admit(address)]:
            networks = ",".join(str(address) for address in refused if _can_be_named(address))
            # In the log only: a job's owner need not learn what a name means inside this network.
            _log.warning(
                "target refused", target=where, addresses=[str(address) for address in refused], add_networks=networks
            )
            shown = networks if host == "localhost" or not isinstance(host, str) else "what its log says"
            remedy = f"; add {shown} there if it is meant" if networks else ""
            raise _refused(
                what, f"{where} has an address that is not public, in none of CARILLON_ALLOWED_NETWORKS", remedy
            )
        return addresses


def _can_be_named(address: Address) -> bool:
    return Networks([ip_network(address)]).admit(address)


def _refused(what: str, why: str, remedy: str = "") -> Failed:
    return Failed(TARGET_NOT_ALLOWED, f"{what} is not allowed: {why} of the worker service{remedy}")
