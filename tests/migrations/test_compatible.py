"""Which schemas a scheduler works with: its own, and those of newer releases that say so."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from local_stack.postgres import EmbeddedPostgres
from scheduler_service.engine.readiness import INSPECTION_SECONDS, Readiness
from scheduler_service.store.database import Database
from scheduler_service.store.migrations import FOLDER, expected_version
from tests.builders import connect
from tests.conftest import DatabaseUrls
from tests.migrations.releases import CONTRACTING, EXPANDING, NEXT, newest_tag, previous_release
from tests.security.sql_case import Connection

OWN = expected_version()
ADD = "insert into carillon.migrations (number, name, compatible_from) values (%s, %s, %s)"


@pytest.fixture
def admin(database_urls: DatabaseUrls) -> Iterator[Connection]:
    with connect(database_urls.admin) as connection:
        yield connection


@pytest.fixture
def readiness(database: Database) -> Readiness:
    """Which inspects the catalogue at each look."""
    clock = itertools.count(step=2 * INSPECTION_SECONDS)
    return Readiness(database, None, lambda: next(clock))


async def problem(readiness: Readiness) -> str | None:
    await readiness.look()
    return readiness.problem


async def test_an_expanding_step_of_a_newer_release_is_worked_with_and_told_once(
    readiness: Readiness, admin: Connection
) -> None:
    assert await problem(readiness) is None
    admin.execute(EXPANDING.encode())
    with capture_logs() as logs:
        for _ in range(3):
            assert await problem(readiness) is None
    (told,) = (line for line in logs if line["event"].startswith("a newer release has migrated"))
    assert (told["schema"], told["known"]) == (NEXT, OWN)


async def test_a_replica_that_starts_on_a_newer_schema_works_with_it(database: Database, admin: Connection) -> None:
    admin.execute(EXPANDING.encode())
    migrated: list[str] = []
    assert await problem(Readiness(database, lambda: migrated.append("again"))) is None
    assert migrated == []


async def test_a_contracting_step_ends_it_until_the_step_is_taken_back(readiness: Readiness, admin: Connection) -> None:
    assert await problem(readiness) is None
    check = "select pg_get_constraintdef(oid) from pg_constraint where conname = 'jobs_never_retry_is_a_list'"
    ((kept,),) = admin.execute(check).fetchall()
    before = f"create table public.kept as select never_retry from carillon.jobs; {CONTRACTING}"
    admin.execute(before.encode())
    why = await problem(readiness)
    assert why == (
        f"the schema is at {NEXT}, newer than this scheduler knows ({OWN}), and since the migration `bells` only"
        f" schedulers that know {NEXT} can work with it; start a newer release, or restore the backup from before that"
        " migration"
    )
    admin.execute("alter table carillon.jobs add column never_retry text[] not null default '{}'")
    admin.execute(f"alter table carillon.jobs add constraint jobs_never_retry_is_a_list {kept}".encode())
    admin.execute("alter table carillon.migrations no force row level security")
    admin.execute("delete from carillon.migrations where number = %s", [NEXT])
    admin.execute("alter table carillon.migrations force row level security")
    assert await problem(readiness) is None


@pytest.mark.parametrize(
    ("steps", "asks_for"),
    [
        ([(NEXT, "first", OWN - 1), (NEXT + 1, "second", OWN)], None),
        ([(NEXT, "first", NEXT), (NEXT + 1, "second", OWN)], ("first", NEXT)),
        ([(NEXT, "first", OWN), (NEXT + 1, "second", NEXT)], ("second", NEXT)),
        ([(NEXT, "first", None), (NEXT + 1, "second", NEXT + 1)], ("second", NEXT + 1)),
    ],
)
async def test_each_step_since_counts(
    readiness: Readiness, admin: Connection, steps: list[tuple[int, str, int | None]], asks_for: tuple[str, int] | None
) -> None:
    for step in steps:
        admin.execute(ADD, step)
    why = await problem(readiness)
    if asks_for is None:
        assert why is None
    else:
        assert "since the migration `{}` only schedulers that know {} can".format(*asks_for) in str(why)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("alter table carillon.runs no force row level security", "table carillon.runs: row level security"),
        ("alter table carillon.migrations owner to carillon_admin", "table carillon.migrations: owner is"),
        ("grant insert on carillon.migrations to carillon_api", "table carillon.migrations: grants to carillon_api"),
        ("create policy x on carillon.migrations for insert to carillon_api with check (true)", "table carillon.migra"),
        ("alter function carillon.caller_is(text) security definer", "function carillon.caller_is(text): rights"),
    ],
    ids=["forced", "owner", "grant", "policy", "definer"],
)
async def test_what_lets_others_write_such_a_row_is_still_looked_at(
    database: Database, admin: Connection, change: str, said: str
) -> None:
    admin.execute(EXPANDING.encode())
    assert await problem(Readiness(database, None)) is None
    admin.execute(change.encode())
    assert str(await problem(Readiness(database, None))).startswith(said)


@pytest.fixture
async def older(postgres: EmbeddedPostgres, database_urls: DatabaseUrls) -> AsyncIterator[Database]:
    """A database at schema 7, which says nothing of who can work with it."""
    postgres.create_database("older")
    with connect(postgres.url("carillon_admin", database="older")) as admin:
        for file in sorted(FOLDER.glob("*.sql")):
            if int(file.name[:4]) <= 7:
                admin.execute(file.read_bytes())
    api, engine = (f"{url.rpartition('/')[0]}/older" for url in (database_urls.api, database_urls.engine))
    database = Database(api, engine)
    yield database
    await database.close()
    postgres.drop_database("older")


async def test_an_older_schema_is_named_also_where_its_books_say_less(older: Database) -> None:
    assert await problem(Readiness(older, None)) == f"the schema is at 7, this scheduler needs {OWN}; migrate it"


def test_each_migration_from_8_on_says_who_can_work_with_it() -> None:
    for file in sorted(FOLDER.glob("*.sql")):
        if int(file.name[:4]) >= 8:
            assert "migrations (number, name, compatible_from)" in file.read_text(), file.name


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository at version 1.10.0, whose commits each have a file of their own."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.10.0"\n')
    return tmp_path


def git(repository: Path, *arguments: str) -> None:
    person = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *person, *arguments], cwd=repository, check=True, capture_output=True)


def commit(repository: Path, tag: str) -> None:
    (repository / "tagged").write_text(tag)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", tag)
    git(repository, "tag", tag)


def test_the_release_before_is_the_newest_tag_of_another_version(repository: Path, tmp_path: Path) -> None:
    for tag in ("v1.2.0", "v1.9.1", "nightly", "v1.10.0"):
        commit(repository, tag)
    assert newest_tag(repository) == "v1.9.1"
    tree = previous_release(tmp_path / "releases", repository)
    assert isinstance(tree, Path)
    assert (tree / "tagged").read_text() == "v1.9.1"


def test_without_a_release_before_it_says_so(repository: Path, tmp_path: Path) -> None:
    commit(repository, "v1.10.0")
    assert previous_release(tmp_path / "releases", repository) == (
        "no release before 1.10.0 has a tag (v...) that this commit knows of"
    )
