"""JSON objects that workers report, checked so that the database takes each: one that it refused would take the whole
batch of results with it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NoReturn

from scheduler_service.domain.fields import MAX_JSON_DEPTH, left_out

MAX_BYTES = 64 * 1024
_MAX_NUMBER = 400  # characters, and powers of ten: beyond, numeric overflows before a double's range is any help


def problem_of(name: str, text: str) -> str | None:
    """What is wrong with a text that must be a JSON object or empty; None if nothing is."""
    if not text:
        return None
    # A character is at most four bytes, so most texts need not be encoded to be measured.
    if len(text) * 4 > MAX_BYTES and len(text.encode()) > MAX_BYTES:
        return f"{name} is larger than 64 KiB"
    longer = 0

    def number(digits: str) -> float:
        nonlocal longer
        value = _number(digits)
        longer += left_out(digits)
        return value

    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=number)
        if not isinstance(value, dict):
            return f"{name} is not a JSON object"
        # Most texts have too few brackets to need a look.
        if text.count("{") + text.count("[") > MAX_JSON_DEPTH and _is_too_deep(value):
            return f"{name} is nested deeper than {MAX_JSON_DEPTH} levels"
        if "\\u" in text:
            _check_texts(value)
        if longer > 0 and len(text.encode()) + longer > MAX_BYTES:
            return f"{name} is larger than 64 KiB once its numbers are written out, as they are stored"
    except RecursionError:
        return f"{name} is nested deeper than {MAX_JSON_DEPTH} levels"
    except ValueError as error:
        return f"{name} is not JSON that can be kept: {error}"
    return None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _number(text: str) -> float:
    _, _, exponent = text.lower().partition("e")
    if len(text) > _MAX_NUMBER or (exponent and abs(int(exponent)) > _MAX_NUMBER):
        raise ValueError("it has a number that is too large, too small or too long")
    return float(text)


def _is_too_deep(value: Any) -> bool:
    """Whether something stands below as many levels as requests may have: whoever reads it decodes no more."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [inner for outer in level for inner in _inside(outer)]
    return bool(level)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _check_texts(value: Any) -> None:
    """Only escapes can smuggle these in: protobuf texts are valid UTF-8, and JSON has no raw control characters."""
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("it has a NUL character")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("it has half of a surrogate pair")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_texts(key)
            _check_texts(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_texts(inner)
