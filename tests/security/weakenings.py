"""What could weaken a database of Carillon's, as SQL, and what a scheduler says of it."""

from __future__ import annotations

MONTH = "runs_2199_01"
OWN = "(tenant_id = ( SELECT carillon.caller_tenant() AS caller_tenant))"
KEPT = "BEFORE DELETE OR UPDATE OR TRUNCATE FOR EACH STATEMENT EXECUTE FUNCTION carillon.refuse_change()"
OF_USERS = f"for select to carillon_api using {OWN}"
STRANGE = "is not of Carillon's making; remove it"
WEAKENED = {
    "alter table carillon.runs no force row level security": (
        "table carillon.runs: row level security is enabled and not forced; it must be enabled and forced"
    ),
    "alter table carillon.users disable row level security": (
        "table carillon.users: row level security is not enabled; it must be enabled and forced"
    ),
    "drop policy live_runs_select_user on carillon.live_runs": (
        f"table carillon.live_runs: policy live_runs_select_user is missing; it must be {OF_USERS}"
    ),
    "alter policy live_runs_select_user on carillon.live_runs using (true)": (
        "table carillon.live_runs: policy live_runs_select_user is for select to carillon_api using true; it must be "
        + OF_USERS
    ),
    "alter policy tenants_select_user on carillon.tenants to public": (
        f"table carillon.tenants: policy tenants_select_user is for select to public using {OWN}; it must be {OF_USERS}"
    ),
    "create policy helpful on carillon.jobs for all to carillon_api using (true)": (
        f"table carillon.jobs: policy helpful (for all to carillon_api using true) {STRANGE}"
    ),
    "create policy helpful on carillon.audit_seals to public using (true) with check (true)": (
        f"table carillon.audit_seals: policy helpful (for all to public using true with check true) {STRANGE}"
    ),
    "alter table carillon.runs disable trigger never_change": (
        f"table carillon.runs: trigger never_change is disabled: {KEPT}; it must be enabled always: {KEPT}"
    ),
    "drop trigger never_change on carillon.gaps": (
        f"table carillon.gaps: trigger never_change is missing; it must be enabled always: {KEPT}"
    ),
    "alter table carillon.gaps rename column reason to why": (
        "table carillon.gaps: column reason is missing; it must be text not null"
    ),
    "alter table carillon.backfills alter column runs type bigint": (
        "table carillon.backfills: column runs is bigint not null; it must be integer not null"
    ),
    "alter table carillon.users owner to carillon_auditor": (
        "table carillon.users: owner is carillon_auditor; it must be carillon_owner"
    ),
    "drop table carillon.users": "table carillon.users is missing",
    "grant delete on carillon.runs to carillon_engine": (
        "table carillon.runs: grants to carillon_engine is DELETE, INSERT, SELECT; it must be INSERT, SELECT"
    ),
    "grant select (secret_hash) on carillon.service_tokens to public": (
        "table carillon.service_tokens: grants to public (SELECT of secret_hash) " + STRANGE
    ),
    "grant execute on function carillon.clear_payloads to carillon_api": (
        "function carillon.clear_payloads(text,timestamp with time zone): grants to carillon_api (EXECUTE) is not of "
        "Carillon's making; remove it"
    ),
    "alter function carillon.drop_partitions reset search_path": (
        "function carillon.drop_partitions(interval): settings is lock_timeout=500ms; it must be "
        "search_path=pg_catalog, pg_temp, lock_timeout=500ms"
    ),
    "alter function carillon.caller_jobs security definer": (
        "function carillon.caller_jobs(): rights is its owner's; it must be its caller's"
    ),
    "create function carillon.shortcut() returns integer language sql security definer return 1": (
        "function carillon.shortcut(): rights is its owner's; it must be its caller's"
    ),
    "create table carillon.notes (note text)": (
        "table carillon.notes: row level security is not enabled; it must be enabled and forced"
    ),
    "create table carillon.notes (note text); grant select on carillon.notes to carillon_engine;"
    " alter table carillon.notes enable row level security, force row level security": (
        f"table carillon.notes: grants to carillon_engine (SELECT) {STRANGE}"
    ),
    "alter view carillon.failed_runs reset (security_invoker)": (
        "view carillon.failed_runs: rights is its owner's; it must be its caller's"
    ),
    f"create table carillon.{MONTH} partition of carillon.runs for values from (carillon.id_floor('2199-01-01'))"
    " to (carillon.id_floor('2199-02-01'))": (
        f"table carillon.{MONTH}: owner is carillon_admin; it must be carillon_owner"
    ),
    f"create table public.{MONTH} partition of carillon.runs for values from (carillon.id_floor('2199-01-01'))"
    " to (carillon.id_floor('2199-02-01'))": (
        f"table public.{MONTH}: owner is carillon_admin; it must be carillon_owner"
    ),
    "create table carillon.more () inherits (carillon.audit_events)": (
        "table carillon.more: it inherits from table carillon.audit_events; let it no longer"
    ),
    "create trigger aaa before insert on carillon.audit_events for each row execute function"
    " suppress_redundant_updates_trigger()": (
        "table carillon.audit_events: trigger aaa (enabled: BEFORE INSERT FOR EACH ROW EXECUTE FUNCTION "
        f"suppress_redundant_updates_trigger()) {STRANGE}"
    ),
    "create rule quiet as on insert to carillon.audit_events do instead nothing": (
        "table carillon.audit_events: rule quiet (CREATE RULE quiet AS ON INSERT TO carillon.audit_events DO INSTEAD "
        f"NOTHING;) {STRANGE}"
    ),
    "alter function carillon.caller_tenant() immutable": (
        "function carillon.caller_tenant(): declaration is () returns text language sql immutable parallel unsafe; "
        "it must be () returns text language sql stable parallel unsafe"
    ),
    "alter function carillon.caller_service() strict": (
        "function carillon.caller_service(): declaration is () returns text language sql stable strict parallel "
        "unsafe; it must be () returns text language sql stable parallel unsafe"
    ),
    "alter function carillon.caller_is leakproof": (
        "function carillon.caller_is(text): declaration is (kind text) returns boolean language sql stable leakproof "
        "parallel unsafe; it must be (kind text) returns boolean language sql stable parallel unsafe"
    ),
    "alter table carillon.audit_seals set unlogged": (
        "table carillon.audit_seals: persistence is unlogged; it must be permanent"
    ),
    "alter table carillon.audit_seals drop constraint audit_seals_event_id_key": (
        "table carillon.audit_seals: constraint audit_seals_event_id_key is missing; it must be UNIQUE (event_id)"
    ),
    "alter table carillon.audit_events alter principal drop not null": (
        "table carillon.audit_events: column principal is text; it must be text not null"
    ),
    "alter table carillon.run_keys disable trigger all": (
        "table carillon.run_keys: foreign keys is not kept; it must be kept"
    ),
    "drop index carillon.live_runs_one_per_schedule": (
        "table carillon.live_runs: unique index live_runs_one_per_schedule is missing; it must be btree (schedule_id) "
        "WHERE (exclusive AND (NOT blocked))"
    ),
    "alter table carillon.users alter tenant_id set default 'acme'": (
        "table carillon.users: column tenant_id is text default 'acme'::text; it must be text"
    ),
    "alter sequence carillon.claim_ids maxvalue 9 cycle": (
        "sequence carillon.claim_ids: values is from 1 by 1 within 1 to 9 in a cycle; it must be from 1 by 1 within "
        "1 to 9223372036854775807"
    ),
    "alter type carillon.outcome add value 'FORGED'": (
        "type carillon.outcome: values is COMPLETED, FAILED, CANCELLED, SKIPPED, FORGED; it must be COMPLETED, FAILED, "
        "CANCELLED, SKIPPED"
    ),
    "create schema reports; create view reports.peek as select * from carillon.runs": (
        "view reports.peek: rights is its owner's; it must be its caller's"
    ),
    "create view carillon.mine with (security_invoker) as select * from carillon.runs; create schema reports;"
    " create view reports.peek as select * from carillon.mine": (
        "view reports.peek: rights is its owner's; it must be its caller's"
    ),
    "create materialized view carillon.copied as select * from carillon.runs": (
        "view carillon.copied: rights is its owner's; it must be its caller's"
    ),
    "create function public.shortcut() returns integer language sql security definer return 1;"
    " alter function public.shortcut owner to carillon_retention": (
        "function public.shortcut(): rights is its owner's; it must be its caller's"
    ),
    "alter default privileges for role carillon_owner in schema carillon grant insert on tables to carillon_api": (
        f"schema carillon: default privileges of carillon_owner on tables to carillon_api (INSERT) {STRANGE}"
    ),
    "alter default privileges for role carillon_owner grant execute on functions to carillon_auditor": (
        f"schema carillon: default privileges of carillon_owner on functions to carillon_auditor (EXECUTE) {STRANGE}"
    ),
    "grant usage on schema carillon to carillon_api with grant option": (
        "schema carillon: grants to carillon_api is USAGE with grant option; it must be USAGE"
    ),
}
