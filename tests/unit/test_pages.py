"""Page tokens are good for the next page of their own list, and for nothing else."""

from __future__ import annotations

import base64
from uuid import UUID

import pytest

from scheduler_service.domain.errors import InvalidInput
from scheduler_service.store.pages import Pages, page_size

PAGES = Pages("jobs", {"caller": "admin:alice", "of": ["email-service", {}]})


def test_a_token_gives_back_the_position_it_was_made_of() -> None:
    token = PAGES.token(["email-service", "weekly-digest"])
    assert PAGES.position(token, str, str) == ["email-service", "weekly-digest"]


def test_no_token_is_the_first_page() -> None:
    assert PAGES.position("", str, str) is None


@pytest.mark.parametrize(
    "other",
    [
        Pages("schedules", PAGES.filters),
        Pages("jobs", {**PAGES.filters, "caller": "admin:bob"}),
        Pages("jobs", {**PAGES.filters, "of": ["kpi-service", {}]}),
    ],
)
def test_a_token_of_another_list_filter_or_caller_is_refused(other: Pages) -> None:
    with pytest.raises(InvalidInput, match="no token of this list"):
        PAGES.position(other.token(["a", "b"]), str, str)


def test_a_token_that_was_changed_anywhere_is_refused() -> None:
    token = PAGES.token(["email-service", "weekly-digest"])
    for place in range(len(token)):
        mangled = token[:place] + ("A" if token[place] != "A" else "Q") + token[place + 1 :]
        if mangled.rstrip("A") == token.rstrip("A"):
            continue
        try:
            position = PAGES.position(mangled, str, str)
        except InvalidInput:
            continue
        # Only unused bits of the last character may differ without meaning anything.
        assert place == len(token) - 1
        assert position == ["email-service", "weekly-digest"]


@pytest.mark.parametrize("token", ["x", "not base64!", "é", "A" * 5000, "====", "QUJD"])
def test_anything_else_is_refused(token: str) -> None:
    with pytest.raises(InvalidInput):
        PAGES.position(token, str, str)


def forged(body: bytes) -> str:
    """A token whose digest is right, as anybody could make it who read the source."""
    body = bytes([1]) + body
    return base64.urlsafe_b64encode(PAGES._digest(body) + body).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "body",
    [
        *(b"5", b"null", b"{", b"", b'"ab"', b'{"a":1,"b":2}', b"\xff\xfe", b"[" * 2900, b"[" + b"9" * 2900 + b"]"),
        *(b'["a"]', b'["a","b","c"]', b'["a",{}]', b'["a",[]]', b'["a",null]', b'["a",1]', b'["a",true]'),
        *(b'["a","\\u0000"]', b'["a","\\ud800"]'),
    ],
    ids=lambda body: ascii(body[:20]),
)
def test_a_forged_position_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput, match="no token of this list"):
        PAGES.position(forged(body), str, str)


def test_values_are_of_the_kinds_that_the_list_is_ordered_by() -> None:
    run_id = UUID(int=7)
    assert PAGES.position(PAGES.token([str(run_id)]), UUID) == [run_id]
    assert PAGES.position(PAGES.token([3, "key"]), int, str) == [3, "key"]
    for token, kind in ((b'["x"]', UUID), (b"[true]", int), (b"[1.0]", int), (b"[%d]" % 2**63, int), (b'["1"]', int)):
        with pytest.raises(InvalidInput):
            PAGES.position(forged(token), kind)


def test_page_sizes_have_a_default_and_a_bound() -> None:
    assert [page_size(0), page_size(7), page_size(5000)] == [50, 7, 1000]
    with pytest.raises(InvalidInput):
        page_size(-1)
