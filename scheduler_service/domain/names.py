"""Resource names (`services/{service}/jobs/{job}`...): the one place that reads and writes them."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from scheduler_service.domain.access import SYSTEM_TENANT
from scheduler_service.domain.errors import InvalidInput, Violation
from scheduler_service.domain.fields import Violations, quoted

DEFAULT_SCHEDULE = "default"
"""The id of a job's own schedule, of tenant `-`, that is made from its manifest."""
ANY_TENANT = "*"
"""Stands for every tenant and the system, where a request allows it."""

_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@|-]{0,127}")
_ANY = "-"
_JOB_FORM = "services/{service}/jobs/{job}"
_SCHEDULES_FORM = "services/{service}/jobs/{job}/tenants/{tenant}"
_SCHEDULE_FORM = f"{_SCHEDULES_FORM}/schedules/{{schedule}}"
_TENANT_FORM = "tenants/{tenant}"
_BACKFILL_FORM = f"{_JOB_FORM}/backfills/{{backfill}}"
ID_RULE = "1 to 63 characters of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit"


@dataclass(frozen=True, slots=True, order=True)
class JobName:
    """Which job."""

    service: str
    job: str

    def __str__(self) -> str:
        return f"services/{self.service}/jobs/{self.job}"

    @staticmethod
    def parse(name: str, field: str = "name") -> JobName:
        """Reads `services/{service}/jobs/{job}`. Refuses anything else with InvalidInput for the field."""
        service, job = _ids(name, _JOB_FORM, field)
        wrong = Violations()
        check_id(service, field, wrong, what="the service")
        check_id(job, field, wrong, what="the job")
        wrong.refuse_if_any()
        return JobName(service, job)


@dataclass(frozen=True, slots=True, order=True)
class ScheduleName:
    """Which schedule of a job, for which tenant; tenant `-` is the system."""

    job: JobName
    tenant: str
    schedule: str

    def __str__(self) -> str:
        return f"{self.job}/tenants/{self.tenant}/schedules/{self.schedule}"

    @property
    def is_jobs_own(self) -> bool:
        """Whether it is the one that is made from the job's timing, and follows it."""
        return (self.tenant, self.schedule) == (SYSTEM_TENANT, DEFAULT_SCHEDULE)

    @staticmethod
    def parse(name: str, field: str = "name") -> ScheduleName:
        """Reads `services/{service}/jobs/{job}/tenants/{tenant}/schedules/{schedule}`."""
        service, job, tenant, schedule = _ids(name, _SCHEDULE_FORM, field)
        wrong = Violations()
        check_id(service, field, wrong, what="the service")
        check_id(job, field, wrong, what="the job")
        check_id(schedule, field, wrong, what="the schedule")
        if tenant != SYSTEM_TENANT:
            check_tenant(tenant, field, wrong)
        wrong.refuse_if_any()
        return ScheduleName(JobName(service, job), tenant, schedule)


@dataclass(frozen=True, slots=True, order=True)
class BackfillName:
    """Which backfill of a job."""

    job: JobName
    backfill_id: UUID

    def __str__(self) -> str:
        return f"{self.job}/backfills/{self.backfill_id}"

    @staticmethod
    def parse(name: str, field: str = "name") -> BackfillName:
        """Reads `services/{service}/jobs/{job}/backfills/{backfill}`."""
        service, job, backfill = _ids(name, _BACKFILL_FORM, field)
        owner = JobName.parse(str(JobName(service, job)), field)
        with suppress(ValueError):
            backfill_id = UUID(backfill)
            if str(backfill_id) == backfill.lower():
                return BackfillName(owner, backfill_id)
        raise InvalidInput(
            Violation(field, f"{quoted(name)} is not of the form {_BACKFILL_FORM}, where {{backfill}} is a UUID")
        )


@dataclass(frozen=True, slots=True)
class ScheduleParent:
    """Which schedules to list. None stands for all."""

    service: str | None = None
    job: str | None = None
    tenant: str | None = None

    @staticmethod
    def parse(parent: str, field: str = "parent") -> ScheduleParent:
        """Reads `services/{service}/jobs/{job}/tenants/{tenant}`, where `-` is every service or job, and `*` every
        tenant (`-` is the system). Empty: all."""
        if not parent:
            return ScheduleParent()
        service, job, tenant = _ids(parent, _SCHEDULES_FORM, field)
        wrong = Violations()
        if service != _ANY:
            check_id(service, field, wrong, what="the service")
        if job != _ANY:
            check_id(job, field, wrong, what="the job")
        if tenant not in (ANY_TENANT, SYSTEM_TENANT):
            check_tenant(tenant, field, wrong)
        wrong.refuse_if_any()
        return ScheduleParent(
            None if service == _ANY else service,
            None if job == _ANY else job,
            None if tenant == ANY_TENANT else tenant,
        )


def parse_service_parent(parent: str, field: str = "parent") -> str | None:
    """Reads `services/{service}`; None for `services/-` or nothing, which stand for all."""
    if parent in ("", f"services/{_ANY}"):
        return None
    (service,) = _ids(parent, "services/{service}", field)
    wrong = Violations()
    check_id(service, field, wrong, what="the service")
    wrong.refuse_if_any()
    return service


def tenant_name(tenant: str) -> str:
    """`tenants/{tenant}`."""
    return f"tenants/{tenant}"


def parse_tenant(name: str, field: str = "name") -> str:
    """Reads `tenants/{tenant}`. Refuses anything else with InvalidInput for the field; the system's `-` is none."""
    (tenant,) = _ids(name, _TENANT_FORM, field)
    wrong = Violations()
    check_tenant(tenant, field, wrong)
    wrong.refuse_if_any()
    return tenant


def check_id(text: str, field: str, wrong: Violations, *, what: str = "an id") -> None:
    """The id of a service, job or schedule."""
    if not text:
        wrong.add(field, f"{what} is missing; it needs {ID_RULE}")
    elif not is_id(text):
        wrong.add(field, f"{quoted(text)} cannot name {what}; an id has {ID_RULE}")


def is_id(text: str) -> bool:
    """Whether it can name a service, job or schedule."""
    return _ID.fullmatch(text) is not None


def check_tenant(text: str, field: str, wrong: Violations) -> None:
    """A tenant's id; the system's `-` is none."""
    if not _TENANT.fullmatch(text):
        wrong.add(
            field,
            f"{quoted(text)} cannot name a tenant; its id has 1 to 128 characters of a-z, A-Z, 0-9 and ._:@|-,"
            " beginning with a letter or digit",
        )


def _ids(name: str, form: str, field: str) -> list[str]:
    parts, wanted = name.split("/"), form.split("/")
    if len(parts) != len(wanted) or parts[::2] != wanted[::2]:
        raise InvalidInput(Violation(field, f"{quoted(name)} is not of the form {form}"))
    return parts[1::2]
