-- Time: overlap that buffers, pauses and deletions that keep history, tenants' time zones, backfills and remedies.
do $migration$
begin
  if exists (select from carillon.migrations where number = 5) then return; end if;
  set local role carillon_owner;

  -- Live runs: who waits for whom, and what goes behind what is due now.
  alter table carillon.live_runs
    add column priority smallint not null default 0 check (priority between 0 and 9),
    add column followed boolean not null default false,
    add check (not blocked or exclusive);
  comment on column carillon.live_runs.priority is
    '0: due now. 1: catch-up, backfill, repair. Lower ones of a route are handed out first.';
  comment on column carillon.live_runs.followed is
    'Set by whoever makes a run that is blocked behind this one: whoever ends this one unblocks the next in the same transaction.';
  drop index carillon.live_runs_claimable;
  create index live_runs_claimable on carillon.live_runs (route, priority, run_after, run_id)
    where session_id is null and not blocked;
  create index live_runs_blocked on carillon.live_runs (schedule_id, trigger, scheduled_for, run_id) where blocked;

  -- Schedules: paused by hand, and deleted with their history kept.
  alter table carillon.schedules
    add column paused_at timestamptz,
    add column deleted_at timestamptz,
    add check (paused_at is null or next_run_at is null),
    add check (deleted_at is null or next_run_at is null),
    drop constraint schedules_job_id_tenant_id_schedule_key;
  comment on column carillon.schedules.paused_at is 'It owes nothing after this, until it is resumed.';
  comment on column carillon.schedules.deleted_at is
    'It owes nothing any more, and its name is free for another; its revisions, gaps and runs stay.';
  create unique index schedules_by_name on carillon.schedules (job_id, tenant_id, schedule) where deleted_at is null;
  create index schedules_deleted on carillon.schedules (job_id, tenant_id, schedule) where deleted_at is not null;
  drop index carillon.schedules_by_tenant;
  create index schedules_by_tenant on carillon.schedules (tenant_id, schedule_id)
    where tenant_id <> '-' and deleted_at is null;
  create index schedules_set_aside on carillon.schedules (schedule_id) where set_aside_reason is not null;
  revoke delete on carillon.schedules from carillon_api;
  comment on table carillon.schedule_revisions is
    'Each timing a schedule ever had, from when on. Each revision holds from its in_force_from until the next one''s, and takes the place of earlier ones from then on: what was owed at any time follows from it. Append-only.';

  alter table carillon.gaps drop constraint gaps_reason_check,
    add constraint gaps_reason_check
      check (reason in ('CATCH_UP_NONE', 'CATCH_UP_LATEST', 'OUTSIDE_WINDOW', 'SET_ASIDE'));

  create table carillon.job_changes (
    change_id bigint generated always as identity primary key,
    job_id bigint not null references carillon.jobs,
    in_force_from timestamptz not null,
    halted boolean not null,
    recorded_at timestamptz not null,
    changed_by text not null
  );
  comment on table carillon.job_changes is
    'From when on a job''s schedules owed something (not halted) or nothing (paused, archived). Each change holds from its in_force_from on, and takes the place of earlier ones from then on. Nothing was owed before the first. Append-only.';
  create index job_changes_by_job on carillon.job_changes (job_id, change_id);
  -- Forced row level security hides rows from the owner, too.
  alter table carillon.jobs no force row level security;
  insert into carillon.job_changes (job_id, in_force_from, halted, recorded_at, changed_by)
  select job_id, owed_from, false, now(), 'migration' from carillon.jobs
  union all
  select job_id, least(archived_at, paused_at), true, now(), 'migration' from carillon.jobs
  where paused_at is not null or archived_at is not null
  order by 1, 3;
  alter table carillon.jobs force row level security;

  create table carillon.tenants (
    tenant_id text primary key check (tenant_id ~ '^[A-Za-z0-9][A-Za-z0-9._:@|-]{0,127}$'),
    time_zone text not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    updated_by text not null
  );
  comment on table carillon.tenants is 'Tenants that set a time zone for their schedules.';

  create table carillon.backfills (
    backfill_id uuid primary key,
    job_id bigint not null references carillon.jobs,
    since timestamptz not null,
    until timestamptz not null check (since < until),
    tenant_id text not null,
    schedule text not null,
    occurrences bigint not null check (occurrences >= 0),
    runs integer not null check (runs between 0 and 10000),
    created_at timestamptz not null,
    created_by text not null,
    cancelled_at timestamptz,
    cancelled_by text not null default ''
  );
  comment on table carillon.backfills is 'Ranges of the past that somebody had run. tenant_id ''*'': everyone''s schedules; schedule '''': all.';
  create index backfills_by_job on carillon.backfills (job_id, backfill_id);

  create table carillon.remedies (
    run_id uuid primary key,
    schedule_id bigint not null references carillon.schedules,
    scheduled_for timestamptz not null,
    backfill_id uuid references carillon.backfills,
    created_at timestamptz not null
  );
  comment on table carillon.remedies is
    'Runs that were made afterwards for an occurrence. The newest one of an occurrence counts. Append-only.';
  create index remedies_by_occurrence on carillon.remedies (schedule_id, scheduled_for);
  create index remedies_by_backfill on carillon.remedies (backfill_id) where backfill_id is not null;

  create table carillon.time_zone_rules (
    only_row boolean primary key default true check (only_row),
    version text not null,
    in_force_from timestamptz not null
  );
  comment on table carillon.time_zone_rules is
    'The tzdata release by which next_run_at was computed last; a newer one has it computed again.';

  -- Who may touch them.
  alter table carillon.job_changes enable row level security, force row level security;
  grant select on carillon.job_changes to carillon_engine;
  grant select, insert on carillon.job_changes to carillon_api;
  create policy job_changes_select_engine on carillon.job_changes for select to carillon_engine using (true);
  create policy job_changes_select_api on carillon.job_changes for select to carillon_api
    using (exists (select from carillon.jobs j where j.job_id = job_changes.job_id));
  create policy job_changes_insert_api on carillon.job_changes for insert to carillon_api
    with check ((select carillon.caller_is('admin')) or job_id = any ((select carillon.caller_jobs())::bigint[]));

  alter table carillon.tenants enable row level security, force row level security;
  grant select, insert, update, delete on carillon.tenants to carillon_api;
  create policy tenants_select_api on carillon.tenants for select to carillon_api
    using ((select carillon.caller_is('admin')) or tenant_id = (select carillon.caller_tenant())
           -- A service that registers a job arms the tenants' schedules of it in their zones, and is shown the default
           -- of a tenant that has none.
           or (select carillon.caller_service()) <> '');
  create policy tenants_insert_api on carillon.tenants for insert to carillon_api
    with check ((select carillon.caller_is('admin')) or tenant_id = (select carillon.caller_tenant()));
  create policy tenants_update_api on carillon.tenants for update to carillon_api
    using ((select carillon.caller_is('admin')) or tenant_id = (select carillon.caller_tenant()))
    with check ((select carillon.caller_is('admin')) or tenant_id = (select carillon.caller_tenant()));
  create policy tenants_delete_api on carillon.tenants for delete to carillon_api
    using ((select carillon.caller_is('admin')));

  alter table carillon.backfills enable row level security, force row level security;
  grant select, insert, update (cancelled_at, cancelled_by) on carillon.backfills to carillon_api;
  create policy backfills_all_api on carillon.backfills for all to carillon_api
    using ((select carillon.caller_is('admin'))) with check ((select carillon.caller_is('admin')));

  alter table carillon.remedies enable row level security, force row level security;
  grant select, insert on carillon.remedies to carillon_api;
  create policy remedies_select_api on carillon.remedies for select to carillon_api
    using (exists (select from carillon.schedules s where s.schedule_id = remedies.schedule_id));
  create policy remedies_insert_api on carillon.remedies for insert to carillon_api
    with check (exists (select from carillon.schedules s where s.schedule_id = remedies.schedule_id));

  alter table carillon.time_zone_rules enable row level security, force row level security;
  grant select, insert, update on carillon.time_zone_rules to carillon_engine;
  create policy time_zone_rules_all_engine on carillon.time_zone_rules for all to carillon_engine
    using (true) with check (true);

  insert into carillon.migrations (number, name) values (5, 'time');
end
$migration$;
