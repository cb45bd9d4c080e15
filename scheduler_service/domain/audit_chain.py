"""The chain over the audit trail: how a seal is made, and how a chain is verified.

A seal's hash is SHA-256 over the hash of the seal before it (32 zero bytes before the first) and the seal's own text:
its position, when it was sealed, and every column of its event, each as a netstring (`5:alice,`: the length in bytes,
a colon, the UTF-8 bytes, a comma; `-,` where the column is NULL). Times are whole microseconds since 1970, documents
the text of their jsonb. docs/security.md says the same for people who verify it themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from scheduler_service.domain.fields import Violations

HASH_BYTES = 32
ORIGIN = bytes(HASH_BYTES)
"""Stands for the hash before the first seal."""
LONGEST_UNSEALED = timedelta(minutes=1)
"""An event that was written longer ago, and goes on waiting for its seal while it is watched, is reported."""

MAX_HEADS = 1000

Texts = Sequence[str | None]
"""An event's columns as texts: event_id, event_at, principal, action, resource, tenant_id, before, after, request_id,
address."""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain at some time: how many events were sealed, and the hash of the last seal (empty: none)."""

    position: int = 0
    hash: bytes = b""
    sealed_at: datetime | None = None

    @property
    def fits_together(self) -> bool:
        """Whether it can be one: a position with its hash, or neither."""
        return self.position >= 0 and len(self.hash) == (HASH_BYTES if self.position else 0)


EMPTY = Head()


@dataclass(frozen=True, slots=True)
class Link:
    """A seal that is stored, with its event's columns (None: there is no such event). `sealing_time`: microseconds
    since 1970, as text."""

    position: int
    event_id: int
    hash: bytes
    sealed_at: datetime
    sealing_time: str
    event: Texts | None


class Problem(StrEnum):
    """What is wrong with a link of the chain."""

    CHANGED = "CHANGED"
    EVENT_MISSING = "EVENT_MISSING"
    SEAL_MISSING = "SEAL_MISSING"
    HEAD_MISSING = "HEAD_MISSING"
    NOT_SEALED = "NOT_SEALED"


@dataclass(frozen=True, slots=True)
class BrokenLink:
    """A link that does not hold. `position` is 0 for an event that is not sealed, `event_id` where it is not known."""

    problem: Problem
    position: int
    event_id: int
    description: str


def seal(previous: bytes, position: int, sealing_time: str, event: Texts) -> bytes:
    """The hash of the seal at a position, after the one whose hash is `previous`."""
    made = hashlib.sha256(previous or ORIGIN)
    for text in (str(position), sealing_time, *event):
        made.update(_netstring(text))
    return made.digest()


def _netstring(text: str | None) -> bytes:
    if text is None:
        return b"-,"
    written = text.encode()
    return b"%d:%b," % (len(written), written)


class Walk:
    """Goes along a chain link by link. `reached`: the last link that holds. `known`: heads that were kept, of which
    each that is passed must be on the chain."""

    def __init__(self, after: Head, known: Iterable[Head]) -> None:
        self.reached = after
        self._known = sorted((head for head in known if head.position > after.position), key=lambda head: head.position)
        self._passed = 0

    def take(self, link: Link) -> BrokenLink | None:
        """Goes on to the next link of the chain, unless it does not hold."""
        position = self.reached.position + 1
        if link.position != position:
            return BrokenLink(
                Problem.SEAL_MISSING,
                position,
                0,
                f"the seal at position {position} is gone; the next is at {link.position}",
            )
        if link.event is None:
            return BrokenLink(
                Problem.EVENT_MISSING,
                position,
                link.event_id,
                f"event {link.event_id}, which was sealed at position {position}, is gone",
            )
        if seal(self.reached.hash, position, link.sealing_time, link.event) != link.hash:
            return BrokenLink(
                Problem.CHANGED,
                position,
                link.event_id,
                f"event {link.event_id} at position {position} is not what was sealed: it, its seal, or their order"
                " was changed",
            )
        while self._passed < len(self._known) and self._known[self._passed].position == position:
            if self._known[self._passed].hash != link.hash:
                return rewritten(position, link.event_id)
            self._passed += 1
        self.reached = Head(position, link.hash, link.sealed_at)
        return None

    def end(self) -> BrokenLink | None:
        """The chain ends here: it must not end before a head that is known."""
        return missing_head(self._known[self._passed], self.reached) if self._passed < len(self._known) else None


def rewritten(position: int, event_id: int = 0) -> BrokenLink:
    """Another hash stands where a head is known."""
    return BrokenLink(
        Problem.HEAD_MISSING,
        position,
        event_id,
        f"the seal at position {position} is not the head that you know: the trail was written anew, at or before it",
    )


def missing_head(known: Head, end: Head) -> BrokenLink:
    """The chain ends before a head that is known."""
    return BrokenLink(
        Problem.HEAD_MISSING,
        known.position,
        0,
        f"the trail ends at position {end.position}, before the head at {known.position} that you know: its tail was"
        " removed",
    )


def not_sealed(event_id: int, *, queued: bool) -> BrokenLink:
    """An event that has no seal, although it should by now."""
    why = (
        "was written over a minute ago and still waits for its seal: no scheduler runs, or none can seal it, as its log"
        " says"
        if queued
        else "is neither sealed nor waits for it: it was slipped in, or its seal was removed"
    )
    return BrokenLink(Problem.NOT_SEALED, 0, event_id, f"event {event_id} {why}")


def gone_before_sealing(event_id: int) -> BrokenLink:
    return BrokenLink(Problem.EVENT_MISSING, 0, event_id, f"event {event_id}, which waits for its seal, is gone")


def check_head(head: Head, field: str, wrong: Violations) -> None:
    """A head as a caller gives it."""
    if head.position < 0:
        wrong.add(f"{field}.position", "it is negative; a head's position is how many events were sealed")
    elif not head.fits_together:
        wrong.add(
            f"{field}.hash",
            f"it has {len(head.hash)} bytes; it has {HASH_BYTES}, or none at position 0: send a head as GetAuditHead"
            " answered it",
        )
