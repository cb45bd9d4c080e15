"""Job messages and domain values. Reading goes on past what is wrong, and lists it."""

from __future__ import annotations

from carillon.v1 import job_pb2, registry_service_pb2

from scheduler_service.domain.fields import Violations
from scheduler_service.domain.job import (
    GrpcTarget,
    HandlerTarget,
    HttpTarget,
    Job,
    JobOverrides,
    JobSpec,
    Manifest,
    Policies,
    RetryPolicy,
    Target,
    TimingSpec,
)
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.timing import CatchUp, GapPolicy, RepeatPolicy
from scheduler_service.rpc.structs import read_struct, to_struct
from scheduler_service.rpc.values import (
    read_duration,
    read_enum,
    write_duration,
    write_time,
)
from scheduler_service.usecases.registry import JobChange


def read_manifest(request: registry_service_pb2.RegisterJobsRequest, wrong: Violations) -> Manifest:
    return Manifest(
        service=request.service,
        generation=request.generation,
        jobs=tuple(_read_spec(spec, f"jobs[{index}]", wrong) for index, spec in enumerate(request.jobs)),
        base_url=request.base_url,
        allow_mass_removal=request.allow_mass_removal,
    )


def read_overrides(message: job_pb2.JobOverrides, path: str, wrong: Violations) -> JobOverrides:
    return JobOverrides(
        timing=read_timing(message.timing, f"{path}.timing", wrong),
        policies=_read_policies(message.policies, f"{path}.policies", wrong),
        config=read_struct(message.config, f"{path}.config", wrong),
    )


def read_timing(message: job_pb2.Timing, path: str, wrong: Violations) -> TimingSpec:
    return TimingSpec(
        cron=message.cron if message.HasField("cron") else None,
        time_zone=message.time_zone or None,
        gap=read_enum(message, "gap", GapPolicy, "GAP_POLICY_", path, wrong),
        repeat=read_enum(message, "repeat", RepeatPolicy, "REPEAT_POLICY_", path, wrong),
        phase=read_duration(message, "phase", path, wrong),
        jitter=read_duration(message, "jitter", path, wrong),
    )


def write_job(job: Job, default_time_zone: str) -> job_pb2.Job:
    return job_pb2.Job(
        name=str(job.name),
        declared=_write_spec(job.declared),
        overrides=_write_overrides(job.overrides),
        effective=_write_spec(job.in_force(default_time_zone)),
        paused=job.paused_at is not None,
        generation=job.generation,
        create_time=write_time(job.created_at),
        update_time=write_time(job.updated_at),
        archive_time=write_time(job.archived_at),
        next_run_time=write_time(job.next_run_at),
    )


def write_change(change: JobChange, default_time_zone: str) -> registry_service_pb2.JobChange:
    return registry_service_pb2.JobChange(
        name=str(change.job.name),
        kind=registry_service_pb2.ChangeKind.Value(f"CHANGE_KIND_{change.kind}"),
        changed_fields=change.changed_fields,
        overridden_fields=change.overridden_fields,
        job=write_job(change.job, default_time_zone),
    )


def write_timing(timing: TimingSpec) -> job_pb2.Timing:
    return job_pb2.Timing(
        cron=timing.cron,
        time_zone=timing.time_zone,
        gap=job_pb2.GapPolicy.Value(f"GAP_POLICY_{timing.gap.name}") if timing.gap else None,
        repeat=job_pb2.RepeatPolicy.Value(f"REPEAT_POLICY_{timing.repeat.name}") if timing.repeat else None,
        phase=write_duration(timing.phase),
        jitter=write_duration(timing.jitter),
    )


def _read_spec(message: job_pb2.JobSpec, path: str, wrong: Violations) -> JobSpec:
    return JobSpec(
        job=message.job,
        display_name=message.display_name,
        description=message.description,
        labels=dict(message.labels),
        target=_read_target(message.target),
        timing=read_timing(message.timing, f"{path}.timing", wrong),
        policies=_read_policies(message.policies, f"{path}.policies", wrong),
        config=read_struct(message.config, f"{path}.config", wrong),
        tenant_schedules=message.tenant_schedules,
    )


def _read_target(message: job_pb2.Target) -> Target:
    if message.HasField("http"):
        return Target(http=HttpTarget(message.http.endpoint))
    if message.HasField("grpc"):
        return Target(grpc=GrpcTarget(message.grpc.address, message.grpc.tls))
    return Target(handler=HandlerTarget() if message.HasField("handler") else None)


def _read_policies(message: job_pb2.Policies, path: str, wrong: Violations) -> Policies:
    return Policies(
        overlap=read_enum(message, "overlap", Overlap, "OVERLAP_", path, wrong),
        attempt_timeout=read_duration(message, "attempt_timeout", path, wrong),
        run_timeout=read_duration(message, "run_timeout", path, wrong),
        retry=_read_retry(message.retry, f"{path}.retry", wrong),
        cancel_grace=read_duration(message, "cancel_grace", path, wrong),
        catch_up=read_enum(message, "catch_up", CatchUp, "CATCH_UP_", path, wrong),
        catch_up_window=read_duration(message, "catch_up_window", path, wrong),
    )


def _read_retry(message: job_pb2.RetryPolicy, path: str, wrong: Violations) -> RetryPolicy:
    return RetryPolicy(
        max_attempts=message.max_attempts if message.HasField("max_attempts") else None,
        delay=read_duration(message, "delay", path, wrong),
        multiplier=message.multiplier if message.HasField("multiplier") else None,
        max_delay=read_duration(message, "max_delay", path, wrong),
        # -0.0 becomes 0.0, as the database keeps it: it would differ from itself at each registration.
        jitter=message.jitter + 0.0 if message.HasField("jitter") else None,
        never_retry=tuple(message.never_retry.codes) if message.HasField("never_retry") else None,
    )


def _write_spec(spec: JobSpec) -> job_pb2.JobSpec:
    return job_pb2.JobSpec(
        job=spec.job,
        display_name=spec.display_name,
        description=spec.description,
        labels=spec.labels,
        target=_write_target(spec.target),
        timing=write_timing(spec.timing),
        policies=_write_policies(spec.policies),
        config=to_struct(spec.config),
        tenant_schedules=spec.tenant_schedules,
    )


def _write_overrides(overrides: JobOverrides) -> job_pb2.JobOverrides:
    return job_pb2.JobOverrides(
        timing=write_timing(overrides.timing) if overrides.timing != TimingSpec() else None,
        policies=_write_policies(overrides.policies) if overrides.policies != Policies() else None,
        config=to_struct(overrides.config) if overrides.config else None,
    )


def _write_target(target: Target) -> job_pb2.Target:
    if target.http is not None:
        return job_pb2.Target(http=job_pb2.HttpTarget(endpoint=target.http.endpoint))
    if target.grpc is not None:
        return job_pb2.Target(grpc=job_pb2.GrpcTarget(address=target.grpc.address, tls=target.grpc.tls))
    return job_pb2.Target(handler=job_pb2.HandlerTarget() if target.handler is not None else None)


def _write_policies(policies: Policies) -> job_pb2.Policies:
    return job_pb2.Policies(
        overlap=job_pb2.Overlap.Value(f"OVERLAP_{policies.overlap.name}") if policies.overlap else None,
        attempt_timeout=write_duration(policies.attempt_timeout),
        run_timeout=write_duration(policies.run_timeout),
        retry=_write_retry(policies.retry) if policies.retry != RetryPolicy() else None,
        cancel_grace=write_duration(policies.cancel_grace),
        catch_up=job_pb2.CatchUp.Value(f"CATCH_UP_{policies.catch_up.name}") if policies.catch_up else None,
        catch_up_window=write_duration(policies.catch_up_window),
    )


def _write_retry(retry: RetryPolicy) -> job_pb2.RetryPolicy:
    return job_pb2.RetryPolicy(
        max_attempts=retry.max_attempts,
        delay=write_duration(retry.delay),
        multiplier=retry.multiplier,
        max_delay=write_duration(retry.max_delay),
        jitter=retry.jitter,
        never_retry=job_pb2.ErrorCodes(codes=retry.never_retry) if retry.never_retry is not None else None,
    )
