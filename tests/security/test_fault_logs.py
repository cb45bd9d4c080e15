"""The log of a fault says where it was, and no value that was at hand there."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator

import pytest
import structlog

from operations.logs import BadMetadata, configure
from tests.rpc.work.rig import Clock


@pytest.fixture
def restored_logging() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_the_log_of_a_fault_has_no_local_variables(
    restored_logging: None, capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    def fail(token: str) -> None:
        raise RuntimeError(f"with a token of {len(token)} characters")

    configure(log_format, "info")
    token = secrets.token_urlsafe(32)
    try:
        fail(token)
    except RuntimeError:
        structlog.get_logger("tests").exception("call failed")
    logged = capsys.readouterr().out
    assert "with a token of 43 characters" in logged
    assert "test_fault_logs.py" in logged
    assert token not in logged


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_metadata_that_is_no_text_is_not_logged(
    restored_logging: None, capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure(log_format, "info")
    # As gRPC's Python layer words it.
    logging.getLogger("grpc._cython.cygrpc").warning("Invalid encoding on %s", b"Bearer \xff-a-damaged-token")
    logged = capsys.readouterr().out
    assert "Invalid encoding on metadata that is not shown" in logged
    assert "damaged" not in logged


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_however_many_there_are_the_log_has_a_line_a_minute(
    restored_logging: None, capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    configure(log_format, "info")
    clock = Clock()
    grpcs = logging.getLogger("grpc._cython.cygrpc")
    grpcs.filters[:] = [BadMetadata(clock)]

    def headers(count: int) -> list[str]:
        for _ in range(count):
            try:
                b"\xff".decode()
            except UnicodeDecodeError:
                grpcs.exception("Invalid encoding on %s", b"\xff")
        return capsys.readouterr().out.splitlines()

    [line] = headers(1000)
    assert "Traceback" not in line
    clock.now += 59
    assert headers(1) == []
    clock.now += 1
    [line] = headers(1)
    assert "1,001 times" in line
    grpcs.warning("something else")
    assert "something else" in capsys.readouterr().out
