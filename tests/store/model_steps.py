"""How the state machine chooses its steps, and what each is done with."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from scheduler_service.domain.job import Policies, RetryPolicy
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.timing import CatchUp
from tests.store.model_operator import JOBS
from tests.store.model_owed import STARTS, TIMINGS

MINUTE = timedelta(minutes=1)
WINDOWS = (timedelta(0), 10 * MINUTE, 60 * MINUTE)


def policies(
    overlap: Overlap, catch_up: CatchUp, window: timedelta, attempts: int, delay: int, growth: tuple[float, float]
) -> Policies:
    """Attempts take up to 5 minutes and runs up to 2 hours, so that the clock reaches both. `delay` in minutes;
    `growth`: by what it is multiplied each time, and which share of it may be left out."""
    return Policies(
        overlap=overlap,
        attempt_timeout=5 * MINUTE,
        run_timeout=120 * MINUTE,
        cancel_grace=MINUTE / 2,
        retry=RetryPolicy(
            max_attempts=attempts,
            delay=delay * MINUTE,
            multiplier=growth[0],
            max_delay=25 * MINUTE,
            jitter=growth[1],
        ),
        catch_up=catch_up,
        catch_up_window=window,
    )


PICK = st.integers(0, 30)
BITS = st.integers(0, 63)
FEW = st.sampled_from((0, 0, 0, 0, 0, 0, 1, 2, 6, 63))
CREDIT = st.sampled_from((30, 5, 2, 1, 0))
CATCH_UP, TIMING, JOB = st.sampled_from(CatchUp), st.sampled_from(sorted(TIMINGS)), st.sampled_from(JOBS)
POLICIES = st.builds(
    policies,
    st.sampled_from(Overlap),
    CATCH_UP,
    st.sampled_from(WINDOWS),
    st.integers(1, 3),
    st.sampled_from((0, 1, 10)),
    st.sampled_from(((1.0, 0.0), (2.0, 0.0), (2.0, 0.5))),
)
START = st.sampled_from(STARTS)
# The first job owes something all the time.
DECLARED = st.tuples(*(st.tuples(POLICIES, timing) for timing in (st.just("often"), TIMING, TIMING)))
OUTCOME = st.sampled_from(("COMPLETED", "COMPLETED", "FAILED", "CANCELLED", "RETURNED"))


Step = Callable[..., None]
_OFTEN: list[str] = []
_DRAWN: dict[str, st.SearchStrategy[dict[str, Any]]] = {}
# One rule chooses among all steps: of many rules, each example would leave out half, and little would come together.
ANYTHING = st.deferred(lambda: st.sampled_from(_OFTEN).flatmap(lambda name: st.tuples(st.just(name), _DRAWN[name])))


def happens(often: int, **drawn: st.SearchStrategy[Any]) -> Callable[[Step], Step]:
    """A step of the machine: how often it is chosen, beside the others, and with what."""

    def register(step: Step) -> Step:
        _OFTEN.extend([step.__name__] * often)
        _DRAWN[step.__name__] = st.fixed_dictionaries(drawn)
        return step

    return register
