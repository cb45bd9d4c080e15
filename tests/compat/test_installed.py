"""The client's wheel works with every Python and protobuf that it declares to work with, as far as they are here."""

from __future__ import annotations

import email
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.compat.conftest import CLIENT, ROOT, Environment, clean_environment
from tests.compat.interpreters import VERSIONS, interpreter

OLDEST, NEWEST = "client-oldest.lock", "client-newest.lock"
PROBE = Path(__file__).with_name("use_client.py")


@pytest.mark.parametrize(
    ("version", "lock", "protobuf"),
    [*((version, NEWEST, "7.") for version in VERSIONS), (VERSIONS[0], OLDEST, "6."), ("3.13", OLDEST, "6.")],
)
def test_the_wheel_works_where_nothing_else_is_installed(
    version: str, lock: str, protobuf: str, environment: Environment, tmp_path: Path
) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here, neither on PATH nor of pyenv")
    inside = environment(python, lock)
    program = [str(inside), "-W", "error", "-X", "dev", str(PROBE)]
    # Below errors, gRPC's core tells of connections that end; what is looked for here are warnings of Python.
    settings = clean_environment() | {"GRPC_VERBOSITY": "ERROR"}
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd=tmp_path, env=settings)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    used = json.loads(done.stdout)
    assert used["python"] == version
    assert used["protobuf"].startswith(protobuf)
    assert Path(used["from"]).is_relative_to(tmp_path)
    assert used["registered"] == ["sync"]
    assert (used["outcome"], used["metrics"], used["items"]) == ("ATTEMPT_OUTCOME_COMPLETED", {"brands": 2}, 2)
    assert used["names"] == ["services/kpi-service/jobs/sync"] * 2
    assert used["tested"] == "COMPLETED"
    assert used["server_parts"] == []
    assert (used["tasks"], used["threads"]) == ([], [])


def test_the_wheel_declares_what_it_needs_and_nothing_of_the_server(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        [metadata] = [name for name in packed.namelist() if name.endswith(".dist-info/METADATA")]
        said = email.message_from_bytes(packed.read(metadata))
        tops = {name.partition("/")[0] for name in packed.namelist() if ".dist-info/" not in name}
    needed = [need for need in said.get_all("Requires-Dist") or [] if "extra ==" not in need]
    assert said["Requires-Python"] == ">=3.10"
    assert {re.split(r"[<>=]", need)[0] for need in needed} == {"grpcio", "protobuf"}
    assert tops == {"carillon"}


def test_the_wheel_carries_all_that_the_tree_has(wheel: Path) -> None:
    source = CLIENT / "src"
    tree = {
        str(file.relative_to(source))
        for file in source.rglob("*")
        if file.suffix in (".py", ".pyi") or file.suffix == ""
    }
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    assert {name for name in tree if (source / name).is_file()} <= names | {"carillon/py.typed"}
    assert "carillon/py.typed" in names


@pytest.mark.parametrize(("lock", "protobuf"), [(OLDEST, "6"), (NEWEST, "7")])
def test_the_locks_pin_with_hashes_and_name_no_address(lock: str, protobuf: str) -> None:
    text = (ROOT / "requirements" / lock).read_text()
    pinned = re.findall(r"^(\S+)==(\d+)\.", text, re.MULTILINE)
    assert dict(pinned)["protobuf"] == protobuf
    assert text.count("--hash=sha256:") >= len(pinned)
    assert "://" not in text


def test_importing_the_client_adds_little_to_importing_grpc() -> None:
    # One process imports both, one after the other. Its own time, and the best of several: the machine does other work.
    program = "import time, grpc; began = time.process_time(); import carillon; print(time.process_time() - began)"
    command = [sys.executable, "-c", program]
    seconds = [float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(7)]
    assert min(seconds) < 0.3, seconds
