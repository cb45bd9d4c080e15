"""What a declaration says, and how a wrong one is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from carillon import Jobs, Run
from carillon.overrides import overrides_and_mask
from carillon.v1 import job_pb2


def test_options_become_the_declared_job() -> None:
    jobs = Jobs("email-service", base_url="http://email-service:8080", generation=7)
    jobs.endpoint(
        "weekly-digest",
        "/api/jobs/weekly-digest",
        cron="0 9 * * 1",
        time_zone="America/New_York",
        display_name="Weekly digest",
        labels={"job_type": "digest"},
        config={"lists": ["a", "b"], "limit": 5},
        timeout=90,
        run_timeout=timedelta(hours=2),
        retries=4,
        retry_delay=0.5,
        retry_multiplier=2,
        max_retry_delay=timedelta(hours=1),
        retry_jitter=0.25,
        never_retry=["HTTP_404", "EXPORT_*"],
        overlap="allow_all",
        gap="skip",
        repeat="both",
        jitter=30,
        cancel_grace=0,
        catch_up="all",
        catch_up_window=timedelta(hours=6),
        tenant_schedules=True,
    )
    manifest = jobs.manifest()
    assert (manifest.service, manifest.generation, manifest.base_url) == (
        "email-service",
        7,
        "http://email-service:8080",
    )
    [spec] = manifest.jobs
    assert spec.target.http.endpoint == "/api/jobs/weekly-digest"
    assert (spec.timing.cron, spec.timing.time_zone) == ("0 9 * * 1", "America/New_York")
    assert spec.timing.gap == job_pb2.GAP_POLICY_SKIP
    assert spec.timing.repeat == job_pb2.REPEAT_POLICY_BOTH
    assert spec.timing.jitter.seconds == 30
    assert spec.policies.attempt_timeout.seconds == 90
    assert spec.policies.run_timeout.seconds == 7_200
    assert spec.policies.retry.max_attempts == 5
    assert spec.policies.retry.delay.nanos == 500_000_000
    assert (spec.policies.retry.multiplier, spec.policies.retry.jitter) == (2, 0.25)
    assert spec.policies.retry.max_delay.seconds == 3_600
    assert list(spec.policies.retry.never_retry.codes) == ["HTTP_404", "EXPORT_*"]
    assert spec.policies.overlap == job_pb2.OVERLAP_ALLOW_ALL
    assert spec.policies.HasField("cancel_grace")
    assert spec.policies.catch_up == job_pb2.CATCH_UP_ALL
    assert spec.policies.catch_up_window.seconds == 6 * 3_600
    assert dict(spec.labels) == {"job_type": "digest"}
    assert spec.tenant_schedules


def test_grpc_targets_are_declared_with_their_address() -> None:
    jobs = Jobs("email-service")
    jobs.grpc_endpoint("ping", "mail.example:443", tls=True, cron="@daily")

    @jobs.grpc_handler("digest", address="email-service:50051")
    async def digest(run: Run) -> None: ...

    ping, spec = jobs.manifest().jobs
    assert (ping.target.grpc.address, ping.target.grpc.tls, ping.timing.cron) == ("mail.example:443", True, "@daily")
    assert (spec.target.grpc.address, spec.target.grpc.tls) == ("email-service:50051", False)
    assert list(jobs.grpc_handlers) == ["digest"]
    assert list(jobs.handlers) == []


@pytest.mark.parametrize("address", ["", "email-service", "grpc://a:1", "a:0", "a:65536", "a" * 250 + ":50051"])
def test_an_address_that_is_not_host_and_port_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="job 'ping': the address must be host:port"):
        Jobs("email-service").grpc_endpoint("ping", address)


def test_every_overlap_and_catch_up_of_the_protos_can_be_declared() -> None:
    for kind, prefix, option in (
        (job_pb2.Overlap, "OVERLAP_", "overlap"),
        (job_pb2.CatchUp, "CATCH_UP_", "catch_up"),
    ):
        for name, number in kind.items()[1:]:
            options: dict[str, Any] = {option: name.removeprefix(prefix).lower()}
            jobs = Jobs("email-service")
            jobs.endpoint("ping", "http://elsewhere/ping", **options)
            assert getattr(jobs.manifest().jobs[0].policies, option) == number


def test_what_is_not_said_is_left_to_the_scheduler() -> None:
    jobs = Jobs("email-service")
    jobs.endpoint("ping", "http://elsewhere/ping")
    [spec] = jobs.manifest().jobs
    assert not spec.timing.HasField("cron")
    assert not spec.policies.HasField("overlap")
    assert not spec.policies.HasField("catch_up")
    assert not spec.policies.HasField("catch_up_window")
    assert not spec.policies.HasField("attempt_timeout")
    assert not spec.policies.HasField("retry")


def test_codes_and_numbers_of_retries_that_are_none_differ_from_unsaid_ones() -> None:
    jobs = Jobs("email-service")
    jobs.endpoint("ping", "http://elsewhere/ping", never_retry=(), retry_jitter=0, max_retry_delay=0)
    retry = jobs.manifest().jobs[0].policies.retry
    assert [retry.HasField(name) for name in ("never_retry", "jitter", "max_delay", "multiplier", "delay")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_operators_may_change_all_of_the_retry_policy() -> None:
    overrides, mask = overrides_and_mask(
        {
            "retries": 4,
            "retry_delay": 5,
            "retry_multiplier": 1.5,
            "max_retry_delay": 60,
            "retry_jitter": 1,
            "never_retry": ["GRPC_NOT_FOUND"],
        }
    )
    names = [field.name for field in job_pb2.RetryPolicy.DESCRIPTOR.fields]
    assert sorted(mask.paths) == sorted(f"policies.retry.{name}" for name in names)
    retry = overrides.policies.retry
    assert (retry.multiplier, retry.max_delay.seconds, retry.jitter) == (1.5, 60, 1)
    assert list(retry.never_retry.codes) == ["GRPC_NOT_FOUND"]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"retires": 3}, TypeError, "unknown option 'retires'; did you mean 'retries'?"),
        ({"retries": -1}, ValueError, "retries must be a whole number from 0 to 99, not -1"),
        ({"retries": True}, ValueError, "retries must be a whole number"),
        ({"retry_multiplier": 0.5}, ValueError, "retry_multiplier must be from 1 to 100, not 0.5"),
        ({"retry_multiplier": float("nan")}, ValueError, "retry_multiplier must be from 1 to 100, not nan"),
        ({"retry_multiplier": True}, TypeError, "retry_multiplier must be a number, not bool"),
        ({"retry_jitter": 1.5}, ValueError, "retry_jitter must be from 0 to 1, not 1.5"),
        ({"retry_jitter": "0.5"}, TypeError, "retry_jitter must be a number, not str"),
        ({"max_retry_delay": 8 * 86_400}, ValueError, "max_retry_delay must be from 0 s to 7 days"),
        ({"max_retry_delay": -1}, ValueError, "max_retry_delay must be a number of seconds from 0 on, not -1"),
        ({"timeout": 1e300}, ValueError, "timeout must be at most 315576000000 seconds, which is 10,000 years"),
        ({"phase": timedelta.max}, ValueError, "phase must be at most 315576000000 seconds, which is 10,000 years"),
        ({"retry_delay": 10**400}, ValueError, "retry_delay must be at most 315576000000 seconds"),
        ({"never_retry": "HTTP_404"}, TypeError, "never_retry must be a list of codes, such as ['HTTP_404'], not str"),
        ({"never_retry": ["http_404"]}, ValueError, "never_retry: 'http_404' must be capitals, digits and underscores"),
        ({"never_retry": [404]}, ValueError, "never_retry: 404 must be capitals"),
        ({"never_retry": ["*"]}, ValueError, "never_retry: '*' must be"),
        ({"never_retry": ["A*B"]}, ValueError, "never_retry: 'A*B' must be"),
        ({"never_retry": ["A" * 63 + "*"]}, ValueError, "at most 63 characters"),
        ({"never_retry": ["A", "B", "A"]}, ValueError, "never_retry names 'A' twice"),
        ({"never_retry": [f"A{n}" for n in range(51)]}, ValueError, "never_retry has 51 codes; at most 50 are allowed"),
        ({"timeout": 0}, ValueError, "timeout must be from 1 s to 7 days, not 0 s"),
        ({"timeout": "90"}, TypeError, "timeout must be seconds or a timedelta, not str"),
        ({"timeout": float("nan")}, ValueError, "timeout must be a number of seconds"),
        (
            {"overlap": "SKIP"},
            ValueError,
            "overlap must be 'skip', 'buffer_one', 'buffer_all', 'cancel_other' or 'allow_all', not 'SKIP'",
        ),
        ({"gap": "both"}, ValueError, "gap must be 'shift' or 'skip', not 'both'"),
        ({"catch_up": "newest"}, ValueError, "catch_up must be 'none', 'latest' or 'all', not 'newest'"),
        ({"catch_up_window": 31 * 86_400}, ValueError, "catch_up_window must be from 0 s to 30 days"),
        ({"cron": 5}, TypeError, "cron must be a string, not int"),
        ({"labels": {"a b": "c"}}, ValueError, "label 'a b'"),
        ({"config": {"a": [1, {"b": 2**53 + 1}]}}, ValueError, "config.a[1].b is 9007199254740993, beyond 2**53"),
        ({"config": {"a": float("inf")}}, ValueError, "config.a is inf, which JSON does not have"),
        ({"config": {"a": "x\0y"}}, ValueError, "config.a contains a NUL character"),
        ({"config": {"a": b"x"}}, TypeError, "config.a is a bytes, which JSON cannot carry"),
        ({"config": {1: 2}}, TypeError, "config has the key 1; keys must be strings"),
        ({"config": {"a": "x" * 300_000}}, ValueError, "at most 262,144 are allowed"),
    ],
)
def test_a_wrong_option_is_a_sentence(options: dict[str, Any], error: type[Exception], says: str) -> None:
    jobs = Jobs("email-service")
    with pytest.raises(error) as raised:
        jobs.endpoint("digest", "http://x/y", **options)
    assert says in str(raised.value)
    assert "job 'digest'" in str(raised.value)
    assert not jobs.manifest().jobs


@pytest.mark.parametrize("name", ["", "Digest", "-x", "a" * 64, "a/b", "ü"])
def test_names_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a job's name"):
        Jobs("email-service").endpoint(name, "http://x/y")
    with pytest.raises(ValueError, match="cannot be a service's name"):
        Jobs(name)


def test_a_relative_endpoint_needs_a_base_url() -> None:
    with pytest.raises(ValueError, match="base_url='http://my-service:8080'"):
        Jobs("email-service").endpoint("digest", "/digest")


@pytest.mark.parametrize("token", ["id.sec\nret", "id.sécret", "id sec"])
def test_a_malformed_token_is_refused_without_telling_it(token: str) -> None:
    with pytest.raises(ValueError, match="no token has") as raised:
        Jobs("email-service", token=token)
    assert "sec" not in str(raised.value)


def test_the_line_end_of_a_token_file_is_left_out() -> None:
    assert Jobs("email-service", token="id.secret\n").connection.metadata() == (("x-service-token", "id.secret"),)


def test_a_job_is_declared_once() -> None:
    jobs = Jobs("email-service")
    jobs.endpoint("digest", "http://x/y")
    with pytest.raises(ValueError, match="'digest' is declared twice"):

        @jobs.handler("digest")
        def digest(run: Run) -> None: ...

    assert not jobs.handlers


def test_the_environment_fills_in_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARILLON_TARGET", "scheduler:7007")
    monkeypatch.setenv("CARILLON_PLAINTEXT", "true")  # the name is no loopback
    monkeypatch.setenv("CARILLON_SERVICE_TOKEN", "id.very-secret")
    monkeypatch.setenv("CARILLON_GENERATION", "12")
    jobs = Jobs("email-service")
    assert jobs.connection.target == "scheduler:7007"
    assert jobs.connection.metadata() == (("x-service-token", "id.very-secret"),)
    assert jobs.manifest().generation == 12
    assert "very-secret" not in repr(jobs) + repr(jobs.connection)
    monkeypatch.setenv("CARILLON_GENERATION", "twelve")
    with pytest.raises(ValueError, match="CARILLON_GENERATION must be a whole number, not 'twelve'"):
        Jobs("email-service")
