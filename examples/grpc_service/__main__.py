"""`python -m examples.grpc_service`: a service whose job is a gRPC method, served by `carillon.grpc_handlers`."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from carillon import Completed, Jobs, Run, grpc_handlers

PORT = int(os.environ.get("GRPC_SERVICE_PORT", "50051"))
log = logging.getLogger("grpc_service")
jobs = Jobs("grpc-service")


@dataclass
class Folder:
    """The job's config."""

    folder: str = "protos/carillon/v1"


@jobs.grpc_handler("checksums", address=f"127.0.0.1:{PORT}", cron="@hourly", timeout=60)
def checksums(payload: Folder, run: Run) -> Completed:
    sums: dict[str, str] = {}
    for file in run.track(sorted(Path(payload.folder).iterdir())):
        with run.item(file.name):
            sums[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    log.info("%d checksums of %s, for run %s", len(sums), payload.folder, run.run_id)
    return Completed(metadata=sums)


async def main() -> None:
    server = grpc.aio.server()
    server.add_insecure_port(f"127.0.0.1:{PORT}")
    grpc_handlers.add_to_server(jobs, server)
    await server.start()
    await jobs.serve()  # declares the job, and returns on SIGTERM or Ctrl-C
    await server.stop(grace=20)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    asyncio.run(main())
