"""Log lines for a terminal: what others write into them stays inside its line."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from operations.logs import configure

FORGED = "bad\n2026-11-21T09:00:00Z [info     ] attempt completed run=1\x1b[2J\x9b2J\u2028\u202e"


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


def written(capsys: pytest.CaptureFixture[str]) -> list[str]:
    text = capsys.readouterr().out
    assert not set(text) & set("\x1b\x9b\r\u2028\u202e")
    return text.splitlines()


def test_a_text_of_others_is_one_line_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    configure("text", "info")
    structlog.stdlib.get_logger("worker_service").warning(FORGED, code="X\x1b[2J", error=FORGED)
    logging.getLogger("library").info("said %s", FORGED)
    lines = written(capsys)
    assert len(lines) == 2
    assert "code=X\\x1b[2J" in lines[0]
    assert "said bad\\n2026-11-21T09:00:00Z" in lines[1]


def test_a_traceback_has_its_lines_and_no_controls(capsys: pytest.CaptureFixture[str]) -> None:
    configure("text", "info")
    try:
        raise ValueError("gone\x1b[2J")
    except ValueError:
        logging.getLogger("library").exception("failed")
    lines = written(capsys)
    assert lines[1].startswith("Traceback")
    assert lines[-1] == "ValueError: gone\\x1b[2J"
