"""Which session is kept back for a run that is to be alone, and how many."""

from __future__ import annotations

from uuid import UUID

import pytest

from scheduler_service.domain.solitude import Place, least, most_kept_back, to_keep_back

A, B, C = (UUID(int=number) for number in range(3))


@pytest.mark.parametrize(
    ("waiting", "having", "serving", "most"),
    [(1, 0, 1, 1), (9, 0, 1, 1), (9, 1, 1, 1), (9, 0, 2, 1), (9, 0, 3, 1), (9, 2, 5, 2), (1, 0, 10, 1), (1, 1, 10, 2)],
)
def test_at_most_half_of_the_sessions_are_kept_back_and_one_always_may_be(
    waiting: int, having: int, serving: int, most: int
) -> None:
    assert most_kept_back(waiting, having, serving) == most


def test_nothing_is_kept_back_for_nothing() -> None:
    assert most_kept_back(0, 0, 8) == 0


def test_the_one_that_holds_least_is_kept_back_unless_others_go_first_there() -> None:
    places = [Place(A, 0, resting=True), Place(B, 7), Place(C, 3)]
    assert to_keep_back(places) == places[2]
    assert least(places) == places[0]
    assert to_keep_back(places[:1]) is None
