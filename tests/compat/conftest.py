"""The client as people get it: a wheel, in a fresh environment with nothing beside it but what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "python"

# What the surroundings tell Python about packages would be found beside the wheel.
_HIDDEN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's wheel, built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=CLIENT, check=True, capture_output=True)
    [built] = folder.glob("carillon-*.whl")
    return built


Environment = Callable[[Path, str], Path]


@pytest.fixture
def environment(wheel: Path, tmp_path: Path) -> Environment:
    """Makes an environment with the wheel and a lock's packages, and returns its Python."""

    def make(python: Path, lock: str) -> Path:
        subprocess.run([python, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True, env=clean_environment())
        inside = tmp_path / "venv" / "bin" / "python"
        install = [sys.executable, "-m", "pip", "--python", str(inside), "install", "--quiet", "--no-input"]
        requirements = str(ROOT / "requirements" / lock)
        for what in (["--require-hashes", "--only-binary", ":all:", "-r", requirements], ["--no-deps", str(wheel)]):
            done = subprocess.run([*install, *what], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        return inside

    return make


def clean_environment() -> dict[str, str]:
    """This process's variables, less those of Carillon and those that lead Python elsewhere."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith("CARILLON_") and name not in _HIDDEN
    }
