-- What happened: sessions, live runs, and the append-only record. See docs/run-states.md.
do $migration$
begin
  if exists (select from carillon.migrations where number = 3) then return; end if;
  set local role carillon_owner;

  create type carillon.trigger_source as enum
    ('SCHEDULE', 'CATCH_UP', 'MANUAL', 'BACKFILL', 'REPAIR', 'TEST', 'EXTERNAL');
  create type carillon.outcome as enum ('COMPLETED', 'FAILED', 'CANCELLED', 'SKIPPED');
  create sequence carillon.claim_ids;

  create table carillon.sessions (
    session_id uuid primary key,
    worker text not null,
    client text not null,
    principal text not null,
    routes text[] not null check (cardinality(routes) between 1 and 1000),
    replica text not null,
    stream bigint not null default 1,
    created_at timestamptz not null,
    heartbeat_at timestamptz not null,
    expires_at timestamptz not null
  );
  comment on table carillon.sessions is
    'A worker process''s incarnation; the row is its lease. Whoever hands runs to it or takes results locks the row FOR KEY SHARE; the reaper deletes it, then frees its runs.';
  comment on column carillon.sessions.stream is 'Counts its streams; the newest one counts.';

  create table carillon.live_runs (
    run_id uuid primary key,
    schedule_id bigint,
    revision integer,
    job_id bigint not null,
    tenant_id text not null,
    route text not null,
    trigger carillon.trigger_source not null,
    exclusive boolean not null,
    blocked boolean not null default false,
    scheduled_for timestamptz not null,
    scheduled_local timestamp,
    fold smallint,
    time_zone text,
    tzdata text,
    run_after timestamptz not null,
    created_at timestamptz not null,
    triggered_by text not null default '',
    origin text not null default '',
    labels jsonb not null default '{}',
    payload jsonb not null default '{}',
    max_attempts integer not null,
    retry_delay interval not null,
    attempt_timeout interval not null,
    run_timeout interval not null,
    cancel_grace interval not null,
    attempt integer not null default 1,
    session_id uuid,
    claim_id bigint,
    claimed_at timestamptz,
    deadline timestamptz,
    started_at timestamptz,
    first_started_at timestamptz,
    run_deadline timestamptz,
    alone boolean not null default false,
    unstarted_returns smallint not null default 0,
    cancel_requested_at timestamptz,
    cancel_reason text,
    cancelled_by text,
    progress jsonb,
    last_error jsonb,
    check (attempt between 1 and max_attempts),
    check ((session_id is null) = (claim_id is null) and (claim_id is null) = (claimed_at is null)),
    check ((claim_id is null) = (deadline is null)),
    check (not (blocked and claim_id is not null)),
    check (started_at is null or claim_id is not null),
    check ((schedule_id is null) = (revision is null)),
    check (not exclusive or schedule_id is not null)
  );
  comment on table carillon.live_runs is
    'One row for each run that has not ended. Claiming updates it, ending deletes it: the delete is the fence.';
  comment on column carillon.live_runs.exclusive is
    'Its job''s overlap was not ALLOW_ALL: at most one such run of a schedule is live and unblocked.';
  comment on column carillon.live_runs.blocked is 'It waits for an earlier run of its schedule to end.';
  comment on column carillon.live_runs.run_after is 'Not claimed before: nominal instant plus jitter, or the retry''s time.';
  comment on column carillon.live_runs.claim_id is 'The fencing token; every claim has a new one.';
  comment on column carillon.live_runs.deadline is 'When the current attempt is overdue. Set by the claim, again by the start.';
  comment on column carillon.live_runs.run_deadline is 'When the run is overdue whatever it does. Set by its first start.';
  comment on column carillon.live_runs.alone is 'A lost session held it: it is handed over in a claim of its own.';
  create unique index live_runs_one_per_schedule on carillon.live_runs (schedule_id) where exclusive and not blocked;
  create index live_runs_claimable on carillon.live_runs (route, run_after, run_id)
    where session_id is null and not blocked;
  create index live_runs_held on carillon.live_runs (session_id) where session_id is not null;
  create index live_runs_cancelling on carillon.live_runs (run_id) where cancel_requested_at is not null;
  create index live_runs_run_deadline on carillon.live_runs (run_deadline)
    where run_deadline is not null and session_id is null;
  -- Dead entries at the left edge of the claimable index slow small claims, and a rewritten row wants room beside it.
  alter table carillon.live_runs set
    (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);

  create table carillon.runs (
    run_id uuid not null,
    schedule_id bigint,
    revision integer,
    job_id bigint not null,
    tenant_id text not null,
    state carillon.outcome not null,
    trigger carillon.trigger_source not null,
    scheduled_for timestamptz not null,
    scheduled_local timestamp,
    fold smallint,
    time_zone text,
    tzdata text,
    run_after timestamptz not null,
    created_at timestamptz not null,
    started_at timestamptz,
    finished_at timestamptz not null,
    duration interval,
    triggered_by text not null,
    origin text not null,
    labels jsonb not null,
    payload jsonb not null,
    attempt integer not null,
    max_attempts integer not null,
    worker text not null default '',
    items_processed bigint not null default 0,
    items_succeeded bigint not null default 0,
    items_failed bigint not null default 0,
    metrics jsonb not null default '{}',
    metadata jsonb not null default '{}',
    error jsonb,
    cancel_requested_at timestamptz,
    claim_id bigint,
    result_digest bytea,
    primary key (run_id),
    check (finished_at >= created_at),
    check (state <> 'COMPLETED' or error is null)
  ) partition by range (run_id);
  comment on table carillon.runs is
    'The record: one row for each run that ended, written once by the statement that deletes its live row. Append-only; partitioned by the month in its id.';
  create index runs_by_job on carillon.runs (job_id, run_id);
  create index runs_by_tenant on carillon.runs (tenant_id, run_id) where tenant_id <> '-';
  create index runs_by_finish on carillon.runs using brin (finished_at) with (pages_per_range = 16, autosummarize = on);

  create table carillon.attempts (
    run_id uuid not null,
    attempt integer not null,
    job_id bigint not null,
    tenant_id text not null,
    started_at timestamptz,
    finished_at timestamptz not null,
    duration interval,
    worker text not null,
    error jsonb not null,
    claim_id bigint,
    result_digest bytea,
    primary key (run_id, attempt)
  ) partition by range (run_id);
  comment on table carillon.attempts is
    'Attempts that did not end their run; the last one stands in runs. Append-only; partitioned as runs.';

  create table carillon.items (
    run_id uuid not null,
    attempt integer not null,
    key text not null check (length(key) between 1 and 256),
    job_id bigint not null,
    tenant_id text not null,
    succeeded boolean not null,
    error text not null default '',
    finished_at timestamptz not null,
    primary key (run_id, attempt, key)
  ) partition by range (run_id);
  comment on table carillon.items is 'Results of items inside runs. Append-only; partitioned as runs.';

  create table carillon.gaps (
    schedule_id bigint not null references carillon.schedules on delete cascade,
    first_at timestamptz not null,
    last_at timestamptz not null,
    occurrences bigint not null check (occurrences > 0),
    reason text not null check (reason in ('CATCH_UP_NONE', 'CATCH_UP_LATEST', 'OUTSIDE_WINDOW')),
    revision integer not null,
    recorded_at timestamptz not null,
    primary key (schedule_id, first_at),
    check (first_at <= last_at)
  );
  comment on table carillon.gaps is 'Stretches of owed occurrences that became no run (MISSED). Append-only.';

  create table carillon.run_keys (
    job_id bigint not null references carillon.jobs,
    tenant_id text not null,
    run_key text not null check (length(run_key) between 1 and 200),
    run_id uuid not null,
    created_at timestamptz not null,
    primary key (job_id, tenant_id, run_key)
  );

  create table carillon.job_stats (
    job_id bigint not null references carillon.jobs,
    hour timestamptz not null,
    state carillon.outcome not null,
    runs bigint not null,
    timed bigint not null,
    total_duration interval not null,
    longest_duration interval not null,
    items_processed bigint not null,
    items_succeeded bigint not null,
    items_failed bigint not null,
    last_finished_at timestamptz not null
  );
  comment on table carillon.job_stats is
    'Counts of ended runs by job, hour and outcome. Appended by a trigger for each batch; a loop folds rows of one key into one.';
  create index job_stats_by_job on carillon.job_stats (job_id, hour);
  create index job_stats_by_hour on carillon.job_stats (hour, job_id, state);

  -- A batch of records becomes a few rows here: a trigger for each row cost ten times as much, and deadlocked.
  create function carillon.count_ended_runs() returns trigger language plpgsql
    set search_path = pg_catalog, pg_temp as $function$
  begin
    insert into carillon.job_stats
      select job_id, date_trunc('hour', finished_at, 'UTC'), state, count(*), count(duration),
             coalesce(sum(duration), interval '0'), coalesce(max(duration), interval '0'),
             sum(items_processed), sum(items_succeeded), sum(items_failed), max(finished_at)
      from ended where trigger <> 'TEST'
      group by 1, 2, 3;
    return null;
  end
  $function$;
  create trigger runs_are_counted after insert on carillon.runs
    referencing new table as ended for each statement execute function carillon.count_ended_runs();

  create function carillon.id_floor(instant timestamptz) returns uuid language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp as $function$
    select rpad(lpad(to_hex((extract(epoch from instant) * 1000)::bigint), 12, '0'), 32, '0')::uuid
  $function$;
  comment on function carillon.id_floor is 'The smallest run id of an instant: its milliseconds, then zeros.';

  create function carillon.create_partitions(months_ahead integer default 3) returns integer
    language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $function$
  declare
    -- One month back, so that runs that were due just before the first start have their place.
    month timestamp := date_trunc('month', now() at time zone 'UTC') - interval '1 month';
    parent text;
    partition text;
    created integer := 0;
  begin
    if months_ahead not between 0 and 24 then
      raise exception 'months_ahead is % and must be from 0 to 24', months_ahead;
    end if;
    -- Replicas that start together would otherwise make the same partition twice.
    perform pg_advisory_xact_lock(hashtext('carillon.create_partitions'));
    while month <= date_trunc('month', now() at time zone 'UTC') + make_interval(months => months_ahead) loop
      foreach parent in array array['runs', 'attempts', 'items'] loop
        partition := parent || to_char(month, '"_"YYYY"_"MM');
        continue when to_regclass('carillon.' || partition) is not null;
        -- Made beside the parent and attached: making it in place would lock out every reader of the parent.
        execute format('create table carillon.%I (like carillon.%I including all)', partition, parent);
        execute format('alter table carillon.%I enable row level security, force row level security', partition);
        execute format('alter table carillon.%I attach partition carillon.%I for values from (%L) to (%L)',
          parent, partition, carillon.id_floor(month at time zone 'UTC'),
          carillon.id_floor((month + interval '1 month') at time zone 'UTC'));
        created := created + 1;
      end loop;
      month := month + interval '1 month';
    end loop;
    return created;
  end
  $function$;
  comment on function carillon.create_partitions is
    'Makes the months'' partitions that are missing, up to months_ahead; answers how many. Called at start and daily.';
  revoke execute on function carillon.create_partitions from public;
  grant execute on function carillon.create_partitions to carillon_engine;
  perform carillon.create_partitions();

  insert into carillon.migrations (number, name) values (3, 'runs');
end
$migration$;
