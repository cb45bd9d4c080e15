"""`python -m examples.email_service`: a service whose jobs are HTTP endpoints."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web
from carillon import Jobs

from examples.email_service.app import EmailService
from examples.email_service.mail import MailServer, read_recipients
from examples.email_service.mailings import Mailings

log = logging.getLogger("email_service")

HOST = os.environ.get("EMAIL_SERVICE_HOST", "127.0.0.1")
PORT = int(os.environ.get("EMAIL_SERVICE_PORT", "8081"))
URL = os.environ.get("EMAIL_SERVICE_URL", f"http://127.0.0.1:{PORT}")  # where workers reach it

# Declaring does no I/O. CARILLON_TARGET and CARILLON_SERVICE_TOKEN say where the scheduler is, and who this is;
# CARILLON_SIGNING_KEYS, what the worker's calls are signed with.
jobs = Jobs(service="email-service", base_url=URL)

jobs.endpoint(
    "weekly-digest",
    "/api/jobs/weekly-digest",
    cron="0 9 * * 1",
    time_zone="America/New_York",
    config={"batchSize": 100},
    display_name="Weekly digest",
    description="Sends everyone the week's digest, on Mondays at nine in New York.",
    labels={"job_type": "digest"},
)

jobs.endpoint(
    "welcome-mail",
    "/api/jobs/welcome-mail",
    cron="@every 2s",
    overlap="allow_all",
    timeout=60,
    retry_delay=10,
    display_name="Welcome mail",
    description="Greets those who are new.",
    labels={"job_type": "transactional"},
)


async def registered(_app: web.Application) -> AsyncIterator[None]:
    """Registers in the background until the scheduler is there, so that this service starts without it."""
    async with jobs:
        yield


def main() -> None:
    server = MailServer(os.environ.get("SMTP_HOST", "127.0.0.1"), int(os.environ.get("SMTP_PORT", "1025")))
    recipients = read_recipients(Path(__file__).with_name("recipients.csv"))
    app = EmailService(jobs, Mailings(server), recipients).app()
    app.cleanup_ctx.append(registered)
    try:
        web.run_app(app, host=HOST, port=PORT, shutdown_timeout=10, access_log=None, print=log.info)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        sys.exit(f"email_service: cannot listen on EMAIL_SERVICE_PORT {PORT} of {HOST}: {why}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s: %(message)s")
    main()
