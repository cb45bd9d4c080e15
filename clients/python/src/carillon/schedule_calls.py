"""The calls about schedules and tenants, described as those in `calls` are."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from carillon.declaration import CatchUp, TimingOptions, catch_up_value
from carillon.names import job_name, schedule_name, tenant_name
from carillon.overrides import proposed_timing, schedule_and_mask
from carillon.rpc import PAGE, Call, Pages, Unary
from carillon.structs import set_range, to_enum, to_struct
from carillon.v1 import ledger_pb2, run_pb2, schedule_pb2, schedule_service_pb2

if TYPE_CHECKING:
    from typing_extensions import Unpack


def get_schedule(job: str, *, tenant: str = "-", schedule: str = "default") -> Call[schedule_pb2.Schedule]:
    """Reads one schedule; by default the job's own."""
    request = schedule_service_pb2.GetScheduleRequest(name=schedule_name(job, tenant, schedule))
    return Unary(lambda stubs: stubs.schedules.GetSchedule).call(request, lambda answer: answer.schedule)


def list_schedules(job: str = "-/-", *, tenant: str = "*") -> Pages[schedule_pb2.Schedule]:
    """All schedules that the caller may see, of one job, or of one tenant: then also the defaults of jobs for which it
    has none (`stored` is False)."""
    request = schedule_service_pb2.ListSchedulesRequest(parent=f"{job_name(job)}/tenants/{tenant}", page_size=PAGE)
    return Unary(lambda stubs: stubs.schedules.ListSchedules).pages(request, lambda answer: answer.schedules)


def put_schedule(
    job: str,
    *,
    tenant: str,
    schedule: str = "default",
    enabled: bool | None = None,
    config: Mapping[str, object] | None = None,
    labels: Mapping[str, str] | None = None,
    **timing: Unpack[TimingOptions],
) -> Call[schedule_pb2.Schedule]:
    """Creates or updates a tenant's schedule. What is not named stays as it is; a new one is enabled.

    `preview_occurrences` says when it is owed next.
    """
    values, mask = schedule_and_mask(timing, enabled, config, labels)
    values.name = schedule_name(job, tenant, schedule)
    request = schedule_service_pb2.PutScheduleRequest(schedule=values, update_mask=mask)
    return Unary(lambda stubs: stubs.schedules.PutSchedule).call(request, lambda answer: answer.schedule)


def delete_schedule(
    job: str, *, tenant: str, schedule: str = "default"
) -> Call[schedule_service_pb2.DeleteScheduleResponse]:
    """Deletes a tenant's schedule: it owes nothing from now on, its waiting runs are cancelled, its history stays."""
    request = schedule_service_pb2.DeleteScheduleRequest(name=schedule_name(job, tenant, schedule))
    return Unary(lambda stubs: stubs.schedules.DeleteSchedule).call(request, lambda answer: answer)


def pause_schedule(job: str, *, tenant: str = "-", schedule: str = "default") -> Call[schedule_pb2.Schedule]:
    """Holds one schedule; by default the job's own: it owes nothing from now on."""
    request = schedule_service_pb2.PauseScheduleRequest(name=schedule_name(job, tenant, schedule))
    return Unary(lambda stubs: stubs.schedules.PauseSchedule).call(request, lambda answer: answer.schedule)


def resume_schedule(
    job: str,
    *,
    tenant: str = "-",
    schedule: str = "default",
    catch_up: CatchUp = "none",
    validate_only: bool = False,
) -> Call[schedule_service_pb2.ResumeScheduleResponse]:
    """Lets a paused schedule go on, and answers what that catches up of the time it was paused: `answer.catch_up`.

    catch_up: what is run of what came due meanwhile, within the job's window: none, the latest, or all.
    validate_only: only answers what would be caught up.
    """
    request = schedule_service_pb2.ResumeScheduleRequest(
        name=schedule_name(job, tenant, schedule),
        catch_up=catch_up_value("resume_schedule", catch_up),
        validate_only=validate_only,
    )
    return Unary(lambda stubs: stubs.schedules.ResumeSchedule).call(request, lambda answer: answer)


def run_schedule(
    job: str,
    payload: Mapping[str, object] | None = None,
    *,
    tenant: str = "-",
    schedule: str = "default",
    request_id: str | None = None,
) -> Call[run_pb2.Run]:
    """Runs a schedule now, also while it is disabled or paused. If another run of it is live, it waits its turn.

    payload: put over the config of job and schedule, key by key. request_id: as for `trigger_job`.
    """
    request = schedule_service_pb2.RunScheduleRequest(
        name=schedule_name(job, tenant, schedule), request_id=request_id or str(uuid.uuid4())
    )
    if payload is not None:
        request.payload.CopyFrom(to_struct(payload, "payload"))
    return Unary(lambda stubs: stubs.schedules.RunSchedule).call(request, lambda answer: answer.run)


def preview_occurrences(
    job: str = "",
    *,
    tenant: str | None = None,
    schedule: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    count: int = 10,
    **timing: Unpack[TimingOptions],
) -> Call[schedule_service_pb2.PreviewOccurrencesResponse]:
    """Says when a schedule is owed next: `preview_occurrences("email-service/digest")` the job's own, or that of a
    tenant; `preview_occurrences(cron="30 2 * * *", time_zone="America/New_York")` a proposed one.

    job: beside a proposed timing, whose timing fills in what that leaves out. since: only later instants (default:
    now). until: only instants up to this. count: how many at most, up to 1,000
    (a user's: up to 100).
    """
    request = schedule_service_pb2.PreviewOccurrencesRequest(count=count)
    set_range(request, since, until)
    if not timing:
        if not job:
            raise ValueError("preview_occurrences needs a job, or a timing such as cron='0 9 * * 1'")
        request.name = schedule_name(job, tenant or "-", schedule or "default")
    elif tenant is None and schedule is None:
        request.timing.CopyFrom(proposed_timing(timing))
        request.job = job_name(job) if job else ""
    else:
        raise ValueError("preview_occurrences takes a schedule's tenant and id, or a proposed timing, not both")
    return Unary(lambda stubs: stubs.schedules.PreviewOccurrences).call(request, lambda answer: answer)


def list_ledger(
    job: str,
    *,
    tenant: str = "-",
    schedule: str = "default",
    since: datetime | None = None,
    until: datetime | None = None,
    outcomes: Iterable[str] = (),
) -> Pages[ledger_pb2.LedgerEntry]:
    """What became of every occurrence that a schedule owed, the oldest first; by default the job's own.

    since, until: default: the last day. outcomes: only these, such as `MISSED`.
    """
    request = schedule_service_pb2.ListLedgerRequest(
        schedule=schedule_name(job, tenant, schedule),
        outcomes=[to_enum(ledger_pb2.LedgerOutcome, "LEDGER_OUTCOME_", outcome) for outcome in outcomes],
        page_size=PAGE,
    )
    set_range(request, since, until)
    return Unary(lambda stubs: stubs.schedules.ListLedger).pages(request, lambda answer: answer.entries)


def get_tenant(tenant: str) -> Call[schedule_pb2.Tenant]:
    """Reads a tenant. One that was never set has no time zone."""
    request = schedule_service_pb2.GetTenantRequest(name=tenant_name(tenant))
    return Unary(lambda stubs: stubs.schedules.GetTenant).call(request, lambda answer: answer.tenant)


def put_tenant(tenant: str, *, time_zone: str) -> Call[schedule_pb2.Tenant]:
    """Sets the time zone of a tenant's schedules that name none. Empty: the job's."""
    values = schedule_pb2.Tenant(name=tenant_name(tenant), time_zone=time_zone)
    request = schedule_service_pb2.PutTenantRequest(tenant=values)
    return Unary(lambda stubs: stubs.schedules.PutTenant).call(request, lambda answer: answer.tenant)


def remove_tenant(tenant: str) -> Call[schedule_service_pb2.RemoveTenantResponse]:
    """Removes a tenant: deletes all its schedules, of all jobs, and forgets its time zone. Its history stays."""
    request = schedule_service_pb2.RemoveTenantRequest(name=tenant_name(tenant))
    return Unary(lambda stubs: stubs.schedules.RemoveTenant).call(request, lambda answer: answer)
