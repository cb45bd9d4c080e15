"""Log lines, one JSON object or one line of text each. Lines written during a run carry `run`, `attempt` and `job`."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable

import structlog
from structlog.typing import Processor

from operations import one_line

# Without the values of local variables, tokens and payloads among them, which are the library's default.
_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


# Where gRPC's Python layer logs metadata that is not UTF-8: whole, a damaged credential among it, and with a traceback
# for each header that somebody sends.
_GRPC_METADATA = logging.getLogger("grpc._cython.cygrpc")
_QUIET_SECONDS = 60.0


def configure(log_format: str, level: str) -> None:
    """Sends everything that is logged, through structlog or the standard library, to stdout in one format."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(log_format)],
        )
    )
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level.upper())
    _GRPC_METADATA.filters[:] = [BadMetadata()]


class BadMetadata(logging.Filter):
    """Lets one line a minute through, without the value and the traceback, that says how many there were."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._quiet_until = -math.inf
        self._unsaid = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith("Invalid encoding on"):
            return True
        self._unsaid += 1
        if (now := self._clock()) < self._quiet_until:
            return False
        record.args, record.exc_info, record.exc_text = None, None, None
        record.msg = f"Invalid encoding on metadata that is not shown, {self._unsaid:,} times since this was last said"
        self._quiet_until, self._unsaid = now + _QUIET_SECONDS, 0
        return True


def _rendering(log_format: str) -> list[Processor]:
    if log_format == "json":
        return [_TRACEBACKS, structlog.processors.JSONRenderer()]
    return [
        one_line.on_one_line,
        structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), exception_formatter=one_line.traceback),
    ]
