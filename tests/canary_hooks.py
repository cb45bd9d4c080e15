"""Where pytest gives what tests write, it is searched for secrets; a test that wrote one fails."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests import canary

_written: list[str] = []
"""Leaks in what the test that runs has read back itself, and which pytest therefore does not see."""


def pytest_configure() -> None:
    _search_what_is_read_back()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]  # the other hooks' answer
    found = _leaks_of(item, report)
    report.sections = [(title, canary.masked(text)) for title, text in report.sections]
    if found:
        report.outcome = "failed"
        said = canary.masked(report.longreprtext)
        report.longrepr = "\n".join(["secrets were written:", *(f"  {each}" for each in found), said])
    return report  # type: ignore[return-value]  # as above


def _leaks_of(item: pytest.Item, report: pytest.TestReport) -> list[str]:
    found = [f"{title}: {leak}" for title, text in report.sections for leak in canary.leaks(text)]
    found += [f"the failure: {leak}" for leak in canary.leaks(report.longreprtext)]
    found += _written
    _written.clear()
    home = getattr(item, "funcargs", {}).get("tmp_path")
    if report.when == "teardown" and home is not None:
        found += canary.leaks_in_files(home.rglob("*.log"))
    return found


def _search_what_is_read_back() -> None:
    """What a test takes with `capsys`, or reads from a program that it runs, stands in no report."""
    readouterr = pytest.CaptureFixture.readouterr
    communicate = subprocess.Popen.communicate
    communicate_later = asyncio.subprocess.Process.communicate

    def searched(what: str, parts: Any) -> Any:
        for part in parts:
            text = part.decode(errors="replace") if isinstance(part, bytes) else part or ""
            _written.extend(f"{what}: {leak}" for leak in canary.leaks(text, shown_once=True))
        return parts

    def read(self: Any) -> Any:
        return searched("what the test read back", readouterr(self))

    def run(self: Any, *args: Any, **options: Any) -> Any:
        return searched("what a program wrote", communicate(self, *args, **options))

    async def run_later(self: Any, *args: Any, **options: Any) -> Any:
        return searched("what a program wrote", await communicate_later(self, *args, **options))

    for owner, name, function in (
        (pytest.CaptureFixture, "readouterr", read),
        (subprocess.Popen, "communicate", run),
        (asyncio.subprocess.Process, "communicate", run_later),
    ):
        setattr(owner, name, function)
