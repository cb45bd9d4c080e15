"""Calls by the worker service are told from others: `Jobs.verify`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from carillon import Jobs, SignatureInvalid, SigningKeysMissing
from carillon.signing import SigningKeys
from carillon.verification import TOLERANCE_SECONDS, verify

from tests.signed import KEY, signed

OTHER = "whsec_" + "b3RoZXIga2V5IG9mIHR3ZW50eS1mb3VyIGJ5dGVzIQ=="
RUN = {"run": "r-1", "service": "email-service", "job": "weekly-digest", "payload": {"name": "Zoë"}}
BODY = json.dumps(RUN, ensure_ascii=False).encode()
NOW = 1_800_000_000
KEYS = SigningKeys([KEY])


def jobs(*keys: str) -> Jobs:
    return Jobs("email-service", signing_keys=list(keys) or [KEY])


def at(timestamp: int = NOW, message: str = "r-1", body: bytes = BODY) -> dict[str, str]:
    return {**KEYS.headers(message, timestamp, body), "Idempotency-Key": message}


def refusal(headers: Mapping[str, str], body: bytes = BODY, now: float = NOW) -> str:
    with pytest.raises(SignatureInvalid) as caught:
        verify(KEYS, headers, body, now, service="email-service", job="weekly-digest")
    return str(caught.value)


def test_the_signature_is_the_one_of_the_specifications_example() -> None:
    """The message, key and signature with which libraries of the specification are tested."""
    headers = KEYS.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_signed_call_passes_whatever_the_case_of_its_headers() -> None:
    headers = {"Content-Type": "application/json", **signed(BODY)}
    jobs().verify(headers, BODY)
    jobs().verify({name.upper(): value for name, value in headers.items()}, BODY)
    jobs().verify({name.title(): value for name, value in headers.items()}, BODY)


@pytest.mark.parametrize(
    ("own", "theirs"), [([KEY], [OTHER, KEY]), ([OTHER, KEY], [KEY]), ([OTHER, KEY], [KEY, OTHER])]
)
def test_while_keys_change_either_of_two_will_do(own: Sequence[str], theirs: Sequence[str]) -> None:
    jobs(*own).verify(signed(BODY, *theirs), BODY)


@pytest.mark.parametrize(
    "change", [b"", BODY + b" ", BODY.replace(b"r-1", b"r-2"), json.dumps(json.loads(BODY)).encode()]
)
def test_a_changed_body_is_refused(change: bytes) -> None:
    assert refusal(at(), change).startswith("the signature is wrong")


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature", "Idempotency-Key"])
def test_a_missing_or_changed_header_is_refused(name: str) -> None:
    headers = at()
    assert refusal({key: value for key, value in headers.items() if key != name}) == (
        f"the call is not signed: {name.lower()} is missing"
    )
    for place in range(len(headers[name])):
        other = "0" if headers[name][place] != "0" else "1"
        refusal({**headers, name: headers[name][:place] + other + headers[name][place + 1 :]})


def test_no_header_at_all_is_a_sentence() -> None:
    assert refusal({}) == (
        "the call is not signed: webhook-id, webhook-timestamp, webhook-signature and idempotency-key are missing"
    )


@pytest.mark.parametrize(
    "signature",
    ["", "v1", "v1,", "v2,{}", "v1a,{}", "{}", "v1:{}", "v1,{}=", "V1,{}", "v1,\udcff", "v1," + "x" * 10_000, "v1,,{}"],
)
def test_what_is_no_signature_of_this_version_is_refused(signature: str) -> None:
    right = at()["webhook-signature"].removeprefix("v1,")
    assert refusal({**at(), "webhook-signature": signature.format(right)}).startswith("the signature is wrong")


def test_a_key_that_this_service_has_not_is_refused() -> None:
    with pytest.raises(SignatureInvalid, match=r"^the signature is wrong: another key signed the call"):
        jobs(KEY).verify(signed(BODY, OTHER), BODY)


@pytest.mark.parametrize("age", [-TOLERANCE_SECONDS, 0, 0.9, TOLERANCE_SECONDS])
def test_clocks_may_differ_by_five_minutes(age: float) -> None:
    verify(KEYS, at(), BODY, NOW + age, service="email-service")


def test_an_older_or_newer_call_is_refused_and_says_how_old() -> None:
    assert refusal(at(), now=NOW + 301) == (
        "the call was signed 301 s ago, at most 300 s are accepted: it is a repetition, or the clocks of the worker "
        "service and this service differ"
    )
    assert refusal(at(), now=NOW - 301).startswith("the call was signed 301 s in the future")
    with pytest.raises(SignatureInvalid, match="s ago"):
        jobs().verify(signed(BODY, age=400), BODY)


@pytest.mark.parametrize("timestamp", ["", "-1", "1e9", "1800000000.0", " 1800000000", "\u0661", "9" * 30, "nan"])
def test_a_timestamp_that_is_none_is_refused(timestamp: str) -> None:
    refusal({**at(), "webhook-timestamp": timestamp})


def test_only_a_call_that_was_signed_is_told_about_clocks() -> None:
    assert refusal({**at(), "webhook-timestamp": str(NOW + 1)}, now=NOW + 900).startswith("the signature is wrong")


def test_the_idempotency_key_is_the_one_that_was_signed() -> None:
    assert refusal({**at(), "Idempotency-Key": "r-2"}) == (
        "the header Idempotency-Key is not what was signed: it differs from webhook-id"
    )


def called(run: object, message: str = "r-1", **meant: str) -> None:
    body = json.dumps(run).encode()
    verify(KEYS, at(message=message, body=body), body, NOW, service="email-service", **meant)


def test_a_call_that_is_meant_for_another_is_refused_though_its_key_is_right() -> None:
    called(RUN)
    called(RUN, job="weekly-digest")
    for run, sentence in (
        ({**RUN, "job": "welcome-mail"}, "the call is for another job than weekly-digest"),
        ({**RUN, "service": "kpi-service"}, "the call is for a job of another service than email-service"),
        ({**RUN, "run": "r-2"}, "the signed body is of another run than webhook-id"),
        ({}, "the signed body is of another run than webhook-id"),
        ([RUN], "the body is signed, but is no run as the worker service posts it"),
    ):
        with pytest.raises(SignatureInvalid, match=f"^{sentence}$"):
            called(run, job="weekly-digest")


class Pairs:
    """Headers of which one may come twice, as frameworks have them."""

    def __init__(self, *pairs: tuple[str, str]) -> None:
        self._pairs = pairs

    def items(self) -> Sequence[tuple[str, str]]:
        return self._pairs


def test_a_header_that_comes_twice_is_refused() -> None:
    with pytest.raises(SignatureInvalid, match="the header webhook-timestamp comes twice"):
        verify(KEYS, Pairs(*at().items(), ("Webhook-Timestamp", str(NOW + 1))), BODY, NOW, service="email-service")


def test_text_is_no_body() -> None:
    with pytest.raises(TypeError, match="body must be the bytes as they were received, not str"):
        jobs().verify(signed(BODY), BODY.decode())  # type: ignore[arg-type]  # what this is about


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("CARILLON_SIGNING_KEYS", raising=False)
    monkeypatch.delenv("CARILLON_SIGNING_KEYS_FILE", raising=False)
    return monkeypatch


def test_a_service_without_keys_passes_nothing_and_is_told_what_to_set(environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(SigningKeysMissing, match=r"set CARILLON_SIGNING_KEYS \(or CARILLON_SIGNING_KEYS_FILE\)"):
        Jobs("email-service").verify(signed(BODY), BODY)


def test_keys_come_from_the_environment_or_a_file(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"{OTHER}\n{KEY}\n")
    environment.setenv("CARILLON_SIGNING_KEYS_FILE", str(tmp_path / "keys"))
    Jobs("email-service").verify(signed(BODY), BODY)
    environment.setenv("CARILLON_SIGNING_KEYS", OTHER)
    with pytest.raises(SignatureInvalid):
        Jobs("email-service").verify(signed(BODY), BODY)
    environment.setenv("CARILLON_SIGNING_KEYS", f"{OTHER}, {KEY},")
    Jobs("email-service").verify(signed(BODY), BODY)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], "a signing key is malformed"),
        (["whsec_not base64"], "a signing key is malformed"),
        (["whsec_AAAAA"], "a signing key is malformed"),
        (["whsec_" + "A" * 28], "a signing key has 21 bytes: a key is whsec_ and base64 of 24 to 64 random bytes"),
        (["whsec_" + "A" * 88], "a signing key has 66 bytes"),
        ([f"email-service={KEY}"], r"is the service's own: write whsec_\.\.\., without the service"),
        (["whsec_" + "A" * 43 + "="], "a signing key is all zeros: a key is whsec_ and base64 of 24 to 64 random"),
        ([KEY, KEY], "a service's two signing keys are the same"),
        ([], "a service has one signing key, or two while one takes the other's place, not 0"),
        ([KEY, KEY, OTHER], "a service has one signing key, or two while one takes the other's place, not 3"),
    ],
)
def test_wrong_keys_are_a_sentence_that_repeats_none(
    environment: pytest.MonkeyPatch, keys: Sequence[str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^signing_keys:? {sentence}") as caught:
        Jobs("email-service", signing_keys=keys)
    assert not any(key in str(caught.value) for key in keys)
    if keys:
        environment.setenv("CARILLON_SIGNING_KEYS", ",".join(keys))
        with pytest.raises(ValueError, match=f"^CARILLON_SIGNING_KEYS:? {sentence}"):
            Jobs("email-service")


def test_a_single_text_is_no_list() -> None:
    with pytest.raises(TypeError, match="signing_keys must be a list"):
        Jobs("email-service", signing_keys=KEY)


def test_keys_are_not_shown() -> None:
    service = jobs(KEY)
    assert KEY.removeprefix("whsec_") not in f"{service!r} {vars(service)!r} {KEYS!r}"
