"""`google.protobuf.Struct` from JSON documents and back.

A Struct's numbers are doubles. An integer that no double holds exactly (beyond 2**53, mostly ids) is sent as a string
of its digits, as protobuf's JSON mapping does with 64-bit integers: a number that was silently another one is worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from scheduler_service.domain.fields import MAX_JSON_BYTES, MAX_JSON_DEPTH, Violations

_EXACT = 2**53
# A Struct takes up to five and a half times the bytes of its JSON: a digit and a comma become eleven.
_LARGEST = 6 * MAX_JSON_BYTES
# Protobuf reads 100 messages inside each other, three of which are one level of JSON.
_TOO_DEEP = f"(nested deeper than {MAX_JSON_DEPTH} levels, left out)"


def to_struct(document: Mapping[str, Any]) -> Struct:
    """The Struct of a JSON object. In the place of what is nested too deeply to be read stands a note."""
    struct = Struct()
    struct.update({key: _exact(value, 1) for key, value in document.items()})
    return struct


def read_struct(struct: Struct, path: str, wrong: Violations) -> dict[str, Any]:
    """The JSON object of a Struct from a request. One that is far too large is not read at all, which would keep every
    other call waiting; whether the rest is sound is the domain's to say."""
    if (size := struct.ByteSize()) > _LARGEST:
        wrong.add(path, f"it has {size:,} bytes; at most {MAX_JSON_BYTES:,} (256 KiB) of JSON are allowed")
        return {}
    return from_struct(struct)


def from_struct(struct: Struct) -> dict[str, Any]:
    """The JSON object of a Struct; whole numbers are ints as far as doubles count them."""
    return {key: _plain(value) for key, value in struct.fields.items()}


def _exact(value: Any, depth: int) -> Any:
    if depth == MAX_JSON_DEPTH and value and isinstance(value, Mapping | list):
        return _TOO_DEEP
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if _is_double(value) else str(value)
    if isinstance(value, Mapping):
        return {key: _exact(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_exact(inner, depth + 1) for inner in value]
    return value


def _is_double(number: int) -> bool:
    if -_EXACT <= number <= _EXACT:
        return True
    try:
        return int(float(number)) == number
    except OverflowError:
        return False


def _plain(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) <= _EXACT else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return [_plain(inner) for inner in value.list_value.values]
        case _:
            return None
