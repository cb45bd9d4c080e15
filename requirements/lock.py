"""Writes the lock files: exact versions with hashes, no addresses. `make lock` calls it.

dev.lock has everything; services.lock and examples.lock are what the images install, in the very versions of dev.lock,
so that what is shipped is what was tested. codegen.lock stands alone. client-oldest.lock and client-newest.lock are the
limits of what the client declares to work with.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tomllib

HERE = Path(__file__).parent
DEV = HERE / "dev.lock"
_OURS = {"carillon"}
_COMPILE = ("pip", "compile", "--universal", "--generate-hashes", "--no-header", "--no-annotate", "--quiet")


def wanted(*extras: str) -> list[str]:
    """What pyproject.toml asks for: the services' needs and those of the extras."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    asked = (project["optional-dependencies"][extra] for extra in extras)
    return [need for needs in (project["dependencies"], *asked) for need in needs if need not in _OURS]


def lock(source: Path, target: Path, *options: str) -> None:
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, *_COMPILE, *options, str(source), "-o", str(target)], check=True)
    print(f"wrote {target.relative_to(HERE.parent)}")


def lock_needs(needs: Sequence[str], target: Path, *options: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".in") as source:
        source.write("\n".join(needs))
        source.flush()
        lock(Path(source.name), target, *options)


def lock_images() -> None:
    """The images' locks, for the dev.lock that is there."""
    as_tested = ("--constraints", str(DEV))
    lock_needs(wanted(), HERE / "services.lock", *as_tested)
    lock_needs(wanted("examples"), HERE / "examples.lock", *as_tested)


def lock_client() -> None:
    """The least and the most that the client's declared needs allow, for tests/compat to try it with both."""
    needs = HERE.parent / "clients" / "python" / "pyproject.toml"
    lock(needs, HERE / "client-oldest.lock", "--upgrade", "--python-version", "3.10", "--resolution", "lowest-direct")
    lock(needs, HERE / "client-newest.lock", "--upgrade", "--python-version", "3.10")


if __name__ == "__main__":
    lock_needs(wanted("examples", "local", "dev"), DEV, "--upgrade")
    lock_images()
    lock(HERE / "codegen.in", HERE / "codegen.lock", "--upgrade")
    lock_client()
