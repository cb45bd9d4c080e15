"""Token buckets, by a clock that is stepped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_service.domain.rates import Buckets, Rate


def test_a_burst_goes_through_and_then_only_what_flows_in() -> None:
    buckets = Buckets(Rate(per_second=2, burst=5))
    assert [buckets.take("a", 100.0) for _ in range(5)] == [0.0] * 5
    assert buckets.take("a", 100.0) == pytest.approx(0.5)
    assert buckets.take("a", 100.4) == pytest.approx(0.1)
    assert buckets.take("a", 100.5) == 0
    assert buckets.take("a", 1_000.0) == 0


def test_a_wait_that_was_told_is_enough() -> None:
    buckets = Buckets(Rate(per_second=3, burst=1))
    now = 7.0
    for _ in range(100):
        now += buckets.take("a", now)
        assert buckets.take("a", now) == 0 or buckets.wait("a", now) > 0
    assert now == pytest.approx(7 + 99 / 3, rel=0.02)


def test_each_key_has_a_bucket_of_its_own() -> None:
    buckets = Buckets(Rate(per_second=1, burst=1))
    assert buckets.take("a", 0.0) == 0
    assert buckets.take("a", 0.0) > 0
    assert buckets.take("b", 0.0) == 0


def test_a_refusal_takes_nothing() -> None:
    buckets = Buckets(Rate(per_second=1, burst=1))
    buckets.take("a", 0.0)
    for _ in range(1_000):
        assert buckets.take("a", 0.5) == pytest.approx(0.5)
    assert buckets.take("a", 1.0) == 0


def test_the_number_of_buckets_is_bounded_and_those_in_use_stay() -> None:
    buckets = Buckets(Rate(per_second=1, burst=2), most=100)
    for key in range(5_000):
        buckets.take(key, now=0.0)
        buckets.take("busy", now=0.0)
    assert len(buckets) == 100
    assert buckets.take("busy", now=0.0) > 0


@given(
    st.floats(0.1, 100),
    st.integers(1, 50),
    st.lists(st.tuples(st.floats(0, 3), st.floats(0.5, 1.0)), max_size=60),
)
def test_it_is_the_bucket_that_fills_up_drop_by_drop(
    per_second: float, burst: int, calls: list[tuple[float, float]]
) -> None:
    buckets, level, now = Buckets(Rate(per_second, burst)), float(burst), 0.0
    for pause, cost in calls:
        now += pause
        level = min(float(burst), level + pause * per_second)
        if abs(level - cost) < 1e-3:
            return  # rounding decides
        allowed = buckets.take("a", now, cost) == 0
        assert allowed == (level >= cost)
        level -= cost if allowed else 0.0
