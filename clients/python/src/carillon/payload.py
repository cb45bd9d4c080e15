"""Payloads: JSON objects as the type that a handler's parameter is annotated with.

`payload_decoder` reads an annotation once, when the handler is declared, and says then what it cannot decode. What
it returns reads a run's payload, and raises `Failed` with `BAD_PAYLOAD` that names the key and what is allowed.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Literal, Union, get_args, get_origin

from carillon.outcome import BAD_PAYLOAD, Failed

Decoder = Callable[[Any, str], Any]


class Mismatch(Exception):
    """A value does not fit; the text names the key and what is allowed."""


def payload_decoder(annotation: Any, names: Mapping[str, Any]) -> Callable[[str], Any]:
    """What decodes a payload as `annotation`.

    names: where annotations in quotes are looked up, beside their own modules. Raises TypeError for what is no JSON
    object, or has a part that JSON has no counterpart for.
    """
    if not _is_object(annotation):
        raise TypeError(
            f"a payload must be a dataclass, a TypedDict, a dict[str, ...] or a pydantic model, not {_name(annotation)}"
        )
    decode = _Reader(names).decoder(annotation, "payload")

    def from_json(text: str) -> Any:
        try:
            value = json.loads(text or "{}")
            return decode(value, "payload")
        except (Mismatch, ValueError, RecursionError) as error:
            raise Failed(BAD_PAYLOAD, str(error)) from None

    return from_json


def hints_of(annotated: Any, names: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The annotations of a function or class, those in quotes too. Raises TypeError if one means nothing.

    Names of its own module come first; `names` serves what is declared inside a function.
    """
    try:
        return typing.get_type_hints(annotated, include_extras=True)
    except NameError:
        pass
    try:
        return typing.get_type_hints(annotated, localns=dict(names), include_extras=True)
    except NameError as error:
        raise TypeError(f"{what}: the annotations of {annotated.__qualname__} cannot be read: {error}") from None


class _Reader:
    """Reads annotations; remembers classes, so that one may mention itself."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names = dict(names)
        self._classes: dict[Any, _Fields] = {}

    def decoder(self, annotation: Any, where: str) -> Decoder:
        """What decodes a value at `where`."""
        origin = get_origin(annotation)
        if origin in (typing.Annotated, typing.Final) or _is_presence(origin):
            return self.decoder(get_args(annotation)[0], where)
        if annotation in _PLAIN:
            return _PLAIN[annotation]
        if origin in (Union, types.UnionType):
            return self._union(get_args(annotation), where)
        if origin is Literal:
            return _literal(get_args(annotation))
        if origin in (list, Sequence, tuple) or annotation in (list, tuple):
            return self._list(annotation, origin or annotation, where)
        if origin in (dict, Mapping) or annotation is dict:
            return self._dict(get_args(annotation), where)
        if origin is None and isinstance(annotation, type):
            return self._class(annotation, where)
        raise TypeError(f"{where} is annotated as {_name(annotation)}, which JSON has no counterpart for")

    def _class(self, annotation: type, where: str) -> Decoder:
        if callable(getattr(annotation, "model_validate", None)):
            return _model(annotation)
        if dataclasses.is_dataclass(annotation) or _is_typed_dict(annotation):
            if annotation not in self._classes:
                fields = self._classes[annotation] = _Fields(annotation)
                fields.read(self, self._names, where)
            return self._classes[annotation]
        if issubclass(annotation, enum.Enum):
            return _enum(annotation)
        raise TypeError(f"{where} is annotated as {_name(annotation)}, which JSON has no counterpart for")

    def _union(self, choices: tuple[Any, ...], where: str) -> Decoder:
        names = " or ".join(_name(choice) for choice in choices)
        only = [self.decoder(choice, where) for choice in choices if choice is not type(None)]

        def decode(value: Any, at: str) -> Any:
            if value is None and type(None) in choices:
                return None
            if len(only) == 1:
                return only[0](value, at)
            for attempt in only:
                try:
                    return attempt(value, at)
                except Mismatch:
                    continue
            raise Mismatch(f"{at} must be {names}, not {_shown(value)}")

        return decode

    def _list(self, annotation: Any, origin: Any, where: str) -> Decoder:
        entries = get_args(annotation)
        if origin is tuple and (len(entries) != 2 or entries[1] is not Ellipsis):
            raise TypeError(f"{where} is annotated as {_name(annotation)}; of tuples, only tuple[X, ...] is decoded")
        entry = self.decoder(entries[0], f"{where}[]") if entries else _anything

        def decode(value: Any, at: str) -> Any:
            if not isinstance(value, list):
                raise Mismatch(f"{at} must be a list, not {_shown(value)}")
            decoded = [entry(each, f"{at}[{index}]") for index, each in enumerate(value)]
            return tuple(decoded) if origin is tuple else decoded

        return decode

    def _dict(self, entries: tuple[Any, ...], where: str) -> Decoder:
        if entries and entries[0] is not str:
            raise TypeError(f"{where} is a dict with keys of {_name(entries[0])}; JSON has string keys only")
        entry = self.decoder(entries[1], f"{where}[]") if entries else _anything

        def decode(value: Any, at: str) -> Any:
            if not isinstance(value, dict):
                raise Mismatch(f"{at} must be an object, not {_shown(value)}")
            return {key: entry(each, f"{at}.{key}") for key, each in value.items()}

        return decode


class _Fields:
    """Decodes a dataclass or a TypedDict. Its fields are read after it is known, so that it may mention itself."""

    def __init__(self, cls: Any) -> None:
        self._cls = cls
        self._decoders: dict[str, Decoder] = {}
        self._required: set[str] = set()

    def read(self, reader: _Reader, names: dict[str, Any], where: str) -> None:
        """Reads the annotations of the class."""
        hints = hints_of(self._cls, names, where)
        if _is_typed_dict(self._cls):
            wanted = list(hints)
            self._required = {name for name in wanted if _is_required(self._cls, name, hints[name])}
        else:
            fields = [field for field in dataclasses.fields(self._cls) if field.init]
            wanted = [field.name for field in fields]
            self._required = {field.name for field in fields if _has_no_default(field)}
        for name in wanted:
            self._decoders[name] = reader.decoder(hints[name], f"{where}.{name}")

    def __call__(self, value: Any, at: str) -> Any:
        if not isinstance(value, dict):
            raise Mismatch(f"{at} must be an object, not {_shown(value)}")
        for key in value:
            if key not in self._decoders:
                allowed = ", ".join(self._decoders) or "none"
                raise Mismatch(f"{at} has the unknown key {key!r}; allowed are: {allowed}")
        for key in self._decoders:
            if key in self._required and key not in value:
                raise Mismatch(f"{at}.{key} is required")
        try:
            return self._cls(**{key: self._decoders[key](each, f"{at}.{key}") for key, each in value.items()})
        except (TypeError, ValueError) as error:  # raised by __post_init__
            raise Mismatch(f"{at}: {error}") from None


def _anything(value: Any, at: str) -> Any:  # noqa: ARG001 - one shape for all decoders
    return value


def _exactly(kind: type, words: str) -> Decoder:
    def decode(value: Any, at: str) -> Any:
        if type(value) is not kind:
            raise Mismatch(f"{at} must be {words}, not {_shown(value)}")
        return value

    return decode


def _int(value: Any, at: str) -> int:
    # Numbers of a Struct are doubles, so a whole number may arrive as 5.0.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        raise Mismatch(f"{at} must be a whole number, not {_shown(value)}")
    return int(value)


def _float(value: Any, at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Mismatch(f"{at} must be a number, not {_shown(value)}")
    return float(value)


def _parsed(parse: Callable[[str], Any], words: str) -> Decoder:
    def decode(value: Any, at: str) -> Any:
        try:
            if isinstance(value, str):
                return parse(value)
        except ValueError:
            pass
        raise Mismatch(f"{at} must be {words}, not {_shown(value)}")

    return decode


def _instant(text: str) -> datetime:
    # Python 3.10 does not read the Z.
    return datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)


_PLAIN: dict[Any, Decoder] = {
    Any: _anything,
    object: _anything,
    str: _exactly(str, "a string"),
    bool: _exactly(bool, "true or false"),
    type(None): _exactly(type(None), "null"),
    int: _int,
    float: _float,
    datetime: _parsed(_instant, "an instant such as '2026-11-01T09:00:00Z'"),
    date: _parsed(date.fromisoformat, "a date such as '2026-11-01'"),
    uuid.UUID: _parsed(uuid.UUID, "a UUID"),
}


def _literal(choices: tuple[Any, ...]) -> Decoder:
    def decode(value: Any, at: str) -> Any:
        for choice in choices:
            if type(choice) is type(value) and choice == value:
                return value
        raise Mismatch(f"{at} must be one of {', '.join(map(repr, choices))}, not {_shown(value)}")

    return decode


def _enum(kind: type[enum.Enum]) -> Decoder:
    def decode(value: Any, at: str) -> Any:
        try:
            return kind(value)
        except ValueError:
            values = ", ".join(repr(member.value) for member in kind)
            raise Mismatch(f"{at} must be one of {values}, not {_shown(value)}") from None

    return decode


def _model(kind: Any) -> Decoder:
    def decode(value: Any, at: str) -> Any:
        try:
            return kind.model_validate(value)
        except ValueError as error:  # pydantic's ValidationError is one
            raise Mismatch(f"{at}: {error}") from None

    return decode


def _is_object(annotation: Any) -> bool:
    origin = get_origin(annotation)
    return (
        annotation is dict
        or origin in (dict, Mapping)
        or dataclasses.is_dataclass(annotation)
        or _is_typed_dict(annotation)
        or callable(getattr(annotation, "model_validate", None))
    )


def _is_typed_dict(annotation: Any) -> bool:
    """Whether it is a TypedDict, of typing or typing_extensions."""
    return isinstance(annotation, type) and hasattr(annotation, "__required_keys__")


def _is_required(cls: Any, name: str, hint: Any) -> bool:
    # `__required_keys__` does not see Required and NotRequired inside quoted annotations.
    said = getattr(get_origin(hint), "_name", None)
    return said == "Required" if said in ("Required", "NotRequired") else name in cls.__required_keys__


def _is_presence(origin: Any) -> bool:
    """Whether it is `Required` or `NotRequired`, of typing or typing_extensions."""
    return getattr(origin, "_name", None) in ("Required", "NotRequired")


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _name(annotation: Any) -> str:
    return annotation.__name__ if type(annotation) is type else str(annotation).replace("typing.", "")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
