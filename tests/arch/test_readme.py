"""The README names only what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import generate

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
# `make up` reads it, and no service.
LOCAL = {"CARILLON_HOME"}


def test_every_variable_is_in_the_reference() -> None:
    named = set(re.findall(r"CARILLON_[A-Z_]+", README)) - LOCAL
    assert len(named) > 5
    assert named <= set(re.findall(r"CARILLON_[A-Z_]+", generate.configuration()))


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
