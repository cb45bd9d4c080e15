"""What `docker build` would put into an image, put into a folder, and run from there as ordinary processes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tests.deploy.dockerfile import ROOT, Copy, Stage

_VENV = "/opt/carillon"
# Ends a process that writes to a file, or changes a folder, outside of its /tmp.
_READ_ONLY = """
import os, sys

ALLOWED = tuple(os.environ["CARILLON_TEST_WRITABLE"].split(":"))
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}

def refuse(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)) and (arguments[2] or 0) & WRITES or event in CHANGES:
        path = os.path.realpath(os.fsdecode(arguments[0])) if not isinstance(arguments[0], int) else ALLOWED[0]
        if not path.startswith(ALLOWED):
            os.write(2, f"READ-ONLY: {event} {path}\\n".encode())
            os._exit(70)

sys.addaudithook(refuse)
"""


@dataclass(frozen=True)
class Image:
    """One target's files below `root`, and how its processes are started from there."""

    stage: Stage
    root: Path

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command with the image's own interpreter."""
        assert command[0] == "python"
        return [self.inside(f"{_VENV}/bin/python"), *command[1:]]

    def environment(self, given: Mapping[str, str], tmp: Path) -> dict[str, str]:
        """All that a container would see: the image's variables and those given; nothing of this process's.

        `tmp` stands for /tmp: a process that writes anywhere else ends with code 70.
        """
        guard = self.root / "read-only"
        guard.mkdir(exist_ok=True)
        (guard / "sitecustomize.py").write_text(_READ_ONLY)
        own = {name: self._moved(value) for name, value in self.stage.environment.items()}
        own["PYTHONPATH"] = f"{guard}:{own['PYTHONPATH']}"
        return own | dict(given) | {"TMPDIR": str(tmp), "CARILLON_TEST_WRITABLE": f"{tmp.resolve()}:/dev/"}

    def inside(self, path: str) -> str:
        """Where a path of the image is on this machine."""
        return str(self.root / path.lstrip("/"))

    def _moved(self, value: str) -> str:
        parts = value.replace("$PATH", "/usr/bin:/bin").split(":")
        ours = ("/app", "/opt")
        return ":".join(self.inside(part) if part.startswith(ours) else part for part in parts)


def build(stages: Mapping[str, Stage], name: str, folder: Path) -> Image:
    """Carries out the COPYs and the pip installs of a target and of the stages that it copies from."""
    stage = stages[name]
    root = folder / name
    root.mkdir(parents=True)
    for step in stage.steps:
        if isinstance(step, str):
            _run(step, root)
        elif step.stage is None:
            _copy_from_context(step, root)
        else:
            source = folder / step.stage
            if not source.exists():
                build(stages, step.stage, folder)
            _copy_from_stage(step, source, root)
    return Image(stage, root)


def _run(step: str, root: Path) -> None:
    """Only the installs: what else is run makes no file that the tests could do without."""
    for lock in re.findall(r"pip install .*--require-hashes .*-r (\S+)", step):
        _install(root / lock.lstrip("/"), root / _VENV.lstrip("/"))


def _install(lock: Path, environment: Path) -> None:
    uv = str(Path(sys.executable).parent / "uv")
    if not environment.exists():
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, environment], check=True)
    options = ["--require-hashes", "--only-binary", ":all:", "--python", str(environment / "bin" / "python")]
    subprocess.run([uv, "pip", "install", "-q", *options, "-r", str(lock)], check=True)


def _copy_from_context(step: Copy, root: Path) -> None:
    for source in step.sources:
        for path in in_context(source):
            inside = path.relative_to(ROOT / source) if (ROOT / source).is_dir() else Path(path.name)
            target = root / step.target.lstrip("/") / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def _copy_from_stage(step: Copy, source: Path, root: Path) -> None:
    [path] = step.sources
    here, there = source / path.lstrip("/"), root / step.target.lstrip("/")
    if path.startswith(_VENV):
        # Its own interpreter would go on using the folder that it was made in, so it is not copied but shared.
        there.parent.mkdir(parents=True, exist_ok=True)
        there.symlink_to(here.resolve().absolute())
    else:
        shutil.copytree(here, there, dirs_exist_ok=True)


def in_context(source: str) -> list[Path]:
    """The files of a COPY that .dockerignore lets through."""
    path = ROOT / source
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [file for file in files if not is_ignored(PurePosixPath(file.relative_to(ROOT)))]


def is_ignored(path: PurePosixPath) -> bool:
    """By the rules of .dockerignore: the last line that fits the file or a folder above it decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").strip()
        if not pattern or line.startswith("#"):
            continue
        if any(_fits(candidate, pattern) for candidate in (path, *path.parents[:-1])):
            ignored = not line.startswith("!")
    return ignored


def _fits(path: PurePosixPath, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return path.match(pattern.removeprefix("**/"))
    return len(path.parts) == len(PurePosixPath(pattern).parts) and path.match(pattern)
