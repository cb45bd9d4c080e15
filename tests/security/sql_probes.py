"""Random SQL as the API's role, acting for tenant B as the scheduler does it, for what is tenant A's."""

from __future__ import annotations

import random
from collections.abc import Sequence, Set

import psycopg
from psycopg import sql

from tests.security.canaries import Canaries, a
from tests.security.world import B, World

_ACT_FOR_B = (
    "select set_config('carillon.kind', 'user', true), set_config('carillon.service', '', true),"
    f" set_config('carillon.tenant', '{B}', true), set_config('carillon.principal', 'user:bob', true)"
)
_CATALOGUE = ("pg_stats", "pg_stat_activity", "pg_stat_user_tables", "pg_prepared_statements", "pg_cursors", "pg_locks")


class SqlProbes:
    """Statements over everything that schema carillon has."""

    def __init__(self, world: World, canaries: Canaries, dice: random.Random) -> None:
        self._canaries = canaries
        self._dice = dice
        self._url = world.urls.api
        relations = world.admin.execute(_RELATIONS).fetchall()
        self._tables = [name for name, is_partition in relations if not is_partition]
        self._partitions = [name for name, is_partition in relations if is_partition]
        self._columns = {
            table: [name for (name,) in world.admin.execute(_COLUMNS, [table]).fetchall()] for table, _ in relations
        }
        self._functions = world.admin.execute(_FUNCTIONS).fetchall()
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None

    def probe(self, told: Set[str] = frozenset()) -> list[str]:
        """One statement, rolled back; answers the leaks that it found. `told`: what B itself said before."""
        if self._connection is None:
            self._connection = psycopg.connect(self._url)
        statement = self._statement()
        said = self._said(self._connection, statement)
        text = statement.as_string(self._connection)
        return [
            f"SQL shows {canary!r}: {text[:300]}"
            for canary in self._canaries.hidden_from("user-b")
            if canary in said and canary not in text and canary not in told
        ]

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _said(self, connection: psycopg.Connection[tuple[object, ...]], statement: sql.Composed) -> str:
        """The rows, or the error with everything that a driver is told of it."""
        try:
            connection.execute(_ACT_FOR_B)
            cursor = connection.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
            return "\n".join(map(str, rows))
        except psycopg.Error as error:
            diagnosis = error.diag
            parts = (diagnosis.message_detail, diagnosis.message_hint, diagnosis.context, diagnosis.internal_query)
            return "\n".join(str(part) for part in (error, *parts))
        finally:
            connection.rollback()

    def _statement(self) -> sql.Composed:
        table = self._dice.choice(self._partitions if self._dice.random() < 0.1 else self._tables)
        column = self._dice.choice(self._columns[table])
        names = {
            "table": sql.Identifier("carillon", table),
            "column": sql.Identifier(column),
            "value": sql.Literal(self._dice.choice([*self._canaries.tenants, *self._canaries.ids])),
            "catalogue": sql.Identifier(self._dice.choice(_CATALOGUE)),
            "call": self._call(),
            "tenant": sql.Literal(a("tenant")),
            "mine": sql.Literal(B),
        }
        return sql.SQL(self._dice.choice(_READS if self._dice.random() < 0.4 else _STATEMENTS)).format(**names)

    def _call(self) -> sql.Composable:
        schema, name, types = self._dice.choice(self._functions)
        arguments: Sequence[sql.Composable] = [
            sql.SQL("{}::{}").format(sql.Literal(_ARGUMENTS.get(kind)), sql.SQL(kind)) for kind in types
        ]
        return sql.SQL("{}({})").format(sql.Identifier(schema, name), sql.SQL(", ").join(arguments))


_ARGUMENTS = {
    "text": "email-service/weekly-digest",
    "integer": 100,
    "bigint": 1,
    "timestamp with time zone": "2020-01-01",
    "boolean": True,
    "uuid": "00000000-0000-0000-0000-000000000000",
}
_RELATIONS = (
    "select relname::text, relispartition from pg_class where relnamespace = 'carillon'::regnamespace"
    " and relkind in ('r', 'p', 'v', 'm') order by 1"
)
_COLUMNS = (
    "select attname::text from pg_attribute where attrelid = ('carillon.' || %s)::regclass and attnum > 0"
    " and not attisdropped order by attnum"
)
_FUNCTIONS = (
    "select 'carillon', proname::text, array(select format_type(t, null) from unnest(proargtypes) t)"
    " from pg_proc where pronamespace = 'carillon'::regnamespace and prorettype <> 'trigger'::regtype order by 2, 3"
)
_READS = (
    "select * from {table}",
    "select t::text from {table} t",
    "select to_jsonb(t) from {table} t",
    "select {column}::text from {table}",
)
_STATEMENTS = (
    "select string_agg({column}::text, ',') from {table}",
    "select min({column}::text), max({column}::text), count(*) from {table}",
    "select * from {table} where {column}::text = {value}",
    "select * from {table} where {column}::text like '%canary%'",
    "select * from {table} where cast({column}::text as integer) = 1",
    "select 1 / (case when {column}::text like 'a%' then 0 else 1 end), {column} from {table}",
    "explain (verbose) select * from {table} where {column}::text = {value}",
    "explain (analyze, verbose, costs off) select * from {table} where {column}::text > {value}",
    "insert into {table} ({column}) values ({value}) returning *",
    "insert into {table} select * from {table} returning *",
    "insert into {table} ({column}) select {column} from {table} on conflict do nothing returning *",
    "update {table} set {column} = {column} returning *",
    "update {table} set {column} = {value} returning *",
    "delete from {table} returning *",
    "select * from {table} for update",
    "lock table {table}",
    "truncate {table}",
    "table {table}",
    "select * from pg_catalog.{catalogue}",
    "select {call}",
    "select * from {call}",
    "select pg_catalog.pg_get_viewdef('{table}'::regclass)",
    "insert into carillon.schedules (job_id, tenant_id, schedule, timing, enabled, cron, time_zone, gap, repeat, phase,"
    " jitter, settled_to, created_at, created_by, updated_at, updated_by) select job_id, {tenant}, schedule, timing,"
    " enabled, cron, time_zone, gap, repeat, phase, jitter, now(), now(), 'x', now(), 'x' from carillon.schedules",
    "update carillon.schedules set tenant_id = {tenant} returning *",
    "insert into carillon.tenants values ({tenant}, 'UTC', now(), now(), 'x') returning *",
    "insert into carillon.tenants values ({tenant}, 'UTC', now(), now(), 'x') on conflict (tenant_id) do update"
    " set time_zone = 'UTC' returning *",
    "insert into carillon.tenants values ({mine}, {value}, now(), now(), 'x') on conflict do nothing returning *",
)
