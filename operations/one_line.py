"""Log lines for a terminal stay one line each: texts of others begin no line of their own, and move no cursor."""

from __future__ import annotations

import re
from io import StringIO
from typing import TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, WrappedLogger

# Controls, and Unicode's own line ends and reversals of direction.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# These are many lines by nature.
_UNTOUCHED = frozenset({"stack", "exception"})


def on_one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor: controls in texts are shown as Python writes them, such as `\\n`."""
    return {
        name: _escaped(value) if isinstance(value, str) and name not in _UNTOUCHED else value
        for name, value in event.items()
    }


def traceback(out: TextIO, exc_info: ExcInfo) -> None:
    """A traceback on its several lines, without other controls."""
    written = StringIO()
    structlog.dev.plain_traceback(written, exc_info)
    out.write("\n".join(map(_escaped, written.getvalue().split("\n"))))


def _escaped(text: str) -> str:
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
