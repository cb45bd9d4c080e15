"""Page tokens: where the next page of a list begins.

A token holds the keyset position after which the list goes on, and a digest of the list and its filters; it is opaque
to callers and good for nothing but the same list with the same filters. It grants nothing: row level security decides
what any page shows, whatever position a token names.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from scheduler_service.domain.errors import InvalidInput, Violation
from scheduler_service.domain.fields import is_storable

DEFAULT_SIZE = 50
MAX_SIZE = 1000
_VERSION = 1
_DIGEST_BYTES = 12
_MAX_TOKEN_LENGTH = 4096
_MAX_INTEGER = 2**63 - 1

Position = Sequence[str | int]
"""The values of the columns that a list is ordered by, in its last row."""


def page_size(asked: int, field: str = "page_size") -> int:
    """How many rows a page has: 50 for 0, at most 1,000 whatever was asked. Refuses a negative number."""
    if asked < 0:
        raise InvalidInput(Violation(field, "a page cannot have fewer than no entries; leave it at 0 for 50"))
    return min(asked, MAX_SIZE) or DEFAULT_SIZE


@dataclass(frozen=True)
class Pages:
    """The pages of one list. `name` says which list (`jobs`), `filters` everything that chooses its rows, the caller
    included; only values that JSON knows."""

    name: str
    filters: Mapping[str, Any]

    def token(self, position: Position) -> str:
        """The token of the page after this position."""
        body = bytes([_VERSION]) + json.dumps(list(position), separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._digest(body) + body).rstrip(b"=").decode()

    def position(self, token: str, *kinds: type[str | int | UUID]) -> list[Any] | None:
        """Where the page begins, a value of each kind; None for an empty token, the first page. Refuses with
        InvalidInput a token that is mangled, of another version, of another list, filter or caller, or made up: its
        digest is no secret."""
        if not token:
            return None
        raw = _decoded(token)
        body = raw[_DIGEST_BYTES:]
        if not body or raw[:_DIGEST_BYTES] != self._digest(body) or body[0] != _VERSION:
            raise _REFUSED
        try:
            values = json.loads(body[1:])
        except (ValueError, RecursionError):
            raise _REFUSED from None
        if not isinstance(values, list) or len(values) != len(kinds):
            raise _REFUSED
        return [_read(value, kind) for value, kind in zip(values, kinds, strict=True)]

    def _digest(self, body: bytes) -> bytes:
        choice = json.dumps([self.name, self.filters], sort_keys=True, separators=(",", ":")).encode()
        return hashlib.blake2b(body, key=hashlib.blake2b(choice).digest(), digest_size=_DIGEST_BYTES).digest()


_REFUSED = InvalidInput(
    Violation(
        "page_token",
        "this is no token of this list with these filters; send `next_page_token` of the page before unchanged,"
        " or leave it empty to begin anew",
    )
)


def _read(value: object, kind: type[str | int | UUID]) -> str | int | UUID:
    """A value of a position, if the database takes it as one of its kind."""
    if kind is int and type(value) is int and abs(value) <= _MAX_INTEGER:
        return value
    if kind is not int and isinstance(value, str) and is_storable(value):
        try:
            return value if kind is str else UUID(value)
        except ValueError:
            raise _REFUSED from None
    raise _REFUSED


def _decoded(token: str) -> bytes:
    if len(token) > _MAX_TOKEN_LENGTH:
        raise _REFUSED
    try:
        return base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _REFUSED from None
