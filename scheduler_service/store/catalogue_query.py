"""The one statement that reads from PostgreSQL's catalogue what the schema's safety rests on.

A part of it reads one sort of thing. Where PostgreSQL writes a name it writes the schema too, as `read_catalogue` makes
it; 16 and 18 write the same, so that one catalogue.txt does for both.
"""

from __future__ import annotations

from sqlalchemy import text

ROLES = (
    "carillon_owner",
    "carillon_engine",
    "carillon_api",
    "carillon_auditor",
    "carillon_backup",
    "carillon_retention",
)

# What has grants and an owner. `kind` is the same for every partition of a table. Partitions count wherever they are;
# so do views that read Carillon's tables with the rights of somebody whom row level security does not hold, and
# functions with the rights of our roles. What is somebody's own in their session does not.
_OWNED = r"""
with recursive roles as (
  select oid, rolname from pg_roles where rolname = any(:roles)
), tables as (
  select c.oid, c.relname, c.relowner, c.relacl, c.relrowsecurity, c.relforcerowsecurity, p.relname as parent,
    'table ' || c.oid::regclass as name, 'table ' || coalesce(p.oid::regclass || '_*', c.oid::regclass::text) as kind
  from pg_class c left join pg_inherits i on i.inhrelid = c.oid left join pg_class p on p.oid = i.inhparent
  where 'carillon'::regnamespace in (c.relnamespace, p.relnamespace) and c.relkind in ('r', 'p', 'f')
), reading as (
  select oid from pg_class where relnamespace = 'carillon'::regnamespace and relowner in (select oid from roles)
  union
  select r.ev_class from reading t join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = t.oid
    join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid
), views as (
  select c.oid, c.relowner, c.relacl, c.relnamespace, c.reloptions, 'view ' || c.oid::regclass as name,
    case when exists (select from pg_options_to_table(c.reloptions)
      where option_name = 'security_invoker' and option_value::boolean) or not exists (
      select from pg_rewrite r join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
        join reading t on d.refclassid = 'pg_class'::regclass and d.refobjid = t.oid
      where r.ev_class = c.oid and t.oid <> c.oid) then 'its caller''s' else 'its owner''s' end as rights
  from pg_class c join pg_roles o on o.oid = c.relowner
  where c.relkind in ('v', 'm') and c.relpersistence <> 't' and (c.relnamespace = 'carillon'::regnamespace
    or c.oid in (select oid from reading)
      and (o.rolsuper or o.rolbypassrls or o.oid in (select oid from roles)))
), functions as (
  select p.oid, p.proowner, p.proacl, p.pronamespace, 'function ' || p.oid::regprocedure as name
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace
  where n.nspname = 'carillon'
    or p.prosecdef and p.proowner in (select oid from roles) and n.nspname !~ '^pg_(toast_)?temp_'
), owned as (
  select oid, relowner as owner, relacl as acl, name, kind from tables
  union all
  select oid, relowner, case when relnamespace = 'carillon'::regnamespace then relacl end, name, name from views
  union all
  select oid, relowner, relacl, 'sequence ' || oid::regclass, 'sequence ' || oid::regclass
  from pg_class where relnamespace = 'carillon'::regnamespace and relkind = 'S'
  union all
  select oid, proowner, case when pronamespace = 'carillon'::regnamespace
    then coalesce(proacl, acldefault('f', proowner)) end, name, name
  from functions
  union all
  select oid, typowner, null, 'type ' || oid::regtype, 'type ' || oid::regtype
  from pg_type where typnamespace = 'carillon'::regnamespace and typtype = 'e'
  union all
  select oid, nspowner, nspacl, 'schema ' || nspname, 'schema ' || nspname from pg_namespace where nspname = 'carillon'
), granted as (
  select o.kind, o.name, o.owner, a.grantee, a.privilege_type as privilege, a.is_grantable
  from owned o cross join lateral aclexplode(o.acl) a
  union all
  select t.kind, t.name, t.relowner, a.grantee, a.privilege_type || ' of ' || c.attname, a.is_grantable
  from tables t join pg_attribute c on c.attrelid = t.oid cross join lateral aclexplode(c.attacl) a
  where not c.attisdropped
)"""

# From here on (kind, name, thing, said).
_RIGHTS = r"""
  select kind, name, 'owner' as thing, pg_get_userbyid(owner)::text as said from owned
  union all
  select kind, name, 'grants to ' || case grantee when 0 then 'public' else pg_get_userbyid(grantee)::text end,
    string_agg(privilege || case when is_grantable then ' with grant option' else '' end, ', ' order by privilege)
  from granted where grantee <> owner group by kind, name, grantee
  union all
  select 'schema carillon', 'schema carillon', 'default privileges of ' || pg_get_userbyid(d.defaclrole) || ' on '
    || case d.defaclobjtype when 'r' then 'tables' when 'S' then 'sequences' when 'f' then 'functions'
      when 'T' then 'types' else 'schemas' end
    || ' to ' || case a.grantee when 0 then 'public' else pg_get_userbyid(a.grantee)::text end,
    string_agg(a.privilege_type, ', ' order by a.privilege_type)
  from pg_default_acl d join roles r on r.oid = d.defaclrole cross join lateral aclexplode(d.defaclacl) a
  where d.defaclnamespace in (0, 'carillon'::regnamespace) and a.grantee <> d.defaclrole
  group by d.defaclrole, d.defaclobjtype, a.grantee
  union all
  select t.kind, t.name, 'row level security',
    case when relrowsecurity and relforcerowsecurity then 'enabled and forced'
      when relrowsecurity then 'enabled and not forced' else 'not enabled' end
  from tables t
  union all
  select t.kind, t.name, 'policy ' || p.polname,
    case p.polcmd when 'r' then 'for select' when 'a' then 'for insert' when 'w' then 'for update'
      when 'd' then 'for delete' else 'for all' end
    || case when p.polpermissive then '' else ' (restrictive)' end
    || ' to ' || (select string_agg(case r when 0 then 'public' else pg_get_userbyid(r)::text end, ', ' order by r)
                  from unnest(p.polroles) r)
    || coalesce(' using ' || pg_get_expr(p.polqual, p.polrelid), '')
    || coalesce(' with check ' || pg_get_expr(p.polwithcheck, p.polrelid), '')
  from tables t join pg_policy p on p.polrelid = t.oid"""

# Who logs in as the API's and the engine's role differs from one Carillon to the next: `login_check` looks at that.
# A migrator that is no superuser made the roles, so it may grant them and become the owner. pg_dump's role passes row
# level security once a superuser has said so.
_ROLES = r"""
  select 'role ' || r.rolname, 'role ' || r.rolname, 'attributes', coalesce(nullif(concat_ws(', ',
    case when a.rolsuper then 'SUPERUSER' end,
    case when a.rolbypassrls and r.rolname <> 'carillon_backup' then 'BYPASSRLS' end,
    case when a.rolcreaterole then 'CREATEROLE' end, case when a.rolcreatedb then 'CREATEDB' end,
    case when a.rolreplication then 'REPLICATION' end,
    case when a.rolcanlogin and r.rolname not in ('carillon_api', 'carillon_engine') then 'LOGIN' end), ''), 'none')
  from roles r join pg_roles a on a.oid = r.oid
  union all
  select 'role ' || r.rolname, 'role ' || r.rolname, 'membership in ' || pg_get_userbyid(m.roleid), 'granted'
  from roles r join pg_auth_members m on m.member = r.oid
  union all
  select 'role ' || r.rolname, 'role ' || r.rolname, 'member ' || a.rolname, concat_ws(' and ',
    case when bool_or(m.set_option or m.inherit_option) then 'has its rights' end,
    case when bool_or(m.admin_option) then 'may grant it' end)
  from roles r join pg_auth_members m on m.roleid = r.oid join pg_roles a on a.oid = m.member
  where not a.rolsuper
    and not (a.rolcreaterole and has_database_privilege(a.oid, current_database(), 'create')
      and (r.rolname <> 'carillon_retention' or not (m.set_option or m.inherit_option)))
    and (r.rolname in ('carillon_owner', 'carillon_retention') or m.admin_option)
  group by r.rolname, a.rolname"""

# A constraint or unique index of a partition has the partition's name in its own.
_TABLES = r"""
  select t.kind, t.name, 'persistence', case c.relpersistence when 'p' then 'permanent' when 'u' then 'unlogged'
    else 'temporary' end
  from tables t join pg_class c on c.oid = t.oid
  union all
  select t.kind, t.name, 'column ' || a.attname, format_type(a.atttypid, a.atttypmod)
    || case when a.attnotnull then ' not null' else '' end
    || case a.attidentity when 'a' then ' generated always as identity'
      when 'd' then ' generated by default as identity' else '' end
    || coalesce(case a.attgenerated when '' then ' default ' else ' generated as ' end
      || pg_get_expr(d.adbin, d.adrelid), '')
  from tables t join pg_attribute a on a.attrelid = t.oid
    left join pg_attrdef d on (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
  where a.attnum > 0 and not a.attisdropped
  union all
  select t.kind, t.name, 'constraint ' || replace(c.conname, t.relname, coalesce(t.parent, t.relname)),
    pg_get_constraintdef(c.oid)
  from tables t join pg_constraint c on c.conrelid = t.oid where c.contype in ('p', 'u', 'c', 'f', 'x')
  union all
  select t.kind, t.name, 'unique index ' || replace(x.relname, t.relname, coalesce(t.parent, t.relname)),
    case when i.indisvalid and i.indisready then '' else 'invalid ' end
    || regexp_replace(pg_get_indexdef(i.indexrelid), '^.* USING ', '')
  from tables t join pg_index i on i.indrelid = t.oid join pg_class x on x.oid = i.indexrelid
  where i.indisunique and not exists (select from pg_constraint c where c.conindid = x.oid and c.contype in ('p', 'u'))
  union all
  select t.kind, t.name, 'foreign keys', case when bool_and(g.tgenabled in ('O', 'A')) then 'kept' else 'not kept' end
  from tables t join pg_trigger g on g.tgrelid = t.oid where g.tgisinternal group by t.kind, t.name
  union all
  select t.kind, t.name, 'trigger ' || g.tgname,
    case g.tgenabled when 'O' then 'enabled' when 'A' then 'enabled always' when 'R' then 'enabled in replicas only'
      else 'disabled' end
    || regexp_replace(pg_get_triggerdef(g.oid), '^CREATE TRIGGER \S+ (.*) ON \S+ ', ': \1 ')
  from tables t join pg_trigger g on g.tgrelid = t.oid where not g.tgisinternal
  union all
  select t.kind, t.name, 'rule ' || r.rulename, pg_get_ruledef(r.oid)
  from tables t join pg_rewrite r on r.ev_class = t.oid
  union all
  select t.kind, t.name, 'this month''s partition', case when exists (
      select from pg_inherits i where i.inhparent = t.oid and i.inhrelid = to_regclass(format('carillon.%I', m.name)))
    then 'there' else 'not there (carillon.' || m.name || ')' end
  from tables t join pg_partitioned_table p on p.partrelid = t.oid
    cross join lateral (select t.relname || to_char(now() at time zone 'UTC', '"_"YYYY"_"MM') as name) m"""

_OTHERS = r"""
  select v.name, v.name, 'rights', v.rights from views v
  union all
  select v.name, v.name, 'options', coalesce(array_to_string(v.reloptions, ', '), 'none') from views v
  union all
  select v.name, v.name, 'definition', md5(regexp_replace(pg_get_viewdef(v.oid), '\s+', ' ', 'g')) from views v
  union all
  select f.name, f.name, 'rights', case when p.prosecdef then 'its owner''s' else 'its caller''s' end
  from functions f join pg_proc p on p.oid = f.oid
  union all
  select f.name, f.name, 'settings', coalesce(array_to_string(p.proconfig, ', '), 'none')
  from functions f join pg_proc p on p.oid = f.oid
  union all
  select f.name, f.name, 'body', md5(coalesce(pg_get_function_sqlbody(p.oid), p.prosrc))
  from functions f join pg_proc p on p.oid = f.oid
  union all
  select f.name, f.name, 'declaration', concat_ws(' ', '(' || pg_get_function_arguments(p.oid) || ')',
    'returns ' || pg_get_function_result(p.oid), 'language ' || l.lanname,
    case p.provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end,
    case when p.proisstrict then 'strict' end, case when p.proleakproof then 'leakproof' end,
    case p.proparallel when 's' then 'parallel safe' when 'r' then 'parallel restricted' else 'parallel unsafe' end)
  from functions f join pg_proc p on p.oid = f.oid join pg_language l on l.oid = p.prolang
  union all
  select 'sequence ' || q.seqrelid::regclass, 'sequence ' || q.seqrelid::regclass, 'values',
    concat_ws(' ', 'from', q.seqstart, 'by', q.seqincrement, 'within', q.seqmin, 'to', q.seqmax,
      case when q.seqcycle then 'in a cycle' end, case when c.relpersistence <> 'p' then 'unlogged' end)
  from pg_sequence q join pg_class c on c.oid = q.seqrelid where c.relnamespace = 'carillon'::regnamespace
  union all
  select 'type ' || t.oid::regtype, 'type ' || t.oid::regtype, 'values',
    string_agg(e.enumlabel, ', ' order by e.enumsortorder)
  from pg_type t join pg_enum e on e.enumtypid = t.oid where t.typnamespace = 'carillon'::regnamespace group by t.oid"""

LINES = text(
    f"{_OWNED}, lines as ("
    + "\n  union all".join((_RIGHTS, _ROLES, _TABLES, _OTHERS))
    + r"""
)
select distinct on (kind collate "C", name collate "C", thing collate "C", said collate "C")
  kind, name, thing, regexp_replace(said, '\s+', ' ', 'g') as said
from lines
order by kind collate "C", name collate "C", thing collate "C", said collate "C"
"""
)
