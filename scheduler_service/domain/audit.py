"""What the audit trail keeps of a change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from scheduler_service.domain.access import SYSTEM_TENANT
from scheduler_service.domain.fields import compact_json, json_size
from scheduler_service.domain.job import JobOverrides, JobSpec
from scheduler_service.domain.names import ANY_TENANT
from scheduler_service.domain.schedule import ScheduleSpec
from scheduler_service.domain.values import to_json

LARGE = 4 * 1024
"""Bytes as compact JSON, beyond which of a config or of labels only a summary is kept: the trail is kept for ever, and
whoever may change them would fill it up."""

_CALLERS_OWN = ("config", "labels")
_MAX_KEYS = 100
_MAX_KEY = 100
_MAX_KEYS_BYTES = 2 * 1024


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
    """Which events. Empty and None: all. `resource` takes what lies below it, too; `principal`, where it is a kind and
    a colon (`engine:`), all of that kind."""

    principal: str = ""
    action: str = ""
    resource: str = ""
    tenant: str = ""
    request_id: str = ""
    since: datetime | None = None
    until: datetime | None = None

    @property
    def of_a_kind(self) -> bool:
        return self.principal.endswith(":") and self.principal.count(":") == 1


def made(resource: object, after: Mapping[str, Any], *, tenant: str = "") -> Change:
    """What was not there before."""
    return Change(str(resource), None, _shortened(after), _owner(tenant))


def removed(resource: object, before: Mapping[str, Any], *, tenant: str = "") -> Change:
    """What is there no more."""
    return Change(str(resource), _shortened(before), None, _owner(tenant))


def updated(resource: object, before: Mapping[str, Any], after: Mapping[str, Any], *, tenant: str = "") -> Change:
    """What was changed: only the fields that differ are kept, at any depth."""
    return Change(str(resource), *differing(_shortened(before), _shortened(after)), _owner(tenant))


def repaired(resource: object, action: str, after: Mapping[str, Any], *, tenant: str = "") -> Change:
    """What a replica mended by itself: there is no call whose method would name it."""
    return Change(str(resource), None, _shortened(after), _owner(tenant), action)


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
    return {"bytes": json_size(payload), "keys": _first_keys(payload)}


def _shortened(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document with `large_config` in place of a `config` of over 4 KiB, and the same of labels, at any depth: its
    size, its first keys, and the SHA-256 of its compact JSON, by which two can be told apart."""
    short: dict[str, Any] = {}
    for name, value in document.items():
        if name in _CALLERS_OWN and isinstance(value, Mapping):
            large = json_size(value) > LARGE
            short[f"large_{name}" if large else name] = _summary(value) if large else value
        else:
            short[name] = _shortened(value) if isinstance(value, Mapping) else value
    return short


def _summary(value: Mapping[str, Any]) -> dict[str, Any]:
    digest = hashlib.sha256(compact_json(value).encode("utf-8", "surrogatepass")).hexdigest()
    return payload_document(value) | {"sha256": digest}


def _first_keys(value: Mapping[str, Any]) -> list[str]:
    """The first in alphabetical order; long ones are cut off."""
    kept: list[str] = []
    room = _MAX_KEYS_BYTES
    for key in sorted(value)[:_MAX_KEYS]:
        short = key[:_MAX_KEY]
        room -= len(short.encode("utf-8", "surrogatepass"))
        if room < 0:
            break
        kept.append(short)
    return kept


def _owner(tenant: str) -> str:
    """The system's things, and those of every tenant, belong to none."""
    return "" if tenant in (SYSTEM_TENANT, ANY_TENANT) else tenant
