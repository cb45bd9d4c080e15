"""`python -m worker_service`: carries out the runs of routes `http` and `grpc` until SIGTERM or Ctrl-C.

Exit codes: 0 after a drain, 2 for a wrong setting or a port that is taken.
"""

from __future__ import annotations

import asyncio
import sys

from operations import logs, memory
from operations.probes import PortTaken
from operations.signals import stopping_event
from worker_service.app import App
from worker_service.settings import Settings, SettingsError, load


def main() -> int:
    """Runs the worker, and returns the process's exit code."""
    try:
        settings = load()
        logs.configure(settings.log_format, settings.log_level)
        memory.collect_rarely()
        asyncio.run(_run(settings))
    except SettingsError as error:
        return _refused(str(error))
    except PortTaken as error:
        return _refused(f"CARILLON_WORKER_HOST, CARILLON_WORKER_PORT: {error}")
    return 0


async def _run(settings: Settings) -> None:
    await App(settings).run(stopping_event())


def _refused(sentence: str) -> int:
    sys.stderr.write(f"worker_service: {sentence}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
