"""`python -m examples.script FOLDER`: compares files with their checksums, as a run that Carillon records."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from carillon import CarillonError, Jobs, Run, blocking
from carillon.background import Background
from carillon.v1 import run_pb2

jobs = Jobs("script")


@dataclass
class Folder:
    path: str


@jobs.handler("verify", timeout=600, retries=0)
def verify(payload: Folder, run: Run) -> dict[str, int]:
    folder = Path(payload.path)
    read = 0
    for line in run.track((folder / "SHA256SUMS").read_text().splitlines()):
        wanted, _, name = line.partition("  ")
        with run.item(name) as item:
            content = (folder / name).read_bytes()  # a file that is not there is a failed item
            read += len(content)
            if (found := hashlib.sha256(content).hexdigest()) != wanted:
                item.fail(f"its checksum is {found}")
    return {"bytes": read}


def main(folder: Path) -> bool:
    """Returns whether all files are as they should be. Errors: CarillonError."""
    blocking.register(jobs)
    with Background(jobs), blocking.Client() as client:
        [run] = client.trigger_job("script/verify", {"path": str(folder.absolute())})
        for seen in client.watch_runs(run=run.name):
            run = seen
            print(run.name, run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_"), flush=True)
        for item in client.list_items(run.name, failed_only=True):
            print(f"{item.key}: {item.error}")
        print(f"{run.items.succeeded} of {run.items.processed} files are as they should be")
    return run.state == run_pb2.RUN_STATE_COMPLETED and not run.items.failed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("say which folder: python -m examples.script FOLDER")
    try:
        sys.exit(0 if main(Path(sys.argv[1])) else 1)
    except CarillonError as error:
        sys.exit(str(error))
