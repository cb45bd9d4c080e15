"""Who calls, and what they may do (DESIGN: "Who may do what"). Decided once at the edge, carried as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from scheduler_service.domain.errors import Forbidden, NotFound, NothingToSee, Unauthenticated


class Kind(StrEnum):
    """What sort of caller it is."""

    ANONYMOUS = "anonymous"
    SERVICE = "service"
    WORKER = "worker"
    """A worker for every service: its token (or certificate) is bound to `*`."""
    ADMIN = "admin"
    USER = "user"
    OPERATOR = "operator"
    """Somebody at the deployment's own command line. Never the caller of an RPC."""
    ENGINE = "engine"
    """A replica's own work, such as repairs."""


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
class Origin:
    """Where a call comes from, for the audit trail. `request_id` is the caller's (`x-request-id`) or made for it."""

    address: str = ""
    request_id: str = ""
    method: str = ""
    """The RPC, such as `JobService/PauseJob`, or the command, such as `tokens create`."""


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. `name` is its token's id, its certificate's name or its JWT's subject; `service` is what a service's
    or worker's credential is bound to (`*`: all services); `tenant` is a user's. `expires_at`: when its JWT or
    certificate stops to count, None for one that does not expire by itself. `token_id`: the service token that it came
    by, which may be revoked or expire. `origin` says nothing about who it is."""

    kind: Kind
    name: str = ""
    service: str = ""
    tenant: str = ""
    scopes: frozenset[Scope] = frozenset()
    expires_at: datetime | None = field(default=None, compare=False)
    token_id: str = field(default="", compare=False)
    origin: Origin = field(default=Origin(), compare=False)

    def __str__(self) -> str:
        """How records and the audit trail name it, such as `admin:alice` or `service:email-service`."""
        return f"{self.kind}:{self.service or self.name}" if self.kind is Kind.SERVICE else f"{self.kind}:{self.name}"

    @property
    def is_admin(self) -> bool:
        return self.kind is Kind.ADMIN

    def serves(self, service: str) -> bool:
        """Whether its credential is bound to this service (or, for a worker, to all)."""
        return self.kind in (Kind.SERVICE, Kind.WORKER) and self.service in (service, ANY_SERVICE)


ANONYMOUS = Principal(Kind.ANONYMOUS)


@dataclass(frozen=True, slots=True)
class Resource:
    """Whose thing it is. Empty where a call names none: what a list shows is limited by row level security then."""

    service: str = ""
    tenant: str = ""


ANYTHING = Resource()


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
    RETRY = "try runs again"
    BACKFILL = "backfill jobs"
    WORK = "work"
    AUDIT = "read the audit trail"
    ADMINISTER = "manage service tokens and users"


_SCOPES = {
    Action.REGISTER: Scope.REGISTER,
    Action.READ: Scope.READ,
    Action.TRIGGER: Scope.TRIGGER,
    Action.WORK: Scope.WORK,
}
_ADMIN_MAY = frozenset(Action) - {Action.REGISTER, Action.WORK, Action.ADMINISTER}
_USER_MAY = frozenset({Action.READ, Action.SET_SCHEDULE, Action.RUN_SCHEDULE, Action.TENANT})


def may(principal: Principal, action: Action, resource: Resource = ANYTHING) -> bool:
    """Whether a principal may do something to a thing."""
    match principal.kind:
        case Kind.ADMIN:
            return action in _ADMIN_MAY
        case Kind.SERVICE:
            return resource.service in ("", principal.service) and _SCOPES.get(action) in principal.scopes
        case Kind.WORKER:
            return action is Action.WORK and Scope.WORK in principal.scopes
        case Kind.USER:
            return bool(principal.tenant) and action in _USER_MAY and _is_own(principal, resource.tenant)
        case Kind.OPERATOR:
            return action in (Action.ADMINISTER, Action.AUDIT)
        case _:
            return False


def _is_own(user: Principal, tenant: str) -> bool:
    """The system's things are no user's."""
    return not tenant or user.tenant == tenant != SYSTEM_TENANT


def require(principal: Principal, action: Action, resource: Resource = ANYTHING) -> None:
    """Refuses what `may` does not allow: Unauthenticated, Forbidden, or NotFound for a user, who learns nothing of
    what is not its own (NothingToSee for one without a tenant, whatever it asks)."""
    if may(principal, action, resource):
        return
    if principal.kind is Kind.ANONYMOUS:
        raise Unauthenticated(
            "this call needs credentials: send `x-service-token: id.secret` or `authorization: Bearer <JWT>`"
        )
    if principal.kind is Kind.USER and not principal.tenant:
        raise NothingToSee(
            "there is no such thing, or it is not yours to see; your JWT names neither the admin role nor a tenant"
        )
    if principal.kind is Kind.USER and action in _USER_MAY:
        raise NotFound("there is no such thing, or it is not yours to see")
    of = f" of {resource.service}" if resource.service else ""
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
    Action.RETRY: "that needs a JWT with the admin role",
    Action.BACKFILL: "that needs a JWT with the admin role",
    Action.WORK: "a work stream needs a service token with scope `work`, bound to the service or to `*`",
    Action.AUDIT: "that needs a JWT with the admin role",
    Action.ADMINISTER: "that is for the deployment's own command line",
}
