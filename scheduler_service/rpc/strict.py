"""Requests of newer clients: a field that this server does not know would be dropped without a word, and a job run
otherwise than its service declared it. Mutations refuse it instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.unknown_fields import UnknownFieldSet

from scheduler_service.domain.errors import InvalidInput, Violation


def refuse_unknown_fields(message: Message) -> None:
    """Raises InvalidInput naming each unknown field of a request, at any depth."""
    if found := unknown_fields(message):
        raise InvalidInput(*found)


def unknown_fields(message: Message) -> list[Violation]:
    """Each unknown field of a request, at any depth."""
    return list(_unknown(message, ""))


def _unknown(message: Message, path: str) -> Iterator[Violation]:
    unknown: Any = UnknownFieldSet(message)  # its types leave out that it can be iterated
    numbers = sorted({field.field_number for field in unknown})
    for number in numbers:
        yield Violation(
            path or message.DESCRIPTOR.name,
            f"field number {number} of {message.DESCRIPTOR.full_name} is not known to this scheduler; the client is"
            " newer than it: upgrade the scheduler, or leave the field out",
        )
    for field, value in message.ListFields():
        for place, part in _parts(field, value):
            yield from _unknown(part, f"{path}.{field.name}{place}" if path else f"{field.name}{place}")


def _parts(field: FieldDescriptor, value: Any) -> Iterator[tuple[str, Message]]:
    """The messages inside a field's value, each with its place. A Struct is the same in every version, and to walk
    through a large one in Python would keep every other call waiting."""
    if field.message_type is None or field.message_type is Struct.DESCRIPTOR:
        return
    if field.message_type.GetOptions().map_entry:
        if field.message_type.fields_by_name["value"].message_type is not None:
            yield from ((f"[{key!a}]", part) for key, part in value.items())
    elif field.is_repeated:
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    else:
        yield "", value
