"""The calls of the clients about schedules and tenants: what each sends, and what it returns for an answer."""

from __future__ import annotations

from carillon.rpc import PAGE
from carillon.v1 import job_pb2, ledger_pb2, schedule_pb2, schedule_service_pb2
from google.protobuf import field_mask_pb2

from tests.unit.client.call_cases import FULL, JOB, RUN, SINCE, UNTIL, Case, stamp

OWN = f"{JOB}/tenants/-/schedules/default"
SCHEDULE = f"{JOB}/tenants/acme/schedules/default"
_SCHEDULE = schedule_pb2.Schedule(name=SCHEDULE)
_OWN = schedule_pb2.Schedule(name=OWN)
_DELETED = schedule_service_pb2.DeleteScheduleResponse(cancelled_runs=2)
_RESUMED = schedule_service_pb2.ResumeScheduleResponse(schedule=_SCHEDULE, catch_up=schedule_pb2.CatchUpPlan(runs=2))
_PREVIEW = schedule_service_pb2.PreviewOccurrencesResponse(description="At 09:00 every day, UTC")
_TENANT = schedule_pb2.Tenant(name="tenants/acme", time_zone="Asia/Tokyo")
_REMOVED = schedule_service_pb2.RemoveTenantResponse(deleted_schedules=3, cancelled_runs=1)
_ENTRY = ledger_pb2.LedgerEntry(outcome=ledger_pb2.LEDGER_OUTCOME_MISSED, count=4)

UNARY = [
    Case(
        "get_schedule",
        ("kpi/sync",),
        ("ScheduleService", "GetSchedule"),
        schedule_service_pb2.GetScheduleRequest(name=SCHEDULE),
        schedule_service_pb2.GetScheduleResponse(schedule=_SCHEDULE),
        _SCHEDULE,
        {"tenant": "acme"},
    ),
    Case(
        "put_schedule",
        ("kpi/sync",),
        ("ScheduleService", "PutSchedule"),
        schedule_service_pb2.PutScheduleRequest(
            schedule=schedule_pb2.Schedule(name=SCHEDULE, timing=job_pb2.Timing(cron="@daily"), enabled=True),
            update_mask=field_mask_pb2.FieldMask(paths=["timing.cron", "enabled"]),
        ),
        schedule_service_pb2.PutScheduleResponse(schedule=_SCHEDULE),
        _SCHEDULE,
        {"tenant": "acme", "cron": "@daily", "enabled": True},
    ),
    Case(
        "delete_schedule",
        ("kpi/sync",),
        ("ScheduleService", "DeleteSchedule"),
        schedule_service_pb2.DeleteScheduleRequest(name=SCHEDULE),
        _DELETED,
        _DELETED,
        {"tenant": "acme"},
    ),
    Case(
        "pause_schedule",
        ("kpi/sync",),
        ("ScheduleService", "PauseSchedule"),
        schedule_service_pb2.PauseScheduleRequest(name=OWN),
        schedule_service_pb2.PauseScheduleResponse(schedule=_OWN),
        _OWN,
    ),
    Case(
        "resume_schedule",
        ("kpi/sync",),
        ("ScheduleService", "ResumeSchedule"),
        schedule_service_pb2.ResumeScheduleRequest(name=SCHEDULE, catch_up=job_pb2.CATCH_UP_ALL, validate_only=True),
        _RESUMED,
        _RESUMED,
        {"tenant": "acme", "catch_up": "all", "validate_only": True},
    ),
    Case(
        "run_schedule",
        ("kpi/sync", {"full": True}),
        ("ScheduleService", "RunSchedule"),
        schedule_service_pb2.RunScheduleRequest(name=SCHEDULE, payload=FULL, request_id="r"),
        schedule_service_pb2.RunScheduleResponse(run=RUN),
        RUN,
        {"tenant": "acme", "request_id": "r"},
    ),
    Case(
        "preview_occurrences",
        ("kpi/sync",),
        ("ScheduleService", "PreviewOccurrences"),
        schedule_service_pb2.PreviewOccurrencesRequest(name=SCHEDULE, since=stamp(SINCE), until=stamp(UNTIL), count=3),
        _PREVIEW,
        _PREVIEW,
        {"tenant": "acme", "since": SINCE, "until": UNTIL, "count": 3},
    ),
    Case(
        "preview_occurrences",
        (),
        ("ScheduleService", "PreviewOccurrences"),
        schedule_service_pb2.PreviewOccurrencesRequest(
            timing=job_pb2.Timing(cron="@daily", gap=job_pb2.GAP_POLICY_SKIP), job=JOB, count=10
        ),
        _PREVIEW,
        _PREVIEW,
        {"job": "kpi/sync", "cron": "@daily", "gap": "skip"},
    ),
    Case(
        "get_tenant",
        ("acme",),
        ("ScheduleService", "GetTenant"),
        schedule_service_pb2.GetTenantRequest(name="tenants/acme"),
        schedule_service_pb2.GetTenantResponse(tenant=_TENANT),
        _TENANT,
    ),
    Case(
        "put_tenant",
        ("tenants/acme",),
        ("ScheduleService", "PutTenant"),
        schedule_service_pb2.PutTenantRequest(tenant=_TENANT),
        schedule_service_pb2.PutTenantResponse(tenant=_TENANT),
        _TENANT,
        {"time_zone": "Asia/Tokyo"},
    ),
    Case(
        "remove_tenant",
        ("acme",),
        ("ScheduleService", "RemoveTenant"),
        schedule_service_pb2.RemoveTenantRequest(name="tenants/acme"),
        _REMOVED,
        _REMOVED,
    ),
]

# Of these, `answer` and `result` are the first page's; the second has another of the same.
PAGES = [
    Case(
        "list_schedules",
        ("kpi/sync",),
        ("ScheduleService", "ListSchedules"),
        schedule_service_pb2.ListSchedulesRequest(parent=f"{JOB}/tenants/*", page_size=PAGE),
        schedule_service_pb2.ListSchedulesResponse(schedules=[_SCHEDULE]),
        [_SCHEDULE],
    ),
    Case(
        "list_ledger",
        ("kpi/sync",),
        ("ScheduleService", "ListLedger"),
        schedule_service_pb2.ListLedgerRequest(
            schedule=SCHEDULE, since=stamp(SINCE), outcomes=[ledger_pb2.LEDGER_OUTCOME_MISSED], page_size=PAGE
        ),
        schedule_service_pb2.ListLedgerResponse(entries=[_ENTRY]),
        [_ENTRY],
        {"tenant": "acme", "since": SINCE, "outcomes": ["missed"]},
    ),
]
