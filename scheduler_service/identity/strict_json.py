"""JSON from strangers, read in one way only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn


def strict_json(body: bytes) -> Any:
    """Reads UTF-8 JSON (RFC 8259). What other readers may take otherwise is refused: a name that stands twice in an
    object, NaN and Infinity, other encodings, what is nested too deeply. Errors: ValueError, which repeats nothing."""
    try:
        return json.loads(body.decode(), object_pairs_hook=_without_twins, parse_constant=_no_number)
    except _Ambiguous:
        raise
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None


class _Ambiguous(ValueError):
    pass


def _without_twins(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Ambiguous("a name stands twice in one of its objects")
    return made


def _no_number(_: str) -> NoReturn:
    raise _Ambiguous("it has a NaN or an infinity, which JSON has not")
