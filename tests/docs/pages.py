"""The documentation's shell blocks, run as they stand there."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.docs import commands
from tests.e2e.cluster import PATIENCE, ROOT, environment_without_carillon

_BLOCK = re.compile(r"^( *)```sh\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
_MARK = "\x1e"


@dataclass(frozen=True)
class Block:
    """One block, and the heading (`## ...`) that it stands under."""

    heading: str
    script: str


def blocks_of(page: str) -> list[Block]:
    headings = [(found.start(), found[1]) for found in _HEADING.finditer(page)]
    return [
        Block(next((name for start, name in reversed(headings) if start < found.start()), ""), found[2])
        for found in _BLOCK.finditer(page)
    ]


async def run_blocks(blocks: Sequence[Block], folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Runs blocks in one shell, in `folder`, and answers what each printed. Fails at the first command that does."""
    commands.install(folder)
    path = os.pathsep.join([str(folder), environment.get("PATH", ""), os.environ["PATH"]])
    script = "".join(f"printf '{_MARK}'\n{block.script}" for block in blocks)
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"set -euo pipefail\ntrap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\n{script}"),
        cwd=folder,
        env={**environment_without_carillon(), **environment, "PATH": path, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), 5 * PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{errors.decode()}\nafter:\n{out.decode()[-2000:]}"
    return out.decode().split(_MARK)[1:]
