"""A job's values: their limits, what is in force, what changed, and their JSON form."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_service.domain.fields import (
    MAX_JSON_BYTES,
    MAX_JSON_DEPTH,
    Violations,
    check_address,
    check_endpoint,
    check_json,
    check_url,
)
from scheduler_service.domain.job import (
    NO_OVERRIDES,
    GrpcTarget,
    HandlerTarget,
    HttpTarget,
    JobOverrides,
    JobSpec,
    Policies,
    RetryPolicy,
    Target,
    TimingSpec,
    changed_fields,
    endpoint_of,
    in_force,
    overridden_fields,
    route_of,
)
from scheduler_service.domain.job_rules import check_policies
from scheduler_service.domain.overlap import Overlap
from scheduler_service.domain.timing import CatchUp, GapPolicy, RepeatPolicy
from scheduler_service.domain.values import from_json, put_over, take, to_json

MINUTE = timedelta(minutes=1)
HANDLER = Target(handler=HandlerTarget())
GRPC = Target(grpc=GrpcTarget("email-service:50051", tls=True))

durations = st.none() | st.timedeltas(timedelta(0), timedelta(days=30))
timings = st.builds(
    TimingSpec,
    cron=st.none() | st.sampled_from(["", "@every 90s", "0 9 * * 1", "0 0 * * *"]),
    time_zone=st.none() | st.just("Europe/Berlin"),
    gap=st.none() | st.sampled_from(GapPolicy),
    repeat=st.none() | st.sampled_from(RepeatPolicy),
    phase=st.none() | st.timedeltas(timedelta(0), timedelta(minutes=2)),
    jitter=durations,
)
policies = st.builds(
    Policies,
    overlap=st.none() | st.sampled_from(Overlap),
    attempt_timeout=durations,
    run_timeout=durations,
    retry=st.builds(
        RetryPolicy,
        max_attempts=st.none() | st.integers(1, 100),
        delay=durations,
        multiplier=st.none() | st.floats(1, 100),
        max_delay=durations,
        jitter=st.none() | st.floats(0, 1),
        never_retry=st.none() | st.lists(st.sampled_from(["NO_USER", "HTTP_4*", "E"]), unique=True).map(tuple),
    ),
    cancel_grace=durations,
    catch_up=st.none() | st.sampled_from(CatchUp),
    catch_up_window=durations,
)
configs = st.dictionaries(st.text(max_size=5), st.integers() | st.booleans() | st.text(max_size=5), max_size=3)
specs = st.builds(
    JobSpec,
    job=st.just("weekly-digest"),
    display_name=st.text(max_size=5),
    labels=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    target=st.sampled_from([HANDLER, GRPC, Target(http=HttpTarget("/run"))]),
    timing=timings,
    policies=policies,
    config=configs,
    tenant_schedules=st.booleans(),
)
overrides = st.builds(JobOverrides, timing=timings, policies=policies, config=configs)


def problems(check: Any, value: Any) -> list[tuple[str, str]]:
    wrong = Violations()
    check(value, "it", wrong)
    return [(violation.field, violation.problem) for violation in wrong]


def retry_problems(**fields: Any) -> list[tuple[str, str]]:
    return problems(check_policies, Policies(retry=RetryPolicy(**fields)))


@given(specs)
def test_a_declaration_survives_its_json_form(spec: JobSpec) -> None:
    assert from_json(JobSpec, json.loads(json.dumps(to_json(spec)))) == spec


@given(overrides)
def test_overrides_survive_their_json_form(values: JobOverrides) -> None:
    assert from_json(JobOverrides, to_json(values)) == values


@given(specs, overrides)
def test_everything_but_the_expression_is_in_force_with_some_value(spec: JobSpec, values: JobOverrides) -> None:
    effective = in_force(spec, values, "Asia/Tokyo")
    assert None not in to_json(effective).values()
    assert None not in (effective.timing.time_zone, effective.timing.gap, effective.timing.jitter)
    assert set(to_json(effective.policies)) == set(Policies.__slots__)
    assert set(to_json(effective.policies.retry)) == set(RetryPolicy.__slots__)


@given(specs)
def test_nothing_changed_between_a_declaration_and_itself(spec: JobSpec) -> None:
    assert changed_fields(spec, from_json(JobSpec, to_json(spec))) == []
    assert overridden_fields(spec, NO_OVERRIDES) == []


def test_changes_are_named_by_their_paths_in_the_protos_order() -> None:
    old = JobSpec("a", target=HANDLER, timing=TimingSpec(cron="@daily"), config={"x": 1})
    new = JobSpec(
        "a",
        description="new",
        target=Target(http=HttpTarget("/a")),
        timing=TimingSpec(cron="@daily", jitter=MINUTE),
        policies=Policies(retry=RetryPolicy(delay=MINUTE)),
        config={"x": True},
    )
    assert changed_fields(old, new) == [
        "description",
        "target.http.endpoint",
        "target.handler",
        "timing.jitter",
        "policies.retry.delay",
        "config",
    ]


def test_a_change_of_a_grpc_address_is_named() -> None:
    old, new = JobSpec("a", target=GRPC), JobSpec("a", target=Target(grpc=GrpcTarget("email-service:50052", tls=True)))
    assert changed_fields(old, new) == ["target.grpc.address"]
    assert changed_fields(old, JobSpec("a", target=HANDLER)) == [
        "target.grpc.address",
        "target.grpc.tls",
        "target.handler",
    ]


def test_a_phase_stays_with_the_expression_that_it_was_given_for() -> None:
    declared = TimingSpec(cron="@every 90s", phase=timedelta(seconds=60))
    assert TimingSpec(time_zone="UTC").over(declared).phase == timedelta(seconds=60)
    assert TimingSpec(cron="@every 2m").over(declared).phase is None
    assert TimingSpec(phase=timedelta(seconds=60)).over(TimingSpec(cron="0 9 * * *")).phase is None
    assert TimingSpec(phase=MINUTE).over(TimingSpec(cron="@every 30s")).phase is None


def test_a_mask_takes_fields_set_or_not_and_whole_groups() -> None:
    before = JobOverrides(TimingSpec(cron="@daily", jitter=MINUTE), Policies(overlap=Overlap.SKIP), {"x": 1})
    source = JobOverrides(TimingSpec(cron="@hourly"), Policies(retry=RetryPolicy(max_attempts=1)))
    assert take(before, source, ["timing.cron"]).timing == TimingSpec(cron="@hourly", jitter=MINUTE)
    assert take(before, source, ["timing"]).timing == TimingSpec(cron="@hourly")
    assert take(before, source, ["policies.retry.max_attempts"]).policies == Policies(
        overlap=Overlap.SKIP, retry=RetryPolicy(max_attempts=1)
    )
    assert take(before, source, ["config"]).config == {}


def test_what_is_late_is_caught_up_by_its_latest_of_the_last_day_unless_a_job_says_otherwise() -> None:
    declared = JobSpec("a", target=HANDLER, policies=Policies(catch_up=CatchUp.ALL))
    assert in_force(JobSpec("a"), NO_OVERRIDES, "UTC").policies.catch_up is CatchUp.LATEST
    assert in_force(declared, NO_OVERRIDES, "UTC").policies.catch_up is CatchUp.ALL
    assert in_force(declared, NO_OVERRIDES, "UTC").policies.catch_up_window == timedelta(days=1)
    by_hand = JobOverrides(policies=Policies(catch_up=CatchUp.NONE, catch_up_window=MINUTE))
    overridden = in_force(declared, by_hand, "UTC").policies
    assert (overridden.catch_up, overridden.catch_up_window) == (CatchUp.NONE, MINUTE)
    assert overridden_fields(declared, by_hand) == ["policies.catch_up"]


def test_putting_over_leaves_what_is_not_set() -> None:
    base = Policies(overlap=Overlap.SKIP, retry=RetryPolicy(3, MINUTE))
    over = Policies(retry=RetryPolicy(max_attempts=1))
    assert put_over(over, base) == Policies(overlap=Overlap.SKIP, retry=RetryPolicy(1, MINUTE))


def test_where_runs_are_carried_out() -> None:
    http, handler = JobSpec("a", target=Target(http=HttpTarget("/run?x=1"))), JobSpec("a", target=HANDLER)
    assert (route_of("s", http), route_of("s", handler)) == ("http", "handler/s/a")
    assert endpoint_of(http, "http://s:8080/base/") == "http://s:8080/base/run?x=1"
    assert endpoint_of(handler, "http://s") == ""
    grpc = JobSpec("a", target=GRPC)
    assert (route_of("s", grpc), endpoint_of(grpc, "http://s")) == ("grpc", "grpcs://email-service:50051")
    plain = JobSpec("a", target=Target(grpc=GrpcTarget("[::1]:50051")))
    assert endpoint_of(plain, "") == "grpc://[::1]:50051"


def test_codes_that_never_retry_are_said_whole_and_may_be_said_to_be_none() -> None:
    declared = JobSpec("a", policies=Policies(retry=RetryPolicy(never_retry=("HTTP_4*",))))
    by_hand = JobOverrides(policies=Policies(retry=RetryPolicy(never_retry=())))
    assert in_force(declared, NO_OVERRIDES, "UTC").policies.retry.never_retry == ("HTTP_4*",)
    assert in_force(declared, by_hand, "UTC").policies.retry.never_retry == ()
    assert overridden_fields(declared, by_hand) == ["policies.retry.never_retry"]
    assert changed_fields(declared, JobSpec("a")) == ["policies.retry.never_retry"]


@pytest.mark.parametrize(
    "fields",
    [
        {"multiplier": 1.0, "max_delay": timedelta(0), "jitter": 0.0, "never_retry": ()},
        {"multiplier": 100.0, "max_delay": timedelta(days=7), "jitter": 1.0, "max_attempts": 100},
        {"delay": timedelta(minutes=10), "max_delay": timedelta(minutes=1)},
        {"never_retry": ("E", "E*", "HTTP_404", "HTTP_*", "A" * 63, "A" * 62 + "*")},
        {"never_retry": tuple(f"E_{n}" for n in range(50))},
    ],
    ids=["least", "most", "longest-below-first", "codes", "many-codes"],
)
def test_a_retry_policy_may_be_so(fields: dict[str, Any]) -> None:
    assert retry_problems(**fields) == []


@pytest.mark.parametrize(
    ("fields", "place", "says"),
    [
        ({"multiplier": 0.99}, "multiplier", "0.99 is not from 1 to 100; 2 doubles each delay"),
        ({"multiplier": 100.5}, "multiplier", "100.5 is not from 1 to 100"),
        ({"multiplier": float("nan")}, "multiplier", "nan is not from 1 to 100"),
        ({"multiplier": float("inf")}, "multiplier", "inf is not from 1 to 100"),
        ({"jitter": -0.1}, "jitter", "-0.1 is not from 0 to 1; 0.5 takes up to half of a delay off it"),
        ({"jitter": 1.5}, "jitter", "1.5 is not from 0 to 1"),
        ({"jitter": float("nan")}, "jitter", "nan is not from 0 to 1"),
        ({"max_delay": timedelta(seconds=-1)}, "max_delay", "-1 s is not from 0 s to 7 days"),
        ({"max_delay": timedelta(days=8)}, "max_delay", "8 days is not from 0 s to 7 days"),
        ({"never_retry": ("A", "http_404")}, "never_retry.codes[1]", "'http_404' is no code; write capitals"),
        ({"never_retry": ("",)}, "never_retry.codes[0]", "'' is no code"),
        ({"never_retry": ("HTTP_*4",)}, "never_retry.codes[0]", "'HTTP_*4' is no code"),
        ({"never_retry": ("HTTP_4**",)}, "never_retry.codes[0]", "'HTTP_4**' is no code"),
        ({"never_retry": ("E\n",)}, "never_retry.codes[0]", "is no code"),
        ({"never_retry": ("*",)}, "never_retry.codes[0]", "say that with max_attempts, 1"),
        ({"never_retry": ("A" * 64,)}, "never_retry.codes[0]", "it has 64 characters; at most 63"),
        ({"never_retry": ("E", "F", "E")}, "never_retry.codes[2]", "E stands at codes[0] already"),
        ({"never_retry": tuple(f"E_{n}" for n in range(51))}, "never_retry", "there are 51 codes; at most 50"),
    ],
    ids=[
        *("small-multiplier", "large-multiplier", "nan-multiplier", "infinite-multiplier"),
        *("negative-jitter", "large-jitter", "nan-jitter", "negative-longest", "long-longest"),
        *("small-letters", "empty", "star-inside", "two-stars", "newline", "star-alone", "long-code", "twice"),
        "too-many-codes",
    ],
)
def test_any_other_retry_policy_is_refused_with_what_to_write(fields: dict[str, Any], place: str, says: str) -> None:
    ((field, problem),) = retry_problems(**fields)
    assert field == f"it.retry.{place}"
    assert says in problem


@pytest.mark.parametrize(
    ("value", "places"),
    [
        ({"a": [1, {"b": float("nan")}], "c": float("-inf")}, ["it.a[1].b", "it.c"]),
        ({"a\0": 1, "b": ["\0"]}, ["it.a\\x00", "it.b[0]"]),
        ({"x": "y" * 256 * 1024}, ["it"]),
    ],
)
def test_json_that_cannot_be_stored_is_refused_by_its_path(value: Any, places: list[str]) -> None:
    assert [field for field, _ in problems(check_json, value)] == places


def test_json_may_be_nested_so_deep_and_no_deeper() -> None:
    value: Any = 1
    for _ in range(MAX_JSON_DEPTH):
        value = [value]
    assert problems(check_json, value) == []
    assert "nested deeper" in problems(check_json, [value])[0][1]


def test_json_of_exactly_256_kib_is_allowed() -> None:
    assert problems(check_json, {"x": "é" * ((256 * 1024 - len('{"x":""}')) // 2)}) == []
    assert problems(check_json, {"x": "é" * ((256 * 1024 - len('{"x":""}')) // 2 + 1)}) != []


@pytest.mark.parametrize("number", [1e308, -1.5e-300, 1e21])
def test_a_number_counts_as_many_bytes_as_the_database_writes(number: float) -> None:
    digits = len(format(Decimal(repr(number)), "f"))
    fits = MAX_JSON_BYTES // (digits + 1) - 1
    assert problems(check_json, [number] * fits) == []
    ((_, problem),) = problems(check_json, [number] * (fits + 2))
    assert "262,144 (256 KiB)" in problem


@pytest.mark.parametrize("url", ["http://a", "https://a.example:8443/x/y?z=%20", "http://[::1]:80/x"])
def test_absolute_urls_are_allowed(url: str) -> None:
    assert problems(check_url, url) == []
    assert problems(check_endpoint, url) == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "missing"),
        ("run", "no absolute"),
        ("ftp://a/x", "no absolute"),
        ("http:///x", "no absolute"),
        ("http://a:99999/x", "no URL"),
        ("http://user:pass@a/x", "user or password"),
        ("http://a/x#y", "fragment"),
        ("http://a/x y", "space"),
        ("http://a/\0", "control"),
        ("//evil/x", "no path"),
        ("/x\n", "no path"),
        ("http://a/" + "x" * 2048, "at most 2,048"),
        ("/" + "x" * 2048, "at most 2,048"),
    ],
)
def test_other_endpoints_are_refused_with_what_to_write(url: str, says: str) -> None:
    ((_, problem),) = problems(check_endpoint, url)
    assert says in problem


@pytest.mark.parametrize("address", ["email-service:50051", "10.0.0.7:1", "[::1]:65535", "a" * 249 + ":50051"])
def test_host_and_port_are_an_address(address: str) -> None:
    assert problems(check_address, address) == []


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("", "missing"),
        ("email-service", "not host:port"),
        ("email-service:", "not host:port"),
        (":50051", "not host:port"),
        ("email-service:0", "not host:port"),
        ("email-service:65536", "not host:port"),
        ("grpc://email-service:50051", "not host:port"),
        ("email-service:50051/x", "not host:port"),
        ("email service:50051", "not host:port"),
        ("email-service:50051\n", "not host:port"),
        ("::1:50051", "not host:port"),
        ("a" * 250 + ":50051", "at most 255"),
    ],
)
def test_other_addresses_are_refused_with_what_to_write(address: str, says: str) -> None:
    ((_, problem),) = problems(check_address, address)
    assert says in problem
