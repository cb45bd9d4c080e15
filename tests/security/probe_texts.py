"""What probes put into the fields of their requests: tenant A's names and values, their own, and harvested tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from google.protobuf.message import Message

from tests.security.canaries import SCHEDULE, TENANT, Canaries, a
from tests.security.world import EMAIL, KPI, B, World

_WEEKLY = f"services/{EMAIL}/jobs/weekly-digest"
_VERB = re.compile(r"^.*/(Get|List|Put|Delete|Pause|Resume|Run(?=Sch)|Preview|Remove|Update|Reset|Trigger|Cancel)?")


class Texts:
    """Chooses by the method and the field's name."""

    def __init__(self, world: World, canaries: Canaries, tokens: Sequence[str]) -> None:
        home = world.things.job.name
        self._jobs = [_WEEKLY, home, f"services/{KPI}/jobs/rollup", f"services/{EMAIL}/jobs/{a('private-job')}"]
        self._schedules = [
            f"{home}/tenants/{tenant}/schedules/{schedule}"
            for tenant in (TENANT, TENANT, B)
            for schedule in (SCHEDULE, "default", "bobs")
        ]
        self._runs = [f"runs/{each}" for each in canaries.ids]
        self._backfills = [f"{home}/backfills/{each}" for each in canaries.ids]
        self._values = {
            "parent": [*self._jobs, *self._parents(), f"services/{EMAIL}", ""],
            "job": self._jobs,
            "schedule": self._schedules,
            "run": self._runs,
            "tenant": [TENANT, B],
            "tenants": [TENANT, B],
            "service": [EMAIL, EMAIL, KPI],
            "page_token": [*([""] * 40), *tokens],
            "request_id": [a("request-id"), ""],
            "run_key": [a("run-key"), ""],
            "origin": [a("origin"), ""],
            "time_zone": ["Europe/Berlin", a("time-zone")],
            "cron": ["0 9 * * *", "@every 90s", a("cron")],
            "paths": ["timing.cron", "config", "labels", "timing", "enabled"],
            "key": ["brand", a("label")],
            "value": [a("label"), a("payload"), "b"],
            "principal": [f"user:{a('subject')}"],
            "resource": [f"tenants/{TENANT}", _WEEKLY],
            "routes": [f"handler/{KPI}/rollup", f"handler/{EMAIL}/{a('private-job')}", "http"],
            "worker": ["w"],
            "client": ["c"],
        }

    def of(self, method: str) -> Mapping[str, Sequence[str]]:
        """By the name of the field."""
        own = {"name": self._names(_VERB.sub("", method))}
        if method.endswith("/BackfillJob"):
            own = {"name": self._jobs, "schedule": [SCHEDULE, "default"]}
        return {**self._values, **own}

    def _names(self, noun: str) -> Sequence[str]:
        if noun in ("Schedule", "Occurrences"):
            return self._schedules
        if noun in ("Run", "Attempts", "Items"):
            return self._runs
        if noun == "Backfill":
            return self._backfills
        return [f"tenants/{TENANT}", f"tenants/{TENANT}", f"tenants/{B}"] if noun == "Tenant" else self._jobs

    def _parents(self) -> list[str]:
        of_tenants = [f"{job}/tenants/{tenant}" for job in self._jobs for tenant in (TENANT, "*", "-")]
        return [*of_tenants, f"services/-/jobs/-/tenants/{TENANT}", "services/-/jobs/-/tenants/*"]


def leave_own_jobs(request: Message) -> None:
    """Makes a registration by the other service one that changes nothing: what was asked before must not change what
    is answered."""
    if "validate_only" in request.DESCRIPTOR.fields_by_name:
        setattr(request, "validate_only", True)  # noqa: B010  # a message of whatever type
