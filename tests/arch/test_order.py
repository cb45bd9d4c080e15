"""The order in which files are begun names only what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import LONGEST_FIRST

TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize("name", LONGEST_FIRST)
def test_what_is_begun_first_is_there(name: str) -> None:
    assert (TESTS / name).exists()
