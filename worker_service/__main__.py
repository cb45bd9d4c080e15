"""`python -m worker_service`: carries out the runs of route `http` until SIGTERM or Ctrl-C.

Exit codes: 0 after a drain, 2 for a wrong setting or a port that is taken.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import structlog

from worker_service import logs
from worker_service.app import App
from worker_service.probes import PortTaken
from worker_service.settings import Settings, SettingsError, load

_log = structlog.stdlib.get_logger("worker_service")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main() -> int:
    """Runs the worker, and returns the process's exit code."""
    try:
        settings = load()
        logs.configure(settings.log_format, settings.log_level)
        asyncio.run(_run(settings))
    except SettingsError as error:
        return _refused(str(error))
    except PortTaken as error:
        return _refused(f"CARILLON_WORKER_HOST, CARILLON_WORKER_PORT: {error}")
    return 0


async def _run(settings: Settings) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, _signalled, number, stopping)
    await App(settings).run(stopping)


def _signalled(number: signal.Signals, stopping: asyncio.Event) -> None:
    """The first signal drains. The second quits at once: whoever sends it will not wait for any clean-up."""
    if not stopping.is_set():
        _log.info("stopping", signal=number.name)
        stopping.set()
        return
    _log.warning("quitting at once", signal=number.name)
    sys.stdout.flush()
    os._exit(128 + number)


def _refused(sentence: str) -> int:
    sys.stderr.write(f"worker_service: {sentence}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
