"""`python -m examples.smtp_sink`: takes every message that it is sent, and writes it down instead of delivering it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from examples.smtp_sink.sink import SmtpSink

log = logging.getLogger("smtp_sink")


async def main() -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    file = Path(os.environ.get("SMTP_SINK_FILE", "smtp-sink.jsonl"))
    host = os.environ.get("SMTP_HOST", "127.0.0.1")
    async with SmtpSink(file, host, int(os.environ.get("SMTP_PORT", "1025"))) as sink:
        log.info("listening on %s:%d, writing to %s", host, sink.port, file)
        await stopping.wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s: %(message)s")
    logging.getLogger("mail.log").setLevel(logging.WARNING)
    try:
        asyncio.run(main())
    except (OSError, ValueError) as error:
        sys.exit(f"smtp_sink: cannot start: {error}")
