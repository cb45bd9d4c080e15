"""Nested values of optional fields (a job's declaration, its overrides, a schedule's timing), whatever they hold:
their JSON form, the paths of their fields, and taking fields from one into another.

A field that is None is not set. Paths are those of the protos: `timing.cron`, `policies.retry.delay`.
"""

from __future__ import annotations

import types
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from enum import Enum
from functools import lru_cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

V = TypeVar("V")
_MICROSECOND = timedelta(microseconds=1)


def to_json(value: Any) -> Any:
    """The JSON form: objects without the fields that are not set, durations in seconds, enums by name."""
    if is_dataclass(value):
        inner = ((each.name, getattr(value, each.name)) for each in fields(value))
        return {name: to_json(part) for name, part in inner if part is not None}
    if isinstance(value, timedelta):
        whole, rest = divmod(value, timedelta(seconds=1))
        return value.total_seconds() if rest else whole
    if isinstance(value, tuple):
        return [to_json(part) for part in value]
    return value.name if isinstance(value, Enum) else value


def from_json(kind: type[V], data: Mapping[str, Any]) -> V:
    """The value of a JSON form. Fields that this version does not know are passed over."""
    hints = _hints(cast("Hashable", kind))
    return kind(**{name: _read(hint, data[name]) for name, hint in hints.items() if name in data})


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Each field that is set, by its path."""
    found: dict[str, Any] = {}
    for each in fields(value):
        part, path = getattr(value, each.name), f"{prefix}{each.name}"
        if is_dataclass(part) and fields(part):
            found |= leaves(part, f"{path}.")
        elif part is not None:
            found[path] = part
    return found


def paths_of(kind: type[Any], prefix: str = "") -> list[str]:
    """Every path that a value of this kind can have, groups before their fields."""
    found = []
    for name, hint in _hints(cast("Hashable", kind)).items():
        found.append(f"{prefix}{name}")
        if is_dataclass(hint):
            found += paths_of(cast("type[Any]", hint), f"{prefix}{name}.")
    return found


def take(target: V, source: V, paths: Iterable[str]) -> V:
    """`target` with these fields, or whole groups of them, as they are in `source`, set or not."""
    for path in paths:
        target = _take_one(target, source, path.split("."))
    return target


def put_over(over: V, base: V) -> V:
    """`base` with each field that is set in `over`; JSON objects and labels are put over key by key."""
    changes = {}
    for each in fields(over):  # type: ignore[arg-type] # V is always a dataclass
        mine, theirs = getattr(over, each.name), getattr(base, each.name)
        if mine is None:
            continue
        if theirs is not None and is_dataclass(mine):
            changes[each.name] = put_over(mine, theirs)
        elif isinstance(mine, dict) and isinstance(theirs, dict):
            changes[each.name] = {**theirs, **mine}
        else:
            changes[each.name] = mine
    return replace(base, **changes)  # type: ignore[type-var] # the same


def _take_one(target: Any, source: Any, path: list[str]) -> Any:
    name, *rest = path
    mine = getattr(source, name)
    return replace(target, **{name: _take_one(getattr(target, name), mine, rest) if rest else mine})


@lru_cache(maxsize=64)
def _hints(kind: Any) -> dict[str, Any]:
    """Each field's type, without its `| None`."""
    return {name: _without_none(hint) for name, hint in get_type_hints(cast("Hashable", kind)).items()}


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def _read(hint: Any, data: Any) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, data)
    if hint is timedelta:
        return round(data * 1_000_000) * _MICROSECOND
    if get_origin(hint) is tuple:
        return tuple(data)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint[data]
    return data
