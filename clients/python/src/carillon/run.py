"""The run as its handler sees it: what it is for, whether to stop, and how to report while working."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Protocol, TypeVar, overload

from carillon.outcome import Cancelled, ItemCounts
from carillon.text import MESSAGE_BYTES, clean

T = TypeVar("T")

ITEM_KEY_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt at a run, handed to this worker."""

    run_id: uuid.UUID
    attempt: int
    claim_id: int
    max_attempts: int
    service: str
    job: str
    tenant: str
    endpoint: str
    payload_json: str
    attempt_timeout: float
    cancel_grace: float
    scheduled_time: datetime
    trigger_source: str
    labels: Mapping[str, str]

    @property
    def route(self) -> str:
        """Where it can be carried out: `http`, `grpc`, or `handler/{service}/{job}`."""
        if not self.endpoint:
            return f"handler/{self.service}/{self.job}"
        return "grpc" if self.endpoint.startswith(("grpc://", "grpcs://")) else "http"


class Reports(Protocol):
    """Where one run's reports go. Called from any thread; must not block."""

    def progressed(self) -> None:
        """The run's `progress_made` changed."""

    def item_done(self, key: str, error: str | None) -> None:
        """An item succeeded, or failed because of `error`."""


class Run:
    """One attempt at a run. Safe to use from the thread of a plain function."""

    __slots__ = ("_assignment", "_failed", "_keys", "_reports", "cancelled", "progress_made", "stop_code")

    def __init__(self, assignment: Assignment, reports: Reports) -> None:
        self._assignment = assignment
        self._reports = reports
        self._keys: set[str] = set()
        self._failed = 0
        self.cancelled = False
        """True once the run should stop: it was cancelled, is out of time, or the worker gives it up."""
        self.stop_code = ""
        """Why it should stop: `CANCELLED` or `ATTEMPT_TIMEOUT`. Empty until then, and where the worker gives it up."""
        self.progress_made: tuple[int, int, str] = (0, 0, "")
        """The newest progress: done, total (0 if not known), message."""

    @property
    def run_id(self) -> uuid.UUID:
        """The run's id, the same in each attempt: the key under which to make an effect happen once."""
        return self._assignment.run_id

    @property
    def attempt(self) -> int:
        """Which attempt this is; the first is 1."""
        return self._assignment.attempt

    @property
    def max_attempts(self) -> int:
        """How many attempts the run has in all."""
        return self._assignment.max_attempts

    @property
    def claim_id(self) -> int:
        """The fencing token: it grows with every hand-over of the run to a worker."""
        return self._assignment.claim_id

    @property
    def service(self) -> str:
        """The service that owns the job."""
        return self._assignment.service

    @property
    def job(self) -> str:
        """The job's id."""
        return self._assignment.job

    @property
    def tenant(self) -> str:
        """Whose run it is; `-` is the system."""
        return self._assignment.tenant

    @property
    def payload_json(self) -> str:
        """The payload as it came: a JSON object."""
        return self._assignment.payload_json

    @property
    def scheduled_time(self) -> datetime:
        """The nominal instant that the run is for, in UTC."""
        return self._assignment.scheduled_time

    @property
    def trigger_source(self) -> str:
        """Why it exists, such as `SCHEDULE` or `MANUAL`."""
        return self._assignment.trigger_source

    @property
    def labels(self) -> Mapping[str, str]:
        """The run's labels."""
        return self._assignment.labels

    @property
    def attempt_timeout(self) -> float:
        """How long this attempt may take, in seconds."""
        return self._assignment.attempt_timeout

    @property
    def cancel_grace(self) -> float:
        """How long it may take to stop once it is asked to, in seconds."""
        return self._assignment.cancel_grace

    @property
    def items(self) -> ItemCounts:
        """The items that were recorded so far."""
        return ItemCounts(len(self._keys), len(self._keys) - self._failed, self._failed)

    def check(self) -> None:
        """Raises `Cancelled` if the run should stop. For plain functions, which nobody can interrupt."""
        if self.cancelled:
            raise Cancelled("the run was asked to stop")

    def progress(self, done: int, total: int | None = None, message: str = "") -> None:
        """Reports how far the run is. Call it as often as you like: the newest goes out once a second."""
        self.progress_made = (_count(done), _count(total or 0), str(message))
        self._reports.progressed()

    @overload
    def track(self, iterable: Iterable[T], total: int | None = None, message: str = "") -> Iterator[T]: ...

    @overload
    def track(self, iterable: AsyncIterable[T], total: int | None = None, message: str = "") -> AsyncIterator[T]: ...

    def track(
        self, iterable: Iterable[T] | AsyncIterable[T], total: int | None = None, message: str = ""
    ) -> Iterator[T] | AsyncIterator[T]:
        """Iterates, reports each finished step, and stops with `Cancelled` once the run should stop.

        `total` defaults to the length of the iterable, if it has one.
        """
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        if isinstance(iterable, AsyncIterable):
            return self._track_async(iterable, total, message)
        return self._track(iterable, total, message)

    def item(self, key: str) -> Item:
        """Records one unit of work with its own result: `with run.item(address): send(address)`.

        An exception inside is recorded as the item's failure, and the run goes on with the next item; so does
        `.fail("why")`. Cancellation is let through. A second item of the same key changes nothing.

        Raises ValueError unless the key has 1 to 256 characters, none of them a NUL or half of a surrogate pair.
        """
        if not 1 <= len(key) <= ITEM_KEY_CHARACTERS:
            raise ValueError(f"an item's key must have 1 to {ITEM_KEY_CHARACTERS} characters: {key[:80]!r}")
        if clean(key, MESSAGE_BYTES) != key:
            raise ValueError(f"an item's key must be text that UTF-8 can write, without NUL: {key!r}")
        return Item(self, key)

    def _track(self, iterable: Iterable[T], total: int | None, message: str) -> Iterator[T]:
        self.progress(0, total, message)
        for done, value in enumerate(iterable, 1):
            self.check()
            yield value
            self.progress(done, total, message)

    async def _track_async(self, iterable: AsyncIterable[T], total: int | None, message: str) -> AsyncIterator[T]:
        self.progress(0, total, message)
        done = 0
        async for value in iterable:
            self.check()
            yield value
            done += 1
            self.progress(done, total, message)

    def _record(self, key: str, error: str | None) -> None:
        if key in self._keys:
            return
        self._keys.add(key)
        self._failed += error is not None
        self._reports.item_done(key, error)


def _count(number: float) -> int:
    return min(max(0, int(number)), 2**63 - 1)


class Item(AbstractContextManager["Item"]):
    """One item that is being worked on; its result is recorded when the block ends."""

    __slots__ = ("_error", "_run", "key")

    def __init__(self, run: Run, key: str) -> None:
        self._run = run
        self._error: str | None = None
        self.key = key

    def fail(self, why: str) -> None:
        """Records the item as failed. `why` is for people, at most 4 KiB."""
        self._error = clean(why, MESSAGE_BYTES)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is not None and not isinstance(error, Exception):
            return False
        if error is not None:
            self.fail(f"{type(error).__name__}: {error}")
        self._run._record(self.key, self._error)
        return error is not None
