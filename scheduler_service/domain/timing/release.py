"""tzdata releases by the order in which they came: 2025b, 2026a, 2026b, ... 2026z, 2026za."""

from __future__ import annotations

import re

_RELEASE = re.compile(r"(\d{4,})([a-z]*)")


def is_newer_release(release: str, than: str) -> bool:
    """Whether a tzdata release came after another. What is no release's name came before them all."""
    return _place(release) > _place(than)


def _place(release: str) -> tuple[int, str]:
    found = _RELEASE.fullmatch(release)
    return (int(found[1]), found[2]) if found else (0, "")
