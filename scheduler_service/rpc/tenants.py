"""The methods of ScheduleService about tenants."""

from __future__ import annotations

from carillon.v1 import schedule_pb2
from carillon.v1 import schedule_service_pb2 as pb

from scheduler_service.domain.names import parse_tenant, tenant_name
from scheduler_service.domain.tenant import Tenant
from scheduler_service.rpc.calls import Context, caller
from scheduler_service.rpc.strict import refuse_unknown_fields, unknown_fields
from scheduler_service.rpc.values import write_time
from scheduler_service.store.database import Database
from scheduler_service.usecases import deleting, tenants
from scheduler_service.usecases.wakeups import Wakeups


class TenantMethods:
    """GetTenant, PutTenant and RemoveTenant; the servicer of ScheduleService inherits them."""

    _database: Database
    _wakeups: Wakeups
    _default_time_zone: str

    async def GetTenant(self, request: pb.GetTenantRequest, context: Context) -> pb.GetTenantResponse:
        tenant = await tenants.get_tenant(self._database, caller(), parse_tenant(request.name))
        return pb.GetTenantResponse(tenant=write_tenant(tenant))

    async def PutTenant(self, request: pb.PutTenantRequest, context: Context) -> pb.PutTenantResponse:
        tenant = await tenants.put_tenant(
            self._database,
            self._wakeups,
            caller(),
            parse_tenant(request.tenant.name, "tenant.name"),
            request.tenant.time_zone,
            default_time_zone=self._default_time_zone,
            problems=unknown_fields(request),
        )
        return pb.PutTenantResponse(tenant=write_tenant(tenant))

    async def RemoveTenant(self, request: pb.RemoveTenantRequest, context: Context) -> pb.RemoveTenantResponse:
        refuse_unknown_fields(request)
        deleted = await deleting.remove_tenant(self._database, self._wakeups, caller(), parse_tenant(request.name))
        return pb.RemoveTenantResponse(deleted_schedules=deleted.schedules, cancelled_runs=deleted.cancelled_runs)


def write_tenant(tenant: Tenant) -> schedule_pb2.Tenant:
    return schedule_pb2.Tenant(
        name=tenant_name(tenant.tenant),
        time_zone=tenant.time_zone,
        create_time=write_time(tenant.created_at),
        update_time=write_time(tenant.updated_at),
        updated_by=tenant.updated_by,
    )
