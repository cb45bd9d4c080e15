"""Which runs a list is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from scheduler_service.domain.run import RunState, TriggerSource


@dataclass(frozen=True, slots=True)
class RunFilter:
    """All that is set must hold. Empty means any; `job` needs `service`. `since` (inclusive) and `until` (exclusive)
    are compared with the time in the id, to the millisecond: nominal for scheduled runs, creation for others."""

    service: str = ""
    job: str = ""
    tenant: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    states: frozenset[RunState] = frozenset()
    triggers: frozenset[TriggerSource] = frozenset()
    origin: str = ""
    since: datetime | None = None
    until: datetime | None = None

    @property
    def outcomes(self) -> frozenset[RunState]:
        """States of ended runs that may show; empty if `states` names live ones only."""
        return frozenset(state for state in self._states if not state.is_live)

    @property
    def live_states(self) -> frozenset[RunState]:
        """States of live runs that may show; empty if `states` names outcomes only."""
        return frozenset(state for state in self._states if state.is_live)

    @property
    def _states(self) -> frozenset[RunState]:
        return self.states or frozenset(RunState)
