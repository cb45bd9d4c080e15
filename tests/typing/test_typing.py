"""Right use of the installed client passes `mypy --strict`; wrong use fails at its own line, for its own reason.

In samples, `# E: text` says that mypy reports an error with that text on this line. There must be no other.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.compat.conftest import CLIENT, clean_environment

SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.py"))
_EXPECTED = re.compile(r"# E: (.+)$")
_REPORTED = re.compile(r"(?P<file>[^:]+):(?P<line>\d+): error: (?P<text>.+)")

Errors = Mapping[tuple[str, int], list[str]]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the client's wheel, and beside it what this environment has of other packages' types."""
    folder = tmp_path_factory.mktemp("typing")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=CLIENT, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    installed = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    with zipfile.ZipFile(next(folder.glob("carillon-*.whl"))) as wheel:
        wheel.extractall(installed)
    (installed / "others.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "venv" / "bin" / "python"


@pytest.fixture(scope="module")
def reported(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Errors:
    """What mypy says of all samples, in one run, without this repository's settings."""
    where = tmp_path_factory.mktemp("samples")
    for sample in SAMPLES:
        (where / sample.name).write_text(sample.read_text())
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", str(python)]
    options = ["--no-error-summary", "--hide-error-context", f"--cache-dir={where / 'cache'}"]
    command = [*mypy, *options, *(sample.name for sample in SAMPLES)]
    done = subprocess.run(command, cwd=where, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.stderr == ""
    errors: dict[tuple[str, int], list[str]] = defaultdict(list)
    for line in done.stdout.splitlines():
        if found := _REPORTED.match(line):
            errors[found["file"], int(found["line"])].append(found["text"])
    return errors


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stem)
def test_wrong_use_fails_at_its_own_line_and_right_use_passes(sample: Path, reported: Errors) -> None:
    expected = {
        (sample.name, number): found[1]
        for number, line in enumerate(sample.read_text().splitlines(), 1)
        if (found := _EXPECTED.search(line))
    }
    said = {place: texts for place, texts in reported.items() if place[0] == sample.name}
    assert expected
    assert {place: texts for place, texts in said.items() if place not in expected} == {}
    assert [place for place in expected if place not in said] == []
    assert [
        (place, said[place]) for place, text in expected.items() if not any(text in one for one in said[place])
    ] == []


def test_the_types_are_those_of_the_installed_wheel(python: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked.py"
    asked.write_text("import carillon\nreveal_type(carillon.Jobs('a').service)\nreveal_type(carillon.Run.attempt)\n")
    installed = next((python.parent.parent / "lib").glob("python*/site-packages/carillon"))
    (installed / "py.typed").rename(installed / "not.typed")
    try:
        without = _mypy(python, asked)
    finally:
        (installed / "not.typed").rename(installed / "py.typed")
    assert 'Skipping analyzing "carillon": module is installed, but missing library stubs or py.typed marker' in without
    assert 'Revealed type is "str"' in _mypy(python, asked)


def _mypy(python: Path, file: Path) -> str:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable", str(python)]
    cache = f"--cache-dir={file.parent / 'cache'}"
    done = subprocess.run([*command, cache, file.name], cwd=file.parent, capture_output=True, text=True, check=False)
    return done.stdout
