"""What a job is: what its service declared, what operators changed, and what is in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from scheduler_service.domain.fields import compact_json, is_relative
from scheduler_service.domain.names import JobName
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.retry import LONGEST_DELAY
from scheduler_service.domain.timing import CatchUp, Every, GapPolicy, RepeatPolicy, parse
from scheduler_service.domain.values import leaves, paths_of, put_over, to_json


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """An endpoint that a worker posts the run to: an absolute URL, or a path below the service's base URL."""

    endpoint: str


@dataclass(frozen=True, slots=True)
class GrpcTarget:
    """A gRPC server, `host:port`, whose `JobHandlerService` a worker calls."""

    address: str
    tls: bool = False


@dataclass(frozen=True, slots=True)
class HandlerTarget:
    """A Python function in a worker that the service embeds."""


@dataclass(frozen=True, slots=True)
class Target:
    """How a run is carried out: exactly one is set."""

    http: HttpTarget | None = None
    grpc: GrpcTarget | None = None
    handler: HandlerTarget | None = None


@dataclass(frozen=True, slots=True)
class TimingSpec:
    """When something is owed, as far as it was said. An empty `cron` says: never on its own."""

    cron: str | None = None
    time_zone: str | None = None
    gap: GapPolicy | None = None
    repeat: RepeatPolicy | None = None
    phase: timedelta | None = None
    jitter: timedelta | None = None

    def over(self, base: TimingSpec) -> TimingSpec:
        """`base` with what is set here put over it. A phase belongs to the expression that it was given for, so that
        another expression leaves the base's phase behind, and one that cannot have a phase leaves any."""
        merged = put_over(self, base)
        if self.cron is not None and self.phase is None and self.cron != base.cron:
            return replace(merged, phase=None)
        return merged if _takes_phase(merged) else replace(merged, phase=None)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed attempt is tried again, as far as it was said: see domain/retry.RetryPolicy. No `never_retry` at
    all says nothing, an empty one that there are none."""

    max_attempts: int | None = None
    delay: timedelta | None = None
    multiplier: float | None = None
    max_delay: timedelta | None = None
    jitter: float | None = None
    never_retry: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Policies:
    """How runs behave, as far as it was said."""

    overlap: Overlap | None = None
    attempt_timeout: timedelta | None = None
    run_timeout: timedelta | None = None
    retry: RetryPolicy = RetryPolicy()
    cancel_grace: timedelta | None = None
    catch_up: CatchUp | None = None
    catch_up_window: timedelta | None = None


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A job as its service declares it."""

    job: str
    display_name: str = ""
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    target: Target = Target()
    timing: TimingSpec = TimingSpec()
    policies: Policies = Policies()
    config: Mapping[str, Any] = field(default_factory=dict)
    tenant_schedules: bool = False


@dataclass(frozen=True, slots=True)
class JobOverrides:
    """What operators changed by hand. What is not set is not overridden."""

    timing: TimingSpec = TimingSpec()
    policies: Policies = Policies()
    config: Mapping[str, Any] = field(default_factory=dict)


NO_OVERRIDES = JobOverrides()
OVERRIDE_PATHS = tuple(paths_of(JobOverrides))
DEFAULT_TIMING = TimingSpec(gap=GapPolicy.SHIFT, repeat=RepeatPolicy.FIRST, phase=timedelta(), jitter=timedelta())
DEFAULT_POLICIES = Policies(
    overlap=Overlap.SKIP,
    attempt_timeout=timedelta(hours=1),
    run_timeout=timedelta(hours=24),
    retry=RetryPolicy(
        max_attempts=3,
        delay=timedelta(minutes=10),
        multiplier=1.0,
        max_delay=LONGEST_DELAY,
        jitter=0.0,
        never_retry=(),
    ),
    cancel_grace=timedelta(seconds=30),
    catch_up=CatchUp.LATEST,
    catch_up_window=timedelta(days=1),
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """All jobs of a service, as one deploy declares them."""

    service: str
    generation: int = 0
    jobs: tuple[JobSpec, ...] = ()
    base_url: str = ""
    allow_mass_removal: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands. `owed_from`: its schedules owe nothing before. `next_run_at` is the next nominal instant of
    its own schedule; None if there is none, or the job is paused or archived."""

    job_id: int
    service: str
    declared: JobSpec
    overrides: JobOverrides
    generation: int
    owed_from: datetime
    created_at: datetime
    updated_at: datetime
    paused_at: datetime | None = None
    archived_at: datetime | None = None
    next_run_at: datetime | None = None

    @property
    def name(self) -> JobName:
        return JobName(self.service, self.declared.job)

    def in_force(self, default_time_zone: str) -> JobSpec:
        return in_force(self.declared, self.overrides, default_time_zone)


def in_force(declared: JobSpec, overrides: JobOverrides, default_time_zone: str) -> JobSpec:
    """The declaration with every override put over it and every default filled in. Only `timing.cron` may still be
    unset: such a job has no schedule of its own."""
    defaults = replace(DEFAULT_TIMING, time_zone=default_time_zone)
    return replace(
        declared,
        display_name=declared.display_name or declared.job,
        timing=overrides.timing.over(declared.timing.over(defaults)).over(defaults),
        policies=put_over(overrides.policies, put_over(declared.policies, DEFAULT_POLICIES)),
        config={**declared.config, **overrides.config},
    )


def changed_fields(old: JobSpec, new: JobSpec) -> list[str]:
    """The paths of the fields that differ, such as `timing.cron`, in the proto's order."""
    before, after = _texts(old), _texts(new)
    found = [path for path in {**after, **before} if before.get(path) != after.get(path)]
    order = {path: place for place, path in enumerate(paths_of(JobSpec))}
    return sorted(found, key=order.__getitem__)


def overridden_fields(declared: JobSpec, overrides: JobOverrides) -> list[str]:
    """Paths of the declaration that have no effect because an operator overrode them; `config.retries` for a key."""
    set_there = leaves(overrides)
    found = [path for path in leaves(declared) if path in set_there and path != "config"]
    return found + [f"config.{key}" for key in declared.config if key in overrides.config]


def route_of(service: str, spec: JobSpec) -> str:
    """Where its runs can be carried out, as workers name it."""
    if spec.target.http is not None:
        return "http"
    return "grpc" if spec.target.grpc is not None else f"handler/{service}/{spec.job}"


def endpoint_of(spec: JobSpec, base_url: str) -> str:
    """Where a worker finds the target: an absolute URL, whose scheme for gRPC is `grpc`, or `grpcs` for TLS; empty for
    a handler."""
    http, grpc = spec.target.http, spec.target.grpc
    if http is not None:
        return base_url.rstrip("/") + http.endpoint if is_relative(http.endpoint) else http.endpoint
    if grpc is not None:
        return f"{'grpcs' if grpc.tls else 'grpc'}://{grpc.address}"
    return ""


def _texts(spec: JobSpec) -> dict[str, str]:
    return {path: compact_json(to_json(value)) for path, value in leaves(spec).items()}


def _takes_phase(timing: TimingSpec) -> bool:
    if not timing.phase:
        return True
    rule = parse(timing.cron) if timing.cron else None
    return isinstance(rule, Every) and timing.phase < rule.period
