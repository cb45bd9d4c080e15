"""The canary finds what leaks, wherever a test can leak it, and says so without repeating it."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import canary
from tests.builders import connect, make_job
from tests.conftest import DatabaseUrls

ROOT = Path(__file__).parents[2]
SECRET = canary.secret("planted")

LEAKS = {
    "stdout": "print(SECRET)",
    "stderr": "sys.stderr.write(SECRET)",
    "logging": "logging.getLogger('x').warning('token %s', SECRET)",
    "structured": "structlog.get_logger().info('called', token=SECRET)",
    "failure": "raise RuntimeError(f'cannot log in as {SECRET}')",
    "locals": "assert SECRET == 'another'",
    "read_back": "print(SECRET); capsys.readouterr()",
    "program": "subprocess.run([sys.executable, '-c', f'print({SECRET!r})'], capture_output=True)",
    "log_file": "(tmp_path / 'logs').mkdir(); (tmp_path / 'logs' / 'scheduler.log').write_text(SECRET)",
    "hexadecimal": "print(SECRET.encode().hex())",
    "basic_authorization": "print(base64.b64encode(f'alice:{SECRET}'.encode()).decode())",
    "jwt": "print(jwt.encode({'sub': 'alice'}, SECRET, algorithm='HS256'))",
    "private_key": "print('-----BEGIN PRIVATE ' + 'KEY-----')",
}
_SCRATCH = """
import base64, logging, subprocess, sys
import jwt, structlog
from tests import canary

SECRET = canary.secret("planted")

def test_{name}(capsys, tmp_path):
    {leak}
"""
_CLEAN = """
def test_clean(capsys, tmp_path):
    print("eyJ is how a token begins")
    (tmp_path / "x.log").write_text("a password was refused")
"""


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of scratch tests, each of which leaks in its own way."""
    folder = tmp_path_factory.mktemp("scratch")
    for name, leak in LEAKS.items():
        (folder / f"test_{name}.py").write_text(_SCRATCH.format(name=name, leak=leak))
    (folder / "test_clean.py").write_text(_CLEAN)
    options = ["-rA", "-c", os.devnull, "-p", "tests.canary_hooks", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--basetemp", str(folder / "t"), str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_fails_the_test_that_made_it(reported: str, name: str) -> None:
    assert re.search(rf"^(FAILED|ERROR) .*\btest_{name}\.py::", reported, re.MULTILINE)


def test_a_test_that_leaks_nothing_passes(reported: str) -> None:
    assert re.search(r"^PASSED .*\btest_clean\.py::", reported, re.MULTILINE)
    assert reported.count("secrets were written") >= len(LEAKS)


def test_the_report_repeats_no_secret(reported: str) -> None:
    assert not canary.leaks(reported)


def test_no_source_has_the_marker() -> None:
    found = subprocess.run(
        ["git", "grep", "--untracked", "-il", canary.MARKER], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (1, "")


@pytest.mark.parametrize("before", ["", "a", "ab", "alice:"])
def test_it_is_found_inside_of_base64_wherever_it_begins(before: str) -> None:
    coded = base64.b64encode(f"{before}{SECRET}:and more".encode()).decode()
    assert canary.leaks(f"Authorization: Basic {coded}")


def test_a_secret_in_a_row_is_found_as_text_and_as_bytes(database_urls: DatabaseUrls) -> None:
    assert canary.leaks_in_database(database_urls.admin) == []
    with connect(database_urls.admin) as admin:
        make_job(admin, config={"nested": {"password": SECRET}})
        [found] = canary.leaks_in_database(database_urls.admin)
        assert found.startswith("carillon.jobs: ")
        assert canary.MARKER not in found
        admin.execute("update carillon.jobs set config = '{}'")
        admin.execute(
            "insert into carillon.service_tokens (token_id, service, secret_hash, scopes, created_at, created_by)"
            " values ('t1', 'email-service', sha256(%s::bytea), '{read}', now(), 'test')",
            [SECRET.encode()],
        )
        assert canary.leaks_in_database(database_urls.admin) == []
        admin.execute("update carillon.service_tokens set secret_hash = %s", [SECRET.encode()[:32]])
        [found] = canary.leaks_in_database(database_urls.admin)
        assert found.startswith("carillon.service_tokens: ")
        admin.execute("delete from carillon.service_tokens")


def test_masked_text_says_as_much_as_it_may() -> None:
    assert canary.masked(f"user=alice password={canary.MARKER} host=db") == "user=alice password=[a secret] host=db"
