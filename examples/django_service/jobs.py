"""The jobs of this service. Django reads `urls.py` only when the first request comes, so they are declared here."""

from __future__ import annotations

import os

from carillon import Jobs

jobs = Jobs("django-service", base_url=os.environ.get("DJANGO_SERVICE_URL", "http://127.0.0.1:8084"))

CLEAR_SESSIONS = jobs.endpoint("clear-sessions", "/api/jobs/clear-sessions", cron="0 4 * * *", timeout=300)
