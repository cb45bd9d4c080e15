"""Other releases to run beside this one: a made-up next one, and the one before, as it was tagged."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import psycopg

from local_stack.postgres import EmbeddedPostgres
from scheduler_service.store.catalogue import FILE
from scheduler_service.store.migrations import expected_version
from tests.conftest import DatabaseUrls
from tests.migrations.write_catalogue import catalogue_text

ROOT = Path(__file__).parents[2]
NEXT = expected_version() + 1
_PARTS = ("scheduler_service", "operations", "migrations", "clients/python/src")

_BEGINNING = f"""
do $migration$
declare
  give_up_at constant timestamptz := clock_timestamp() + interval '0.9 s';
  wanted text;
begin
  if exists (select from carillon.migrations where number = {NEXT}) then return; end if;
  set local role carillon_owner;
  foreach wanted in array array['migrations', 'jobs', 'live_runs'] loop
    perform set_config('lock_timeout', greatest(1, ceil(1000 * extract(epoch from
      give_up_at - clock_timestamp())))::text, true);
    execute format('lock table only carillon.%I in access exclusive mode', wanted);
  end loop;
"""
# One of each that an expanding step may make, on the tables that every call needs.
EXPANDING = (
    _BEGINNING
    + f"""
  create table carillon.bells (bell_id bigint generated always as identity primary key, tenant_id text not null);
  alter table carillon.bells enable row level security, force row level security;
  grant select, insert on carillon.bells to carillon_api;
  create policy bells_select_user on carillon.bells for select to carillon_api
    using (tenant_id = (select carillon.caller_tenant()));
  create policy bells_insert_user on carillon.bells for insert to carillon_api
    with check (tenant_id = (select carillon.caller_tenant()));
  alter table carillon.jobs add column bells integer not null default 1 check (bells > 0);
  alter table carillon.live_runs add column bell text not null default 'great';
  alter table carillon.runs add column bell text;
  create index live_runs_of_bells on carillon.live_runs (bell) where bell <> 'great';
  create policy jobs_select_bells on carillon.jobs for select to carillon_auditor using (bells > 1);
  grant update (bells) on carillon.jobs to carillon_api;
  create function carillon.ring(times integer) returns integer language sql immutable return times + 1;
  insert into carillon.migrations (number, name, compatible_from) values ({NEXT}, 'bells', {NEXT - 1});
end $migration$;
"""
)
CONTRACTING = (
    _BEGINNING
    + f"""
  alter table carillon.jobs drop column never_retry;
  insert into carillon.migrations (number, name) values ({NEXT}, 'bells');
end $migration$;
"""
)
_REVISION = f'''"""A made-up next migration."""

from alembic import op

from scheduler_service.store.migrations import apply_file

revision = "{NEXT:04}"
down_revision = "{NEXT - 1:04}"


def upgrade() -> None:
    apply_file(op.get_bind(), "{NEXT:04}_bells.sql")
'''


def next_release(folder: Path, migration: str, postgres: EmbeddedPostgres) -> Path:
    """This tree's schedulers with one more migration, as a release after this one would come: a folder to run from."""
    tree = folder / "next-release"
    for part in _PARTS:
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "migrations" / f"{NEXT:04}_bells.sql").write_text(migration)
    (tree / "migrations" / "alembic" / "versions" / f"{NEXT:04}.py").write_text(_REVISION)
    (tree / "migrations" / FILE.name).write_text(_catalogue_with(migration, postgres))
    return tree


def _catalogue_with(migration: str, postgres: EmbeddedPostgres) -> str:
    postgres.create_database("next_release", template="template_carillon")
    try:
        url = postgres.url("carillon_admin", database="next_release")
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(migration.encode())
        return asyncio.run(catalogue_text(url))
    finally:
        postgres.drop_database("next_release")


def previous_release(folder: Path, repository: Path = ROOT) -> Path | str:
    """The newest tagged release before this one, in a folder to run from; or why there is none."""
    tag = newest_tag(repository)
    if tag is None:
        return f"no release before {own_version(repository)} has a tag (v...) that this commit knows of"
    archive = subprocess.run(["git", "archive", tag], cwd=repository, check=True, capture_output=True).stdout
    tree = folder / tag
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        packed.extractall(tree, filter="data")
    return tree


def newest_tag(repository: Path) -> str | None:
    """Among those that lead to the commit at hand, such as v1.2.3, and are not of the tree's own version."""
    asked = subprocess.run(
        ["git", "tag", "--list", "v*", "--merged", "HEAD"], cwd=repository, capture_output=True, text=True, check=False
    )
    versions = {_numbers(tag): tag for tag in asked.stdout.split() if re.fullmatch(r"v\d+\.\d+\.\d+", tag)}
    versions.pop(_numbers(own_version(repository)), None)
    return versions[max(versions)] if versions else None


def own_version(repository: Path) -> str:
    found = re.search(r'^version = "(.+)"$', (repository / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def migrate_with(tree: Path, urls: DatabaseUrls) -> None:
    """As an operator does, with a release's own command."""
    settings = {
        "CARILLON_DATABASE_URL": urls.api,
        "CARILLON_ENGINE_URL": urls.engine,
        "CARILLON_MIGRATION_URL": urls.admin,
    }
    command = [sys.executable, "-m", "scheduler_service", "migrate"]
    done = subprocess.run(command, cwd=tree, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))
