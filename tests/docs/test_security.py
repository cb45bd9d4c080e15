"""docs/security.md names tests that hold what it says: they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
THREATS = (ROOT / "docs" / "security.md").read_text().partition("## Threats")[2].partition("\n## ")[0]


def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_threat_names_a_test_and_each_test_is_there() -> None:
    rows = [line for line in THREATS.splitlines() if line.startswith("| ")][2:]
    assert rows
    for row in rows:
        file = ""
        held_by = re.findall(r"`([^`]*)`", row.split(" | ")[2])
        assert held_by, row
        for name in held_by:
            path, _, test = name.partition("::")
            file = path or file
            assert not test or test in functions_of(file), name
            assert (ROOT / file).exists(), name
