"""The method of ScheduleService that accounts for what was owed."""

from __future__ import annotations

from carillon.v1 import ledger_pb2, run_pb2
from carillon.v1 import schedule_service_pb2 as pb

from scheduler_service.domain.fields import Violations
from scheduler_service.domain.ledger import Entry, Outcome
from scheduler_service.domain.names import ScheduleName
from scheduler_service.domain.run import run_name
from scheduler_service.rpc.calls import Context, caller
from scheduler_service.rpc.decode_runs import instant, named
from scheduler_service.rpc.encode_runs import STATES
from scheduler_service.rpc.strict import refuse_unknown_fields
from scheduler_service.rpc.values import write_time
from scheduler_service.store.database import Database
from scheduler_service.usecases.ledger import list_ledger

OUTCOMES = {outcome: ledger_pb2.LedgerOutcome.Value(f"LEDGER_OUTCOME_{outcome.name}") for outcome in Outcome}


class LedgerMethods:
    """ListLedger; the servicer of ScheduleService inherits it."""

    _database: Database

    async def ListLedger(self, request: pb.ListLedgerRequest, context: Context) -> pb.ListLedgerResponse:
        refuse_unknown_fields(request)
        wrong = Violations()
        since, until = instant(request, "since", wrong), instant(request, "until", wrong)
        outcomes = named(request.outcomes, OUTCOMES, "outcomes", wrong)
        wrong.refuse_if_any()
        page = await list_ledger(
            self._database,
            caller(),
            ScheduleName.parse(request.schedule, "schedule"),
            since=since,
            until=until,
            outcomes=outcomes,
            size=request.page_size,
            token=request.page_token,
        )
        return pb.ListLedgerResponse(entries=map(_write, page.entries), next_page_token=page.next_page_token)


def _write(entry: Entry) -> ledger_pb2.LedgerEntry:
    owed, remedy = entry.owed, entry.remedy
    return ledger_pb2.LedgerEntry(
        outcome=OUTCOMES[entry.outcome],
        time=write_time(owed.first),
        local_time=owed.local.isoformat(),
        time_zone=owed.stretch.in_force.time_zone,
        last_time=write_time(owed.last),
        count=owed.count,
        revision=owed.stretch.revision,
        run=run_name(entry.run_id) if entry.run_id else "",
        reason=entry.reason,
        message=entry.message,
        remedy=run_name(remedy.run_id) if remedy else "",
        remedy_state=STATES[remedy.state] if remedy and remedy.state else run_pb2.RUN_STATE_UNSPECIFIED,
        remedied=remedy.remedied if remedy else 0,
    )
