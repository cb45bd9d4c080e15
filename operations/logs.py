"""Log lines, one JSON object or one line of text each. Lines written during a run carry `run`, `attempt` and `job`."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import Processor

# Without the values of local variables, tokens and payloads among them, which are the library's default.
_TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


# Where gRPC's Python layer logs, whole, metadata that is not UTF-8: a damaged credential among them.
_GRPC_METADATA = logging.getLogger("grpc._cython.cygrpc")


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
    _GRPC_METADATA.addFilter(_without_value)


def _without_value(record: logging.LogRecord) -> bool:
    if str(record.msg).startswith("Invalid encoding on"):
        record.args = ("metadata that is not shown",)
    return True


def _rendering(log_format: str) -> list[Processor]:
    if log_format == "json":
        return [_TRACEBACKS, structlog.processors.JSONRenderer()]
    return [
        structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback)
    ]
