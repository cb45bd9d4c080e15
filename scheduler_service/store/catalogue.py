"""What PostgreSQL's catalogue says of the schema's safety, held against migrations/catalogue.txt.

The file has a line for each thing: what it is part of, the thing, and what is said of it. `make catalogue` writes it.
More columns, indexes, triggers and views than it knows may be there; more policies, more rights of our roles, more
functions with their owner's rights, and tables without forced row level security may not. A partition is held against
the line of its kind, such as `table carillon.runs_*`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from scheduler_service.store.migrations import FOLDER

FILE = FOLDER / "catalogue.txt"
_BETWEEN = " | "
_KEEP_OUT = ("policy ", "grants to ")
# Said first, where several things differ.
_FIRST = ("row level security", "owner", "rights")

# Expressions are written out with every schema but this one.
_PLAINLY = text("select set_config('search_path', 'pg_catalog', true)")
# (kind, name, thing, said). `kind` is the same for every partition of a table.
_LINES = text(r"""
with tables as (
  select c.oid, c.relowner, c.relacl, c.relrowsecurity, c.relforcerowsecurity,
    'table carillon.' || c.relname as name, 'table carillon.' || coalesce(p.relname || '_*', c.relname) as kind
  from pg_class c left join pg_inherits i on i.inhrelid = c.oid left join pg_class p on p.oid = i.inhparent
  where c.relnamespace = 'carillon'::regnamespace and c.relkind in ('r', 'p')
), owned as (
  select oid, relowner as owner, relacl as acl, name, kind from tables
  union all
  select oid, relowner, relacl, 'view carillon.' || relname, 'view carillon.' || relname
  from pg_class where relnamespace = 'carillon'::regnamespace and relkind in ('v', 'm')
  union all
  select oid, relowner, relacl, 'sequence carillon.' || relname, 'sequence carillon.' || relname
  from pg_class where relnamespace = 'carillon'::regnamespace and relkind = 'S'
  union all
  select oid, proowner, coalesce(proacl, acldefault('f', proowner)), 'function ' || oid::regprocedure,
    'function ' || oid::regprocedure
  from pg_proc where pronamespace = 'carillon'::regnamespace
  union all
  select oid, nspowner, nspacl, 'schema ' || nspname, 'schema ' || nspname from pg_namespace where nspname = 'carillon'
), granted as (
  select o.kind, o.name, o.owner, a.grantee, a.privilege_type as privilege
  from owned o cross join lateral aclexplode(o.acl) a
  union all
  select t.kind, t.name, t.relowner, a.grantee, a.privilege_type || ' of ' || c.attname
  from tables t join pg_attribute c on c.attrelid = t.oid cross join lateral aclexplode(c.attacl) a
  where not c.attisdropped
), lines as (
  select kind, name, 'owner' as thing, pg_get_userbyid(owner)::text as said from owned
  union all
  select kind, name, 'row level security', case when relrowsecurity and relforcerowsecurity then 'enabled and forced'
    when relrowsecurity then 'enabled and not forced' else 'not enabled' end
  from tables
  union all
  select t.kind, t.name, 'column ' || a.attname, format_type(a.atttypid, a.atttypmod)
  from tables t join pg_attribute a on a.attrelid = t.oid where a.attnum > 0 and not a.attisdropped
  union all
  select t.kind, t.name, 'trigger ' || g.tgname,
    case g.tgenabled when 'O' then 'enabled' when 'A' then 'enabled always' when 'R' then 'enabled in replicas only'
      else 'disabled' end
    || regexp_replace(pg_get_triggerdef(g.oid), '^CREATE TRIGGER \S+ (.*) ON \S+ ', ': \1 ')
  from tables t join pg_trigger g on g.tgrelid = t.oid where not g.tgisinternal
  union all
  select t.kind, t.name, 'policy ' || p.polname,
    case p.polcmd when 'r' then 'for select' when 'a' then 'for insert' when 'w' then 'for update'
      when 'd' then 'for delete' else 'for all' end
    || case when p.polpermissive then '' else ' (restrictive)' end
    || ' to ' || (select string_agg(case r when 0 then 'public' else pg_get_userbyid(r)::text end, ', ' order by r)
                  from unnest(p.polroles) r)
    || coalesce(' using ' || pg_get_expr(p.polqual, p.polrelid), '')
    || coalesce(' with check ' || pg_get_expr(p.polwithcheck, p.polrelid), '')
  from tables t join pg_policy p on p.polrelid = t.oid
  union all
  select kind, name, 'grants to ' || case grantee when 0 then 'public' else pg_get_userbyid(grantee)::text end,
    string_agg(privilege, ', ' order by privilege)
  from granted
  where grantee <> owner and (grantee = 0 or pg_get_userbyid(grantee) in
    ('carillon_owner', 'carillon_engine', 'carillon_api', 'carillon_auditor', 'carillon_backup', 'carillon_retention'))
  group by kind, name, grantee
  union all
  select o.kind, o.name, 'options', coalesce(array_to_string(c.reloptions, ', '), 'none')
  from owned o join pg_class c on c.oid = o.oid where c.relkind = 'v'
  union all
  select o.kind, o.name, 'rights', case when p.prosecdef then 'its owner''s' else 'its caller''s' end
  from owned o join pg_proc p on p.oid = o.oid where o.kind like 'function %'
  union all
  select o.kind, o.name, 'settings', coalesce(array_to_string(p.proconfig, ', '), 'none')
  from owned o join pg_proc p on p.oid = o.oid where o.kind like 'function %'
  union all
  select o.kind, o.name, 'body', md5(coalesce(pg_get_function_sqlbody(p.oid), p.prosrc))
  from owned o join pg_proc p on p.oid = o.oid where o.kind like 'function %'
)
select distinct on (kind collate "C", name collate "C", thing collate "C", said collate "C")
  kind, name, thing, regexp_replace(said, '\s+', ' ', 'g') as said
from lines
order by kind collate "C", name collate "C", thing collate "C", said collate "C"
""")
_LOGIN = text("""
select r.rolname as name, r.rolsuper, r.rolbypassrls, r.rolcreaterole, r.rolreplication,
  (select c.oid::regclass::text from pg_class c where c.relowner = r.oid and c.relnamespace = 'carillon'::regnamespace
   order by 1 limit 1) as owns,
  (select g.rolname from pg_roles g where g.oid <> r.oid and g.rolname <> :group and pg_has_role(r.oid, g.oid, 'member')
   order by g.rolname limit 1) as other_group,
  pg_has_role(r.oid, :group, 'usage') as has_rights
from pg_roles r where r.rolname = session_user""")


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
    return [Line(*row) for row in await connection.execute(_LINES)]


async def catalogue_problem(connection: AsyncConnection) -> str | None:
    """The first thing that is not as this code's migrations make it, in words; None if there is none."""
    return next(deviations(await read_catalogue(connection), _expected()), None)


def deviations(lines: Iterable[Line], expected: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """What differs, a sentence for each. `expected`: for each kind, its things and what must be said of them."""
    there: dict[tuple[str, str], dict[str, str]] = {}
    for line in lines:
        there.setdefault((line.kind, line.name), {})[line.thing] = line.said
    for (kind, name), things in there.items():
        yield from (f"{name}: {sentence}" for sentence in _differences(things, expected.get(kind)))
    kinds = {kind for kind, _ in there}
    yield from (f"{kind} is missing" for kind in expected if kind not in kinds and not kind.endswith("*"))


def _differences(there: Mapping[str, str], expected: Mapping[str, str] | None) -> Iterator[str]:
    wanted = _wanted_of_unknown(there) if expected is None else expected
    for thing, said in sorted(wanted.items(), key=lambda line: line[0] not in _FIRST):
        if thing not in there:
            yield f"{thing} is missing; it must be {said}"
        elif there[thing] != said:
            yield f"{thing} is {there[thing]}; it must be {said}"
    for thing, said in there.items():
        if thing not in wanted and thing.startswith(_KEEP_OUT):
            yield f"{thing} ({said}) is not of Carillon's making; remove it"


def _wanted_of_unknown(there: Mapping[str, str]) -> dict[str, str]:
    """What somebody else's table or function must be like to be let be."""
    wanted = {"row level security": "enabled and forced", "rights": "its caller's"}
    return {thing: said for thing, said in wanted.items() if thing in there}


@cache
def _expected() -> dict[str, dict[str, str]]:
    expected: dict[str, dict[str, str]] = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        kind, thing, said = line.split(_BETWEEN, 2)
        expected.setdefault(kind, {})[thing] = said
    return expected


async def login_problem(connection: AsyncConnection, group: str) -> str | None:
    """Why the login of this connection may not have the service's work; None if it has the rights of `group` only."""
    login = (await connection.execute(_LOGIN, {"group": group})).one()
    if login.rolsuper:
        why = "is a superuser"
    elif login.rolbypassrls:
        why = "may bypass row level security"
    elif login.rolcreaterole:
        why = "may create roles"
    elif login.rolreplication:
        why = "may replicate"
    elif login.owns is not None:
        why = f"owns {login.owns}"
    elif login.other_group is not None:
        why = f"is a member of {login.other_group}"
    elif not login.has_rights:
        why = f"is not a member of {group}"
    else:
        return None
    return f"the login {login.name} {why}; it must have the rights of {group} and no others"
