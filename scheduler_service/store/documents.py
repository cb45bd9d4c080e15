"""JSON documents out of the database, exactly."""

from __future__ import annotations

import json
import math
from typing import Any

# Longer integers are beyond every double, and far longer ones beyond what Python converts.
_MAX_DIGITS = 309


def read_document(text: str) -> Any:
    """Reads the text of a jsonb. Integers stay exact; a number beyond the range of a double is given as its text."""
    return json.loads(text, parse_int=_integer, parse_float=_number)


def _integer(text: str) -> int | str:
    return int(text) if len(text) <= _MAX_DIGITS else text


def _number(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text
