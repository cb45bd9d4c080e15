"""The end of a process: the first SIGTERM or Ctrl-C drains, the second quits at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import structlog

_log = structlog.stdlib.get_logger("process")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def stopping_event() -> asyncio.Event:
    """An event that the first signal sets. For the running loop, once."""
    stopping = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, _signalled, number, stopping)
    return stopping


def _signalled(number: signal.Signals, stopping: asyncio.Event) -> None:
    """Whoever sends a second signal will not wait for any clean-up."""
    if not stopping.is_set():
        _log.info("stopping", signal=number.name)
        stopping.set()
        return
    _log.warning("quitting at once", signal=number.name)
    sys.stdout.flush()
    os._exit(128 + number)
