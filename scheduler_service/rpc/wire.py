"""How many fields a request has, told from its bytes: decoding makes a hundred bytes of two (`1a 00`, an empty job),
so that what is far too many must be found before.

The format is protobuf's (https://protobuf.dev/programming-guides/encoding): each field is a number with a wire type,
then its value; a message inside is its length and its bytes.
"""

from __future__ import annotations

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

# The messages inside a message by their field's number, those alone that have something repeated in them.
Plan = dict[int, "Plan"]

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_MOST_SHIFT = 63


def plan_of(message: Descriptor) -> Plan:
    """Where a message of this kind has to be looked into."""
    reached = _reached(message, {})
    repeating = {name for name, each in reached.items() if any(map(_repeats, each.fields))}
    while more := {name for name in reached.keys() - repeating if _inner(reached[name]) & repeating}:
        repeating |= more
    plans: dict[str, Plan] = {name: {} for name in repeating}
    for name, plan in plans.items():
        for field in reached[name].fields:
            if field.message_type is not None and field.message_type.full_name in plans:
                plan[field.number] = plans[field.message_type.full_name]
    return plans.get(message.full_name, {})


def has_more_fields(body: bytes, plan: Plan, most: int) -> bool:
    """Whether there are more than `most` fields in a message's bytes; counts no further. Errors: DecodeError."""
    at, end, outer = 0, len(body), list[tuple[Plan, int]]()
    try:
        while at < end or outer:
            if at == end:
                plan, end = outer.pop()
                continue
            if (most := most - 1) < 0:
                return True
            key = body[at]
            at += 1
            if key > 127:
                key, at = _varint(body, at - 1)
            wire_type = key & 7
            if wire_type == _LENGTH:
                size = body[at]
                at += 1
                if size > 127:
                    size, at = _varint(body, at - 1)
                inner = plan.get(key >> 3)
                if inner is None:
                    at += size
                elif at + size <= end:
                    outer.append((plan, end))
                    plan, end = inner, at + size
                else:
                    raise DecodeError("a message in it goes on beyond its end")
            elif wire_type == _VARINT:
                _, at = _varint(body, at)
            elif wire_type == _EIGHT_BYTES:
                at += 8
            elif wire_type == _FOUR_BYTES:
                at += 4
            else:
                raise DecodeError(f"it has wire type {wire_type}, which no message of Carillon uses")
            if at > end:
                raise DecodeError("a field in it goes on beyond its end")
    except IndexError:
        raise DecodeError("it is cut off") from None
    return False


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where the next thing does."""
    number = shift = 0
    while True:
        octet = body[at]
        at += 1
        number |= (octet & 127) << shift
        if octet < 128:
            return number, at
        shift += 7
        if shift > _MOST_SHIFT:
            raise DecodeError("it has a number of more than ten bytes")


def _reached(message: Descriptor, found: dict[str, Descriptor]) -> dict[str, Descriptor]:
    """It and every kind of message inside it, by name."""
    if message.full_name not in found:
        found[message.full_name] = message
        for field in message.fields:
            if field.message_type is not None:
                _reached(field.message_type, found)
    return found


def _inner(message: Descriptor) -> set[str]:
    return {field.message_type.full_name for field in message.fields if field.message_type is not None}


def _repeats(field: FieldDescriptor) -> bool:
    """Whether each further one of it takes memory of its own; packed numbers take little more than their bytes."""
    return field.is_repeated and not field.is_packed
