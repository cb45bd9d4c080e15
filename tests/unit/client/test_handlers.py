"""What handlers may take, and how payloads become it."""

from __future__ import annotations

import enum
import json
import pickle
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from typing import Any, Literal, TypedDict

import pydantic
import pytest
from carillon import Failed, Jobs, Run
from carillon.payload import payload_decoder
from typing_extensions import NotRequired


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@dataclass
class Brand:
    name: str
    budget: float = 0.0
    parent: Brand | None = None


@dataclass
class Sync:
    brands: list[Brand]
    day: date
    since: datetime | None = None
    size: Size = Size.SMALL
    mode: Literal["full", "delta"] = "delta"
    limit: int | str = 10
    extra: dict[str, Any] = field(default_factory=dict)


class Filter(TypedDict):
    tenant: str
    limit: NotRequired[int]


class Model(pydantic.BaseModel):
    count: int


def decode(annotation: Any, value: object) -> Any:
    return payload_decoder(annotation, {})(json.dumps(value))


def test_a_dataclass_is_decoded_with_all_that_is_in_it() -> None:
    decoded = decode(
        Sync,
        {
            "brands": [{"name": "acme", "budget": 5, "parent": {"name": "holding"}}],
            "day": "2026-11-01",
            "since": "2026-11-01T09:00:00Z",
            "size": "large",
            "mode": "full",
            "limit": 3.0,
            "extra": {"a": [1]},
        },
    )
    assert decoded == Sync(
        brands=[Brand("acme", 5.0, Brand("holding"))],
        day=date(2026, 11, 1),
        since=datetime(2026, 11, 1, 9, tzinfo=timezone.utc),
        size=Size.LARGE,
        mode="full",
        limit=3,
        extra={"a": [1]},
    )
    assert type(decoded.limit) is int


def test_a_typed_dict_a_dict_and_a_model_are_decoded() -> None:
    assert decode(Filter, {"tenant": "a"}) == {"tenant": "a"}
    assert decode(dict[str, Any], {"a": {"b": None}}) == {"a": {"b": None}}
    assert decode(Mapping[str, int], {"a": 1.0}) == {"a": 1}
    assert decode(Model, {"count": 3}) == Model(count=3)


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        (Brand, {"nam": "x"}, "payload has the unknown key 'nam'; allowed are: name, budget, parent"),
        (Brand, {}, "payload.name is required"),
        (Brand, {"name": 5}, "payload.name must be a string, not 5"),
        (Brand, {"name": "x", "parent": {"name": None}}, "payload.parent.name must be a string, not null"),
        (Sync, {"brands": [{"name": "a"}, 7], "day": "2026-11-01"}, "payload.brands[1] must be an object, not 7"),
        (Sync, {"brands": [], "day": "soon"}, "payload.day must be a date such as '2026-11-01', not \"soon\""),
        (Sync, {"brands": [], "day": "2026-11-01", "size": "xl"}, "payload.size must be one of 'small', 'large'"),
        (Sync, {"brands": [], "day": "2026-11-01", "limit": None}, "payload.limit must be int or str, not null"),
        (Filter, {}, "payload.tenant is required"),
        (Filter, {"tenant": "a", "limit": 1.5}, "payload.limit must be a whole number, not 1.5"),
        (Filter, {"tenant": "a", "limit": True}, "payload.limit must be a whole number, not true"),
        (Model, {"count": "many"}, "count"),
        (dict[str, Any], [], "payload must be an object, not []"),
    ],
)
def test_a_payload_that_does_not_fit_fails_the_run_by_name(annotation: Any, value: object, says: str) -> None:
    with pytest.raises(Failed) as raised:
        decode(annotation, value)
    assert raised.value.code == "BAD_PAYLOAD"
    assert says in raised.value.message


def test_a_type_that_is_declared_inside_a_function_is_found() -> None:
    @dataclass
    class Local:
        number: int

    jobs = Jobs("kpi-service")

    @jobs.handler("sync")
    def sync(payload: Local, run: Run) -> None: ...

    handler = jobs.handlers["sync"]
    assert (handler.payload_parameter, handler.run_parameter, handler.is_async) == ("payload", "run", False)
    assert handler.decode is not None
    assert handler.decode('{"number": 1}') == Local(1)


def unannotated(payload) -> None: ...  # type: ignore[no-untyped-def]
def two_payloads(one: Brand, other: Sync) -> None: ...
def two_runs(one: Run, other: Run) -> None: ...
def many(*runs: Run) -> None: ...
def keywords(**runs: Run) -> None: ...
def positional(run: Run, /) -> None: ...
def a_number(payload: int) -> None: ...
def a_set(payload: dict[str, set[int]]) -> None: ...
def numbered(payload: dict[int, str]) -> None: ...
def unknown(payload: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
async def generator(run: Run) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (unannotated, "parameter 'payload' has no annotation; annotate it with carillon.Run"),
        (two_payloads, "'one' and 'other' would both be the payload"),
        (two_runs, "'one' and 'other' are both Run"),
        (many, "*runs: 'Run' is not possible"),
        (keywords, "**runs: 'Run' is not possible"),
        (positional, "'run' must not be positional-only"),
        (a_number, "a payload must be a dataclass, a TypedDict, a dict[str, ...] or a pydantic model, not int"),
        (a_set, "payload[] is annotated as set[int], which JSON has no counterpart for"),
        (numbered, "a dict with keys of int"),
        (unknown, "name 'Nowhere' is not defined"),
        (generator, "a handler returns, it does not yield"),
    ],
)
def test_a_handler_that_cannot_be_called_is_refused_where_it_is_declared(function: Any, says: str) -> None:
    jobs = Jobs("kpi-service")
    with pytest.raises(TypeError) as raised:
        jobs.handler("sync")(function)
    assert says in str(raised.value)
    assert "handler 'sync'" in str(raised.value)
    assert not jobs.manifest().jobs


def test_the_decorated_function_stays_what_it_was() -> None:
    jobs = Jobs("kpi-service")

    @jobs.handler("sync")
    def sync() -> dict[str, int]:
        return {"rows": 3}

    assert sync() == {"rows": 3}


def test_a_code_of_a_failure_is_a_word() -> None:
    assert str(Failed("EXPORT_EMPTY", "nothing")) == "EXPORT_EMPTY: nothing"
    with pytest.raises(ValueError, match=r"Failed\(code, message\)"):
        Failed("it broke", "badly")


def test_a_failure_says_what_is_to_follow() -> None:
    assert (Failed("A", "b").retry, Failed("A", "b").retry_after) == (True, None)
    final = Failed("BAD_INPUT", "no such brand", retry=False)
    assert (final.retry, final.retry_after) == (False, None)
    assert Failed("BUSY", "later", retry_after=0).retry_after == 0
    assert Failed("BUSY", "later", retry_after=timedelta(seconds=90.5)).retry_after == 90.5
    assert Failed("BUSY", "later", retry_after=8 * 86_400).retry_after == 7 * 86_400
    assert Failed("BUSY", "later", retry_after=1e300).retry_after == 7 * 86_400
    assert Failed("BUSY", "later", retry_after=timedelta.max).retry_after == 7 * 86_400
    copied = pickle.loads(pickle.dumps(Failed("BUSY", "later", "why", retry_after=3)))
    assert (copied.code, copied.detail, copied.retry_after) == ("BUSY", "why", 3)


@pytest.mark.parametrize(
    ("wish", "error", "says"),
    [
        ({"retry": False, "retry_after": 30}, ValueError, "says two things"),
        ({"retry": 3}, TypeError, "must be True or False, not 3"),
        ({"retry_after": -1}, ValueError, "must be a number of seconds from 0 on, not -1"),
        ({"retry_after": timedelta(seconds=-1)}, ValueError, "must be a number of seconds from 0 on, not -1.0"),
        ({"retry_after": float("nan")}, ValueError, "must be a number of seconds from 0 on, not nan"),
        ({"retry_after": float("inf")}, ValueError, "must be a number of seconds from 0 on, not inf"),
        ({"retry_after": "30"}, TypeError, "must be seconds or a timedelta, not str"),
        ({"retry_after": True}, TypeError, "must be seconds or a timedelta, not bool"),
    ],
)
def test_a_wish_that_cannot_be_is_a_sentence(wish: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error) as raised:
        Failed("BUSY", "later", **wish)
    assert says in str(raised.value)
    assert "retry" in str(raised.value)


def test_uuids_and_tuples_are_decoded() -> None:
    @dataclass
    class Ids:
        ids: tuple[uuid.UUID, ...]

    known = uuid.uuid4()
    decoded = payload_decoder(Ids, {})(json.dumps({"ids": [str(known)]}))
    assert decoded == Ids((known,))
