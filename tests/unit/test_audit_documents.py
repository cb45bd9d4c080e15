"""What the audit trail keeps of a change is small, however large what was changed is, and tells two apart."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from scheduler_service.domain.audit import LARGE, Change, job_document, made, payload_document, removed, updated
from scheduler_service.domain.fields import MAX_LABEL_LENGTH, MAX_LABELS, MAX_URL_LENGTH, compact_json
from scheduler_service.domain.job import HttpTarget, JobOverrides, JobSpec, Target, TimingSpec
from scheduler_service.domain.job_rules import MAX_DESCRIPTION, MAX_DISPLAY_NAME

WIDE = "\N{GRINNING FACE}"
"""Four bytes."""


def stored(change: Change) -> int:
    """The bytes of both documents, about as PostgreSQL writes them."""
    return sum(len(json.dumps(document, ensure_ascii=False).encode()) for document in (change.before, change.after))


def config_of(size: int) -> dict[str, str]:
    """So many bytes as compact JSON."""
    return {"noise": "x" * (size - len('{"noise":""}'))}


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":"), sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("name", ["config", "labels"])
def test_up_to_4_kib_are_kept_as_they_are(name: str) -> None:
    small, large = config_of(LARGE), config_of(LARGE + 1)
    assert made("x", {name: small}).after == {name: small}
    summary = {"bytes": LARGE + 1, "keys": ["noise"], "sha256": digest(large)}
    assert made("x", {name: large}).after == {f"large_{name}": summary}
    assert removed("x", {"spec": {name: large}}).before == {"spec": {f"large_{name}": summary}}


def test_a_large_config_that_changes_shows_that_it_did() -> None:
    before, after = ({"a": "x" * 200_000, "limit": limit} for limit in (1, 2))
    change = updated("x", {"config": before, "enabled": True}, {"config": after, "enabled": True})
    assert change.before == {"large_config": {"sha256": digest(before)}}
    assert change.after == {"large_config": {"sha256": digest(after)}}
    assert updated("x", {"config": before}, {"config": dict(before)}) == Change("x", {}, {})
    change = updated("x", {"config": {"limit": 1}}, {"config": before})
    assert change.before == {"config": {"limit": 1}}
    assert set(change.after or {}) == {"large_config"}


def test_what_lies_in_a_config_is_its_owners() -> None:
    """No name in it means anything to us."""
    config = {"config": {"labels": {"a": "b"}}, "large_config": {"bytes": 1}}
    assert made("x", {"config": config}).after == {"config": config}


def test_the_keys_of_what_is_large_are_bounded() -> None:
    many = {f"{number:06}{WIDE * 200}": number for number in range(2_000)}
    for summary in (payload_document(many), (made("x", {"config": many}).after or {})["large_config"]):
        assert summary["bytes"] == len(compact_json(many).encode())
        assert summary["keys"][0] == f"000000{WIDE * 94}"
        assert len(compact_json(summary).encode()) < 2_500
    assert payload_document({f"{number:03}": 0 for number in range(500)})["keys"][-1] == "099"


def test_the_largest_change_of_a_job_stays_below_64_kib() -> None:
    documents = []
    for letter in "ab":
        labels = {f"{letter}{number:062}": WIDE * MAX_LABEL_LENGTH for number in range(MAX_LABELS)}
        config = {f"{letter}{number}": number for number in range(20_000)}
        timing = TimingSpec(cron=f"0 5 * * {','.join(str(day) for day in range(7))}", time_zone="UTC")
        url = f"https://{letter}/" + "u" * (MAX_URL_LENGTH - 10)
        declared = JobSpec(
            "weekly-digest",
            display_name=WIDE * MAX_DISPLAY_NAME,
            description=letter + WIDE * (MAX_DESCRIPTION - 1),
            target=Target(http=HttpTarget(url)),
            timing=timing,
            config=config,
            labels=labels,
        )
        documents.append(job_document(declared, JobOverrides(timing=timing, config=config), url))
    assert stored(updated("x", *documents)) < 64 * 1024
