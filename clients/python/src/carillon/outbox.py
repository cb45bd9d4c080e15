"""What the session still has to tell the scheduler, and in which order.

Heartbeats are not here: they never wait. Starts wait for others to share a message, and are left out when the
result is there first. An attempt's items go before its result. Results and items stay with the held attempt until
the result is acknowledged, so that a new stream can begin with all of them again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from carillon.held import HeldAttempt
from carillon.text import MESSAGE_BYTES, clean
from carillon.v1 import run_pb2, work_pb2, worker_service_pb2

MESSAGE_ENTRIES = 500
MESSAGE_SIZE = 1024 * 1024

_Queue = OrderedDict[HeldAttempt, None]


class Outbox:
    """Queues of attempts that have something to tell. No attempt is in one queue twice."""

    def __init__(self) -> None:
        self._starts: _Queue = OrderedDict()
        self._items: _Queue = OrderedDict()
        self._results: _Queue = OrderedDict()
        self._progress: _Queue = OrderedDict()
        self._told_progress: dict[HeldAttempt, tuple[int, int, str]] = {}
        self.starts_are_due = False
        self.progress_is_due = False

    def began(self, attempt: HeldAttempt) -> None:
        """The attempt has started."""
        self._starts[attempt] = None

    def reported(self, attempt: HeldAttempt) -> None:
        """The attempt has new items or progress, perhaps both."""
        if attempt.items_sent < len(attempt.items):
            self._items[attempt] = None
        if attempt.run.progress_made != self._told_progress.get(attempt, (0, 0, "")):
            self._progress[attempt] = None

    def ended(self, attempt: HeldAttempt) -> None:
        """The attempt has its result."""
        self._starts.pop(attempt, None)
        self._progress.pop(attempt, None)
        self._told_progress.pop(attempt, None)
        self._results[attempt] = None

    def forget(self, attempt: HeldAttempt) -> None:
        """Nothing more is to be told of the attempt."""
        for queue in (self._starts, self._items, self._results, self._progress, self._told_progress):
            queue.pop(attempt, None)

    def begin_again(self, held: Iterable[HeldAttempt]) -> None:
        """A new stream: whatever was not acknowledged is to be told again."""
        self._told_progress.clear()
        for attempt in held:
            attempt.items_sent = 0
            self.reported(attempt)
            if attempt.result is not None:
                self._results[attempt] = None
            elif attempt.began is not None:
                self._starts[attempt] = None
                self.starts_are_due = True

    @property
    def has_starts(self) -> bool:
        """Whether starts wait to be told."""
        return bool(self._starts)

    @property
    def has_progress(self) -> bool:
        """Whether progress waits to be told."""
        return bool(self._progress)

    def next_message(self, now: float) -> worker_service_pb2.WorkRequest | None:
        """The next message to send, or None. `now` is the monotonic clock, for the age of starts."""
        if self._starts and self.starts_are_due:
            return self._take_starts(now)
        self.starts_are_due = False
        if self._items:
            return self._take_items()
        if self._results:
            return self._take_results()
        if self._progress and self.progress_is_due:
            return self._take_progress()
        self.progress_is_due = False
        return None

    def _take_starts(self, now: float) -> worker_service_pb2.WorkRequest:
        starts = work_pb2.Starts()
        while self._starts and len(starts.starts) < MESSAGE_ENTRIES:
            attempt, _ = self._starts.popitem(last=False)
            start = starts.starts.add(attempt=attempt.ref)
            start.age.FromNanoseconds(int((now - (attempt.began or now)) * 1e9))
        return worker_service_pb2.WorkRequest(starts=starts)

    def _take_items(self) -> worker_service_pb2.WorkRequest:
        taken: list[work_pb2.ItemResult] = []
        size = 0
        while self._items and len(taken) < MESSAGE_ENTRIES and size < MESSAGE_SIZE:
            attempt = next(iter(self._items))
            item = attempt.items[attempt.items_sent]
            attempt.items_sent += 1
            taken.append(item)
            size += item.ByteSize()
            if attempt.items_sent == len(attempt.items):
                self._items.popitem(last=False)
        return worker_service_pb2.WorkRequest(items=work_pb2.ItemResults(results=taken))

    def _take_results(self) -> worker_service_pb2.WorkRequest:
        taken: list[work_pb2.AttemptResult] = []
        size = 0
        while self._results and len(taken) < MESSAGE_ENTRIES and size < MESSAGE_SIZE:
            attempt, _ = self._results.popitem(last=False)
            if attempt.result is not None:
                taken.append(attempt.result)
                size += attempt.result.ByteSize()
        return worker_service_pb2.WorkRequest(results=work_pb2.Results(results=taken))

    def _take_progress(self) -> worker_service_pb2.WorkRequest:
        reports = work_pb2.ProgressReports()
        while self._progress and len(reports.reports) < MESSAGE_ENTRIES:
            attempt, _ = self._progress.popitem(last=False)
            made = attempt.run.progress_made
            self._told_progress[attempt] = made
            done, total, message = made
            reports.reports.add(
                attempt=attempt.ref,
                progress=run_pb2.Progress(done=done, total=total, message=clean(message, MESSAGE_BYTES)),
            )
        return worker_service_pb2.WorkRequest(progress=reports)
