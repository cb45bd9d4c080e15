"""The longest test of all begins first, or the others' workers would wait for it at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

_LONGEST = Path(__file__).with_name("test_faults.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path != _LONGEST)
