"""Where results go: one file a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from uuid import UUID


def write(folder: Path, run: UUID, result: dict[str, Any]) -> Path:
    """Writes `<run>.json`, whole or not at all. The name is the run's, so a second attempt replaces the first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run}.json"
    unfinished = folder / f".{run}.{os.getpid()}.part"
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(result, file, ensure_ascii=False, indent=2)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    return path
