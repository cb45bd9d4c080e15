"""`python -m examples.kpi_service`: a service that carries out its jobs itself, with a worker inside.

CARILLON_TARGET and CARILLON_SERVICE_TOKEN say where the scheduler is, and who this is. The token needs the scopes
`register` and `work`.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from examples.kpi_service.syncs import jobs

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s: %(message)s")
    asyncio.run(jobs.serve())  # registers, works, and lets running syncs end when it is stopped
