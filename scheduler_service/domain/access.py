"""Who calls, and what they may do (DESIGN: "Who may do what"). Decided once at the edge, carried as a value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from scheduler_service.domain.errors import Forbidden, NotFound, Unauthenticated


class Kind(StrEnum):
    """What sort of caller it is."""

    ANONYMOUS = "anonymous"
    SERVICE = "service"
    ADMIN = "admin"
    USER = "user"


class Scope(StrEnum):
    """What a service token may be used for."""

    REGISTER = "register"
    TRIGGER = "trigger"
    READ = "read"
    COVERAGE = "coverage"
    WORK = "work"


ANY_SERVICE = "*"
SYSTEM_TENANT = "-"


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. `name` is its token's id or its JWT's subject; `service` is what a service token is bound to (`*`
    for a worker that serves all); `tenant` is a user's."""

    kind: Kind
    name: str = ""
    service: str = ""
    tenant: str = ""
    scopes: frozenset[Scope] = frozenset()

    def __str__(self) -> str:
        """How records and the audit trail name it, such as `admin:alice` or `service:email-service`."""
        return f"{self.kind}:{self.service or self.name}" if self.kind is Kind.SERVICE else f"{self.kind}:{self.name}"

    @property
    def is_admin(self) -> bool:
        return self.kind is Kind.ADMIN

    def serves(self, service: str) -> bool:
        """Whether a service's token is bound to this service (or, for a worker, to all)."""
        return self.kind is Kind.SERVICE and self.service in (service, ANY_SERVICE)


ANONYMOUS = Principal(Kind.ANONYMOUS)


class Action(StrEnum):
    """What a call wants to do, in a sentence's words: "may not {action}"."""

    REGISTER = "register jobs"
    READ = "read"
    STEER = "change jobs"
    TRIGGER = "trigger jobs"
    SET_SCHEDULE = "change schedules"
    RUN_SCHEDULE = "run schedules now"
    TENANT = "read or change tenants"
    REMOVE_TENANT = "remove tenants"
    CANCEL = "cancel runs"
    BACKFILL = "backfill jobs"
    WORK = "work"


_SCOPES = {
    Action.REGISTER: Scope.REGISTER,
    Action.READ: Scope.READ,
    Action.TRIGGER: Scope.TRIGGER,
    Action.WORK: Scope.WORK,
}
_ADMIN_MAY = frozenset(
    {
        Action.READ,
        Action.STEER,
        Action.TRIGGER,
        Action.SET_SCHEDULE,
        Action.RUN_SCHEDULE,
        Action.TENANT,
        Action.REMOVE_TENANT,
        Action.CANCEL,
        Action.BACKFILL,
    }
)
_USER_MAY = frozenset({Action.READ, Action.SET_SCHEDULE, Action.RUN_SCHEDULE, Action.TENANT})


def may(principal: Principal, action: Action, *, service: str = "", tenant: str = "") -> bool:
    """Whether a principal may do something to things of a service and tenant. Leave `service` or `tenant` empty
    where the call names none: what a list shows is limited by row level security then."""
    if principal.kind is Kind.ADMIN:
        return action in _ADMIN_MAY
    if principal.kind is Kind.SERVICE:
        bound = not service or principal.service == service or (action is Action.WORK and principal.serves(service))
        return bound and _SCOPES.get(action) in principal.scopes
    if principal.kind is Kind.USER:
        own = not tenant or (bool(principal.tenant) and principal.tenant == tenant != SYSTEM_TENANT)
        return own and action in _USER_MAY
    return False


def require(principal: Principal, action: Action, *, service: str = "", tenant: str = "") -> None:
    """Refuses what `may` does not allow: Unauthenticated, Forbidden, or NotFound for a user, who learns nothing of
    what is not its own."""
    if may(principal, action, service=service, tenant=tenant):
        return
    if principal.kind is Kind.ANONYMOUS:
        raise Unauthenticated(
            "this call needs credentials: send `x-service-token: id.secret` or `authorization: Bearer <JWT>`"
        )
    if principal.kind is Kind.USER and action in _USER_MAY:
        raise NotFound("there is no such thing, or it is not yours to see")
    of = f" of {service}" if service else ""
    raise Forbidden(f"{principal} may not {action.value}{of}; {_WHO_MAY[action]}")


_WHO_MAY = {
    Action.REGISTER: "registration needs a service token with scope `register` that is bound to this service",
    Action.READ: "reading needs the admin role, or a service token with scope `read` for its own jobs",
    Action.STEER: "that needs a JWT with the admin role",
    Action.TRIGGER: "that needs the admin role, or a service token with scope `trigger` for its own jobs",
    Action.SET_SCHEDULE: "that needs the admin role, or a user's JWT with a tenant",
    Action.RUN_SCHEDULE: "that needs the admin role, or a user's JWT with a tenant",
    Action.TENANT: "that needs the admin role, or a JWT of a user of that tenant",
    Action.REMOVE_TENANT: "that needs a JWT with the admin role",
    Action.CANCEL: "that needs a JWT with the admin role",
    Action.BACKFILL: "that needs a JWT with the admin role",
    Action.WORK: "a work stream needs a service token with scope `work`, bound to the service or to `*`",
}
