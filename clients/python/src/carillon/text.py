"""Text and JSON as the scheduler accepts them: valid UTF-8, no NUL, no NaN, bounded in bytes and depth."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

MESSAGE_BYTES = 4 * 1024
DETAIL_BYTES = 16 * 1024
REPORT_BYTES = 64 * 1024
REPORT_DEPTH = 32

_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def clean(text: str, limit: int, *, keep_end: bool = False) -> str:
    """`text` without NUL and lone surrogates, cut to at most `limit` bytes of UTF-8.

    What is cut off is marked with an ellipsis; `keep_end` cuts at the beginning (for tracebacks).
    """
    data = text.replace("\0", "").encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode("utf-8")
    room = limit - len("…".encode())
    if keep_end:
        return "…" + data[-room:].decode("utf-8", "ignore")
    return data[:room].decode("utf-8", "ignore") + "…"


def report_json(name: str, value: Mapping[str, Any]) -> str:
    """`value` as a JSON object of at most 64 KiB and 32 levels, or `""` if it is empty.

    Raises ValueError with a sentence that names `name` if the scheduler would refuse it.
    """
    if not value:
        return ""
    try:
        text = json.dumps(dict(value), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        size = len(text.encode("utf-8"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be written as JSON: {error}") from None
    if size > REPORT_BYTES:
        raise ValueError(f"{name} has {size:,} bytes as JSON; at most {REPORT_BYTES:,} are allowed")
    # Most texts have too few brackets to need a look.
    if text.count("{") + text.count("[") > REPORT_DEPTH and _is_too_deep(value):
        raise ValueError(f"{name} is nested deeper than {REPORT_DEPTH} levels")
    if _ESCAPED_NUL.search(text):
        raise ValueError(f"{name} contains a NUL character, which PostgreSQL cannot store")
    return text


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(REPORT_DEPTH + 1):
        level = [inner for outer in level for inner in _inside(outer)]
    return bool(level)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()
