"""Random requests of any method: mostly well formed and about what is there, else about anything."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

_DEPTH = 5
_NAMES = ("name", "schedule", "run")  # without them there is not much to be asked
_TEXTS = (
    *("", "-", "*", "a", "x" * 300, "ä\u202e\u0000", "'; drop table runs; --", "../../etc/passwd", "%s{0}"),
    *("\ud7ff\U0010ffff", "\r\nx: y", "null", "0", "9" * 40, "1e400"),
)
_INTEGERS = (0, 1, 2, 7, 50, 1000, -1, 2**31 - 1, -(2**31))
_LONGS = (*_INTEGERS, 2**63 - 1, -(2**63), 253_402_300_800, -62_135_596_801, 315_576_000_001)


class Requests:
    """Fills messages. `texts`: what to choose from for a string field of a name; `anything` for every other one."""

    def __init__(
        self, dice: random.Random, texts: Mapping[str, Sequence[str]], anything: Sequence[str], *, wild: float = 0.1
    ) -> None:
        self._dice = dice
        self._texts = texts
        self._anything = anything
        self._wild = wild

    def fill(self, message: Message, *, likely: float = 0.6, depth: int = _DEPTH) -> Message:
        """Sets fields of it at random; `likely` is how probable each is."""
        if isinstance(message, Struct):
            message.update({self._text("key"): self._text("value") for _ in range(self._dice.randrange(3))})
            return message
        for field in message.DESCRIPTOR.fields:
            if self._dice.random() < (max(likely, 0.9) if field.name in _NAMES else likely):
                self._set(message, field, likely, depth)
        return message

    def _set(self, message: Message, field: Any, likely: float, depth: int) -> None:
        if field.message_type is not None and depth <= 0:
            return
        target = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._fill_map(target, field, likely, depth)
        elif field.is_repeated:
            for _ in range(self._dice.choice((1, 1, 1, 2, 5))):
                if field.message_type is not None:
                    self.fill(target.add(), likely=likely, depth=depth - 1)
                else:
                    target.append(self._value(field))
        elif field.message_type is not None:
            self._fill_one(target, field, likely, depth)
        else:
            setattr(message, field.name, self._value(field))

    def _fill_map(self, target: Any, field: FieldDescriptor, likely: float, depth: int) -> None:
        entry: Any = field.message_type
        key = self._value(entry.fields_by_name["key"])
        if entry.fields_by_name["value"].message_type is None:
            target[key] = self._value(entry.fields_by_name["value"])
        else:
            self.fill(target[key], likely=likely, depth=depth - 1)

    def _fill_one(self, target: Any, field: FieldDescriptor, likely: float, depth: int) -> None:
        target.SetInParent()
        name = target.DESCRIPTOR.full_name
        if name == "google.protobuf.Timestamp" and self._dice.random() > self._wild:
            target.seconds = int(time.time()) + self._dice.randrange(-200_000, 200_000)
        elif name == "google.protobuf.Duration" and self._dice.random() > self._wild:
            target.seconds = self._dice.randrange(1, 10_000)
        else:
            self.fill(target, likely=likely, depth=depth - 1)

    def _value(self, field: FieldDescriptor) -> Any:
        kind = field.cpp_type
        if field.enum_type is not None:
            known = [value.number for value in field.enum_type.values[1:]]
            return self._dice.choice((0, 99, -1, 2**31 - 1) if self._dice.random() < self._wild else known)
        if kind == FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return self._dice.randbytes(self._dice.choice((16, 16, 16, 0, 15, 64)))
            return self._text(field.name)
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return self._dice.random() < 0.5
        return self._dice.choice(_NUMBERS[kind] if self._dice.random() < self._wild else (1, 2, 50))

    def _text(self, name: str) -> str:
        if self._dice.random() < self._wild:
            return self._dice.choice(_TEXTS)
        known = self._texts.get(name)
        return self._dice.choice(known if known and self._dice.random() > self._wild else self._anything)


_NUMBERS: Mapping[int, Sequence[float]] = {
    FieldDescriptor.CPPTYPE_INT32: _INTEGERS,
    FieldDescriptor.CPPTYPE_INT64: _LONGS,
    FieldDescriptor.CPPTYPE_DOUBLE: (0.5, float("nan"), float("inf"), -1e308),
}
