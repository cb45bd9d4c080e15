"""Writes the lock files: exact versions with hashes, no addresses. `make lock` calls it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import tomllib

HERE = Path(__file__).parent
_OURS = {"carillon"}
_COMPILE = ("pip", "compile", "--universal", "--generate-hashes", "--no-header", "--no-annotate", "--quiet")


def wanted() -> list[str]:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [need for needs in (project["dependencies"], *extras) for need in needs if need not in _OURS]


def lock(source: Path, target: Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, *_COMPILE, "--upgrade", str(source), "-o", str(target)], check=True)
    print(f"wrote {target.relative_to(HERE.parent)}")


if __name__ == "__main__":
    with tempfile.NamedTemporaryFile("w", suffix=".in") as needs:
        needs.write("\n".join(wanted()))
        needs.flush()
        lock(Path(needs.name), HERE / "dev.lock")
    lock(HERE / "codegen.in", HERE / "codegen.lock")
