"""The schema as PostgreSQL describes it, for comparing two ways to it."""

from __future__ import annotations

import psycopg

# A line for each thing: what it is, its name, and all that could differ.
_CATALOGUE = """
select 'schema ' || nspname || ' ' || pg_get_userbyid(nspowner) || coalesce(nspacl::text, '')
  from pg_namespace where nspname = 'carillon'
union all
select 'table ' || c.oid::regclass || ' ' || c.relrowsecurity || c.relforcerowsecurity || pg_get_userbyid(c.relowner)
       || coalesce(c.relacl::text, '') || coalesce(c.reloptions::text, '') || coalesce(obj_description(c.oid), '')
  from pg_class c where relnamespace = 'carillon'::regnamespace and relkind in ('r', 'p', 'S', 'v')
union all
select 'column ' || a.attrelid::regclass || '.' || attname || ' ' || format_type(atttypid, atttypmod) || attnotnull
       || attidentity::text || attgenerated::text || coalesce(pg_get_expr(adbin, adrelid), '')
       || coalesce(attacl::text, '')
  from pg_attribute a join pg_class c on c.oid = attrelid
       left join pg_attrdef d on (adrelid, adnum) = (attrelid, attnum)
  where relnamespace = 'carillon'::regnamespace and relkind in ('r', 'p') and attnum > 0
union all
select 'constraint ' || conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
  from pg_constraint where connamespace = 'carillon'::regnamespace
union all
select 'index ' || indexdef from pg_indexes where schemaname = 'carillon'
union all
select 'trigger ' || tgrelid::regclass || ' ' || tgenabled::text || pg_get_triggerdef(t.oid)
  from pg_trigger t join pg_class c on c.oid = tgrelid
  where relnamespace = 'carillon'::regnamespace and not tgisinternal
union all
select 'policy ' || tablename || ' ' || policyname || ' ' || cmd || permissive || roles::text || coalesce(qual, '')
       || coalesce(with_check, '') from pg_policies where schemaname = 'carillon'
union all
select 'function ' || oid::regprocedure || ' ' || prosecdef || pg_get_userbyid(proowner) || coalesce(proacl::text, '')
       || coalesce(proconfig::text, '') || md5(prosrc)
  from pg_proc where pronamespace = 'carillon'::regnamespace
union all
select 'migration ' || number || ' ' || name from carillon.migrations
order by 1
"""


def catalogue(url: str) -> list[str]:
    """Schema, tables, columns, constraints, indexes, triggers, policies, functions, grants and applied migrations."""
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(_CATALOGUE)]
