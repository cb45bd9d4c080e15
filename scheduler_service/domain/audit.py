"""What the audit trail keeps of a change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from scheduler_service.domain.access import SYSTEM_TENANT
from scheduler_service.domain.fields import json_size
from scheduler_service.domain.job import JobOverrides, JobSpec
from scheduler_service.domain.names import ANY_TENANT
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.domain.values import to_json

_MAX_KEYS = 100
_MAX_KEY = 100


@dataclass(frozen=True, slots=True)
class Change:
    """Something that was changed. `resource` is its resource name; `before` and `after` are JSON documents of it as
    far as it changed: None before it was made, or after it was removed. `tenant`: whose thing it is, empty for what
    belongs to none. `action` is left empty for the method of the call that makes the change."""

    resource: str
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    tenant: str = ""
    action: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """A change as it was recorded. `position`: its place in the chain; 0 while it is not sealed."""

    event_id: int
    event_at: datetime
    principal: str
    action: str
    resource: str
    tenant: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    request_id: str
    address: str
    position: int


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events. Empty and None: all. `resource` takes what lies below it, too."""

    principal: str = ""
    action: str = ""
    resource: str = ""
    tenant: str = ""
    request_id: str = ""
    since: datetime | None = None
    until: datetime | None = None


def made(resource: object, after: Mapping[str, Any], *, tenant: str = "") -> Change:
    """What was not there before."""
    return Change(str(resource), None, after, _owner(tenant))


def removed(resource: object, before: Mapping[str, Any], *, tenant: str = "") -> Change:
    """What is there no more."""
    return Change(str(resource), before, None, _owner(tenant))


def updated(resource: object, before: Mapping[str, Any], after: Mapping[str, Any], *, tenant: str = "") -> Change:
    """What was changed: only the fields that differ are kept, at any depth."""
    return Change(str(resource), *differing(before, after), _owner(tenant))


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two JSON objects without the fields that are the same in both."""
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for key in {**before, **after}:
        if key not in after:
            old[key] = before[key]
        elif key not in before:
            new[key] = after[key]
        elif isinstance(before[key], Mapping) and isinstance(after[key], Mapping):
            inner_old, inner_new = differing(before[key], after[key])
            if inner_old or inner_new:
                old[key], new[key] = inner_old, inner_new
        elif before[key] != after[key] or isinstance(before[key], bool) != isinstance(after[key], bool):
            old[key], new[key] = before[key], after[key]
    return old, new


def job_document(declared: JobSpec, overrides: JobOverrides, endpoint: str) -> dict[str, Any]:
    """A job: what its service declared, what operators overrode, and where it is called, if it is."""
    document = {"declared": to_json(declared), "overrides": to_json(overrides)}
    return document | ({"endpoint": endpoint} if endpoint else {})


def schedule_document(spec: ScheduleSpec) -> dict[str, Any]:
    """A schedule, as it was asked for."""
    document: dict[str, Any] = to_json(spec)
    return document


def payload_document(payload: Mapping[str, Any]) -> dict[str, Any]:
    """How large a payload is and which keys it has; its values may be anybody's, and stay out of the trail."""
    return {"bytes": json_size(payload), "keys": [key[:_MAX_KEY] for key in sorted(payload)[:_MAX_KEYS]]}


def _owner(tenant: str) -> str:
    """The system's things, and those of every tenant, belong to none."""
    return "" if tenant in (SYSTEM_TENANT, ANY_TENANT) else tenant
