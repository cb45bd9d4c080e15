-- Reliability: how failed attempts are tried again, runs tried again by hand, runs that have a worker for themselves,
-- replicas' pulse, and which schedulers can work with a schema. An expanding step: see docs/operations.md.
do $migration$
declare
  give_up_at constant timestamptz := clock_timestamp() + interval '0.9 s';
  wanted text;
begin
  if exists (select from carillon.migrations where number = 8) then return; end if;
  set local role carillon_owner;

  -- First of all, and within 0.9 s together: whoever comes meanwhile waits behind us.
  foreach wanted in array array['migrations', 'jobs', 'gaps', 'live_runs'] loop
    perform set_config('lock_timeout', greatest(1, ceil(1000 * extract(epoch from
      give_up_at - clock_timestamp())))::text, true);
    execute format('lock table only carillon.%I in access exclusive mode', wanted);
  end loop;

  alter table carillon.migrations add column compatible_from integer check (compatible_from <= number);
  comment on column carillon.migrations.compatible_from is
    'The oldest schema whose schedulers can work with this one: those that know a schema from it on serve. Null: its own number.';

  alter table carillon.jobs
    add column retry_multiplier float8 not null default 1 check (retry_multiplier between 1 and 100),
    add column retry_max_delay interval not null default '7 days' check (retry_max_delay >= interval '0'),
    add column retry_jitter float8 not null default 0 check (retry_jitter between 0 and 1),
    add column never_retry text[] not null default '{}',
    add constraint jobs_retry_delays_are_short
      check (retry_delay <= interval '7 days' and retry_max_delay <= interval '7 days'),
    add constraint jobs_never_retry_is_a_list
      check (cardinality(never_retry) <= 50 and coalesce(array_ndims(never_retry), 1) = 1
             and array_position(never_retry, null) is null);
  comment on column carillon.jobs.retry_delay is
    'Between the first attempt and the second. How long a run waits is decided when an attempt has failed, by its job as it is then.';
  comment on column carillon.jobs.retry_multiplier is 'By what each further delay is longer than the one before it.';
  comment on column carillon.jobs.retry_jitter is 'The share of a delay that may be taken off it, by the run''s own measure.';
  comment on column carillon.jobs.never_retry is 'Error codes after which a run ends; a code that ends in * is a prefix.';

  alter table carillon.gaps drop constraint gaps_reason_check,
    add constraint gaps_reason_check
      check (reason in ('CATCH_UP_NONE', 'CATCH_UP_LATEST', 'OUTSIDE_WINDOW', 'SET_ASIDE', 'REMEDIED'));

  alter table carillon.live_runs alter column retry_delay set default interval '10 minutes';
  comment on column carillon.live_runs.retry_delay is
    'Read by schedulers of schema 7 only; the next contracting step drops it. Others read their job''s.';
  -- Small: most live runs are not alone. For what a session holds, and for what waits on a route.
  create index live_runs_alone on carillon.live_runs (session_id, route) where alone;
  comment on column carillon.live_runs.alone is
    'It was lost with its worker twice, or has one attempt left: it is handed to a session that holds nothing else, and that gets nothing else meanwhile.';

  create table carillon.retries (
    run_id uuid primary key,
    retry_of uuid not null,
    job_id bigint not null references carillon.jobs,
    tenant_id text not null,
    created_at timestamptz not null
  );
  comment on table carillon.retries is
    'Runs that somebody made to try an ended one again. The newest one of a run counts. Append-only.';
  create index retries_by_run on carillon.retries (retry_of);
  create trigger never_change before update or delete or truncate on carillon.retries
    for each statement execute function carillon.refuse_change();
  alter table carillon.retries enable always trigger never_change;
  alter table carillon.retries enable row level security, force row level security;
  grant select, insert on carillon.retries to carillon_api;
  grant select on carillon.retries to carillon_auditor;
  create policy retries_select_admin on carillon.retries for select to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy retries_select_admin on carillon.retries is 'Admins see what was tried again.';
  create policy retries_select_service on carillon.retries for select to carillon_api
    using (job_id = any ((select carillon.caller_jobs())::bigint[]));
  comment on policy retries_select_service on carillon.retries is 'A service sees what of its jobs was tried again.';
  create policy retries_select_user on carillon.retries for select to carillon_api
    using (tenant_id = (select carillon.caller_tenant()));
  comment on policy retries_select_user on carillon.retries is 'Users see what of their tenant''s was tried again.';
  create policy retries_insert_admin on carillon.retries for insert to carillon_api
    with check ((select carillon.caller_is('admin')));
  comment on policy retries_insert_admin on carillon.retries is 'Admins have runs tried again.';
  create policy retries_select_auditor on carillon.retries for select to carillon_auditor using (true);
  comment on policy retries_select_auditor on carillon.retries is 'Auditors read what was tried again.';

  create table carillon.pulses (
    replica text not null check (length(replica) between 1 and 200),
    loop text not null check (length(loop) between 1 and 63),
    beat_at timestamptz not null,
    primary key (replica, loop)
  );
  comment on table carillon.pulses is
    'When each replica''s loops last did their work: who finds that a loop nowhere works says so. Old rows are removed.';
  alter table carillon.pulses set (fillfactor = 50);
  alter table carillon.pulses enable row level security, force row level security;
  grant select, insert, update, delete on carillon.pulses to carillon_engine;
  grant select on carillon.pulses to carillon_auditor;
  create policy pulses_select_engine on carillon.pulses for select to carillon_engine using (true);
  comment on policy pulses_select_engine on carillon.pulses is 'Replicas watch each other''s loops.';
  create policy pulses_insert_engine on carillon.pulses for insert to carillon_engine with check (true);
  comment on policy pulses_insert_engine on carillon.pulses is 'A replica says that its loops work.';
  create policy pulses_update_engine on carillon.pulses for update to carillon_engine using (true) with check (true);
  comment on policy pulses_update_engine on carillon.pulses is 'A replica says so again.';
  create policy pulses_delete_engine on carillon.pulses for delete to carillon_engine using (true);
  comment on policy pulses_delete_engine on carillon.pulses is 'Replicas that are gone are forgotten.';
  create policy pulses_select_auditor on carillon.pulses for select to carillon_auditor using (true);
  comment on policy pulses_select_auditor on carillon.pulses is 'Auditors see which replicas work.';

  insert into carillon.migrations (number, name, compatible_from) values (8, 'reliability', 7);
end
$migration$;
