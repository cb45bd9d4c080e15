"""Client certificates of workers: which worker a certificate's name stands for.

Names are the certificate's DNS and URI names (RFC 5280, subjectAltName), taken exactly; its common name says nothing.
That it was signed by CARILLON_TLS_CLIENT_CA_FILE, and is valid now, the TLS handshake has established.
"""

from __future__ import annotations

from collections.abc import Mapping

from scheduler_service.domain.access import ANY_SERVICE, Action, Kind, Principal, Scope
from scheduler_service.domain.names import is_id
from scheduler_service.identity.credentials import invalid

_SHOWN = 5
_SHOWN_LENGTH = 100


def parse_worker_certificates(text: str) -> dict[str, str]:
    """Reads `worker-1.internal=*,email.internal=email-service` (commas or lines): services by certificate name.

    Errors: ValueError with a sentence.
    """
    services: dict[str, str] = {}
    for number, entry in enumerate(filter(None, map(str.strip, text.replace("\n", ",").split(","))), 1):
        name, equals, service = (part.strip() for part in entry.rpartition("="))
        if not (equals and name and (service == ANY_SERVICE or is_id(service))):
            raise ValueError(f"entry {number} is not of the form `certificate-name=service`, or `certificate-name=*`")
        if "." not in name and "://" not in name:
            # Tokens' ids have no dot: what is known of one is never taken for the other's.
            raise ValueError(f"entry {number}: {name} is no full name; a certificate's has a dot, or is a URI")
        if "*" in name:
            raise ValueError(f"entry {number} has a wildcard; write each certificate's name out")
        if name in services:
            raise ValueError(f"entry {number} names {name} again; a name stands for one service, or for `*`")
        services[name] = service
    return services


class WorkerCertificates:
    """The certificates of CARILLON_WORKER_CERTIFICATES. `required`: no work without one."""

    def __init__(self, services: Mapping[str, str], *, required: bool = False) -> None:
        self._services = services
        self._required = required

    def principal(self, names: tuple[str, ...] | None) -> Principal | None:
        """The worker; `names` is None without a certificate, and so is the answer. Errors: Unauthenticated."""
        if names is None:
            return None
        known = [name for name in names if name in self._services]
        if not known:
            shown = ", ".join(name[:_SHOWN_LENGTH] for name in names[:_SHOWN]) or "none (it needs a DNS or URI name)"
            raise invalid(f"CARILLON_WORKER_CERTIFICATES has none of this certificate's names: {shown}")
        services = {self._services[name] for name in known}
        if len(services) > 1:
            raise invalid(f"the certificate's names {', '.join(known)} stand for several services; use one for each")
        service = services.pop()
        kind = Kind.WORKER if service == ANY_SERVICE else Kind.SERVICE
        return Principal(kind, name=known[0], service=service, scopes=frozenset({Scope.WORK}))

    def refuse_mismatch(self, principal: Principal, names: tuple[str, ...] | None) -> None:
        """Errors: Unauthenticated for a token that is bound to more than the certificate beside it, or another."""
        worker = self.principal(names)
        if worker is not None and not worker.serves(principal.service):
            raise invalid(
                f"the certificate is of a worker for {worker.service}, the token beside it is bound to "
                f"{principal.service}; send a token for {worker.service}, or none"
            )

    def holds(self, principal: Principal) -> bool:
        """Whether this principal came by a certificate, and its name still stands for that."""
        return (
            not principal.token_id
            and principal.name in self._services
            and principal == self.principal((principal.name,))
        )

    def refuse_without(self, action: Action, names: tuple[str, ...] | None) -> None:
        """Errors: Unauthenticated for work without a certificate, where one is required."""
        if self._required and action is Action.WORK and names is None:
            raise invalid("work needs a client certificate here; connect to CARILLON_MTLS_PORT with one")
