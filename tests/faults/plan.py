"""What a fault run does: which jobs there are, which schedules owe them, how long, and how much is broken."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

HANDLERS = "kpi-service"
"""The service whose handlers are embedded in workers."""
ENDPOINTS = "email-service"
"""The service that is called over HTTP."""
TENANTS = ("tenant-a", "tenant-b", "tenant-c", "tenant-d")


@dataclass(frozen=True, slots=True)
class Job:
    """A job, and what its handler does: it takes from `least` to `most` seconds, and the share `fails` of its attempts
    fails; both by a hash of run and attempt."""

    name: str
    service: str = HANDLERS
    overlap: Literal["skip", "buffer_all", "allow_all"] = "allow_all"
    least: float = 0.01
    most: float = 0.05
    fails: float = 0.0
    attempts: int = 30

    @property
    def path(self) -> str:
        """As clients name it."""
        return f"{self.service}/{self.name}"

    def seconds(self, run_id: UUID, attempt: int) -> float:
        return self.least + (self.most - self.least) * _measure("seconds", run_id, attempt)

    def is_to_fail(self, run_id: UUID, attempt: int) -> bool:
        return _measure("fails", run_id, attempt) < self.fails


@dataclass(frozen=True, slots=True)
class Owing:
    """A schedule that is due each `seconds`, on the whole ones since the Unix epoch."""

    job: Job
    tenant: str
    seconds: int


STEADY = Job("steady")
FLAKY = Job("flaky", fails=0.35)
SLOW = Job("slow", least=2.0, most=6.0)
QUEUE = Job("queue", overlap="buffer_all", least=0.1, most=0.5)
SKIPPING = Job("skipping", overlap="skip", least=0.3, most=2.0)
POST = Job("post", ENDPOINTS, least=0.05, most=0.4, fails=0.1)
POST_SLOW = Job("post-slow", ENDPOINTS, least=1.0, most=5.0)
BY_HAND = Job("by-hand", least=0.2, most=2.0, fails=0.2)
DOOMED = Job("doomed", fails=0.8, attempts=2)
"""Most of its runs end `FAILED`. Nothing owes them: they are asked for, and tried again by hand."""

JOBS = (STEADY, FLAKY, SLOW, QUEUE, SKIPPING, POST, POST_SLOW, BY_HAND, DOOMED)
SCHEDULES = (
    Owing(STEADY, "tenant-a", 1),
    Owing(STEADY, "tenant-b", 2),
    Owing(FLAKY, "tenant-b", 2),
    Owing(FLAKY, "tenant-c", 5),
    Owing(SLOW, "tenant-c", 10),
    Owing(QUEUE, "tenant-a", 5),
    Owing(QUEUE, "tenant-d", 5),
    Owing(SKIPPING, "tenant-b", 5),
    Owing(POST, "tenant-c", 1),
    Owing(POST_SLOW, "tenant-d", 5),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """One fault run. `seconds`: of load, with faults. `overtime`: so many more at most, until everything was broken
    once. `storm` and `calm`: faults come for so many seconds, then for so many none do. `kill_every`: seconds between
    kills in a storm. The lease is short, so that losses show soon."""

    seconds: float
    seed: int
    overtime: float = 0.0
    storm: float = 60.0
    calm: float = 24.0
    kill_every: float = 2.2
    lease: float = 6.0
    heartbeat: float = 1.0
    grace: float = 25.0
    """Within it everything that is due completes while nothing is broken and nothing recovers: some attempts that
    fail, the longest that does not, and its turn behind others, on a machine that has much else to do."""
    drain: float = 150.0
    """Within it nothing is live any more, once all is whole and paused."""


def job_of(path: str) -> Job:
    """By its service and name. Errors: KeyError."""
    return _BY_PATH[path]


def marker(job: str, tenant: str) -> str:
    """What the payload of each run of a job and tenant carries."""
    return f"{job}/{tenant}"


_BY_PATH = {job.path: job for job in JOBS}


def _measure(what: str, run_id: UUID, attempt: int) -> float:
    """A number from 0 to 1, always the same for one attempt."""
    digest = hashlib.blake2b(f"{what} {run_id} {attempt}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32
