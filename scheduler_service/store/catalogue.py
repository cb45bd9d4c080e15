"""What PostgreSQL's catalogue says of the schema's safety, held against migrations/catalogue.txt.

The file has a line for each thing: what it is part of, the thing, and what is said of it. `make catalogue` writes it;
`catalogue_query` says what is looked at. All that the file says must be so. Beyond it, Carillon's own tables may have
more columns, indexes and constraints, and the schema more of everything that gives nobody rights over what is
Carillon's (`_KEPT_OUT`, `_of_others`). A partition is held against its kind's lines, such as `table carillon.runs_*`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from scheduler_service.store.catalogue_query import LINES, ROLES
from scheduler_service.store.migrations import FOLDER, look_at_schema

FILE = FOLDER / "catalogue.txt"
_BETWEEN = " | "
_EVERY_PARTITION = "_*"
# Of Carillon's own: what gives rights, and what could swallow or change what is written.
_KEPT_OUT = ("policy ", "grants to ", "default privileges of ", "member ", "membership in ", "trigger ", "rule ")
# Of what is others' in the schema: rights of everybody and of the roles that act. People may read it; pg_dump must.
_KEPT_OUT_OF_OTHERS = tuple(
    f"grants to {grantee}" for grantee in ("public", *ROLES) if grantee not in ("carillon_auditor", "carillon_backup")
)
# Said first, where several things differ.
_FIRST = ("row level security", "owner", "rights")
# What keeps others from writing that a newer release has migrated, and so from having less compared.
_KEPT_WHOLE = ("table carillon.migrations", "role carillon_owner")

# Expressions are written out with every schema but this one.
_PLAINLY = text("select set_config('search_path', 'pg_catalog', true)")


@dataclass(frozen=True, slots=True)
class Line:
    """One thing in the catalogue. `kind`: what it is part of, as the file knows it; `name`: as it is called here."""

    kind: str
    name: str
    thing: str
    said: str

    def __str__(self) -> str:
        """As it stands in the file."""
        return _BETWEEN.join((self.kind, self.thing, self.said))


async def read_catalogue(connection: AsyncConnection) -> list[Line]:
    """What is there, in the file's order. For the rest of the transaction names need their schema."""
    await connection.execute(_PLAINLY)
    return [Line(*row) for row in await connection.execute(LINES, {"roles": list(ROLES)})]


async def catalogue_problem(connection: AsyncConnection) -> str | None:
    """The first thing that is not as this code's migrations make it, in words; None if there is none. Of a schema that
    a newer release has migrated, only what no release changes is compared."""
    lines = await read_catalogue(connection)
    # Asked afterwards: a migration that commits meanwhile is known by its number once what it made is seen.
    if (await look_at_schema(connection)).is_newer:
        expected = _what_stays()
        return next(deviations((line for line in lines if _stays(line.kind, line.thing)), expected), None)
    return next(deviations(lines, _expected()), None)


def deviations(lines: Iterable[Line], expected: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """What differs, a sentence for each. `expected`: for each kind, its things and what must be said of them."""
    there: dict[tuple[str, str], dict[str, str]] = {}
    for line in lines:
        there.setdefault((line.kind, line.name), {})[line.thing] = line.said
    for (kind, name), things in there.items():
        if kind in expected:
            sentences = _of_ours(things, expected[kind])
        elif kind.removesuffix(_EVERY_PARTITION) in expected:
            sentences = iter((f"it inherits from {kind.removesuffix(_EVERY_PARTITION)}; let it no longer",))
        else:
            sentences = _of_others(things)
        yield from (f"{name}: {sentence}" for sentence in sentences)
    kinds = {kind for kind, _ in there}
    yield from (f"{kind} is missing" for kind in expected if kind not in kinds and not kind.endswith(_EVERY_PARTITION))


def _of_ours(there: Mapping[str, str], expected: Mapping[str, str]) -> Iterator[str]:
    yield from _differences(there, expected)
    yield from _strange(there, [thing for thing in there if thing not in expected and thing.startswith(_KEPT_OUT)])


def _of_others(there: Mapping[str, str]) -> Iterator[str]:
    """What is in the way of letting somebody else's table, view or function be."""
    wanted = {"row level security": "enabled and forced", "rights": "its caller's"}
    yield from _differences(there, {thing: said for thing, said in wanted.items() if thing in there})
    yield from _strange(there, [thing for thing in there if thing in _KEPT_OUT_OF_OTHERS])


def _differences(there: Mapping[str, str], wanted: Mapping[str, str]) -> Iterator[str]:
    for thing, said in sorted(wanted.items(), key=lambda line: line[0] not in _FIRST):
        if thing not in there:
            yield f"{thing} is missing; it must be {said}"
        elif there[thing] != said:
            yield f"{thing} is {there[thing]}; it must be {said}"


def _strange(there: Mapping[str, str], things: Iterable[str]) -> Iterator[str]:
    yield from (f"{thing} ({there[thing]}) is not of Carillon's making; remove it" for thing in things)


@cache
def _expected() -> dict[str, dict[str, str]]:
    expected: dict[str, dict[str, str]] = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        kind, thing, said = line.split(_BETWEEN, 2)
        expected.setdefault(kind, {})[thing] = said
    return expected


@cache
def _what_stays() -> dict[str, dict[str, str]]:
    """What a newer release leaves as it is, for this one to work beside it. Others' things may be its own."""
    staying = {
        kind: {thing: said for thing, said in things.items() if _stays(kind, thing)}
        for kind, things in _expected().items()
    }
    return {kind: things for kind, things in staying.items() if things}


def _stays(kind: str, thing: str) -> bool:
    return kind in _KEPT_WHOLE or (thing in _FIRST and kind in _expected())
