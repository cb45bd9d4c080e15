"""What the audit trail keeps of a change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Change:
    """Something that was changed. `resource` is its resource name; `before` and `after` are JSON documents of it as
    far as it changed: None before it was made, or after it was removed. `tenant`: whose thing it is, empty for what
    belongs to none. `action` is left empty for the method of the call that makes the change."""

    resource: str
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    tenant: str = ""
    action: str = ""
