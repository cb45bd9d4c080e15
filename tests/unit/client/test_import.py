"""What `import carillon` brings with it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

_REPORT = """
import json, sys
import grpc, grpc.aio, threading
before = set(sys.modules)
threads = threading.active_count()
import carillon
carillon.Worker((lambda jobs: (jobs.handler("a")(lambda: None), jobs)[1])(carillon.Jobs("s")))
carillon.Client("nowhere:1")
print(json.dumps({"modules": sorted(set(sys.modules) - before), "threads": threading.active_count() - threads}))
"""


ALLOWED = ("carillon", "grpc", "google.protobuf", "google._upb")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-W", "error", "-c", _REPORT], capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_client_brings_nothing_but_grpc_protobuf_and_the_standard_library(report: dict[str, Any]) -> None:
    foreign = {name for name in report["modules"] if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {name for name in foreign if not f"{name}.".startswith(tuple(f"{kind}." for kind in ALLOWED))} <= {"google"}


def test_declaring_starts_no_thread(report: dict[str, Any]) -> None:
    assert report["threads"] == 0
