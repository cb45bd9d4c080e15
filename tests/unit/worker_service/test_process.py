"""The process `python -m worker_service`: what it says and how it exits when it cannot start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def start(**variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CARILLON_")}
    return subprocess.run(
        [sys.executable, "-m", "worker_service"],
        cwd=ROOT,
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_wrong_setting_is_one_sentence_and_exit_code_2() -> None:
    ended = start(CARILLON_WORKER_TOKEN="a.b", CARILLON_WORKER_CONCURRENCY="none")
    assert ended.returncode == 2
    assert ended.stderr.startswith("worker_service: CARILLON_WORKER_CONCURRENCY must be a valid integer")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


def test_a_port_that_is_taken_is_one_sentence_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = start(CARILLON_WORKER_TOKEN="a.b", CARILLON_WORKER_PORT=str(port))
    assert ended.returncode == 2
    assert ended.stderr == (
        "worker_service: CARILLON_WORKER_HOST, CARILLON_WORKER_PORT: "
        f"cannot listen on port {port} of 127.0.0.1: address already in use\n"
    )
