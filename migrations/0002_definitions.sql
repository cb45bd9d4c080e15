-- What is owed: services, their jobs, and schedules.
do $migration$
begin
  if exists (select from carillon.migrations where number = 2) then return; end if;
  set local role carillon_owner;

  create type carillon.overlap as enum ('SKIP', 'BUFFER_ONE', 'BUFFER_ALL', 'CANCEL_OTHER', 'ALLOW_ALL');
  create type carillon.catch_up as enum ('NONE', 'LATEST', 'ALL');

  create table carillon.services (
    service text primary key check (service ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    base_url text not null default '',
    generation bigint not null default 0 check (generation >= 0),
    registered_at timestamptz not null,
    registered_by text not null
  );
  comment on table carillon.services is 'Programs that own jobs. One row for each; changed by each registration.';
  comment on column carillon.services.generation is 'Which deploy registered last; only grows.';

  create table carillon.jobs (
    job_id bigint generated always as identity primary key,
    service text not null references carillon.services,
    job text not null check (job ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    declared jsonb not null,
    overrides jsonb not null default '{}',
    -- What follows from the two above and the defaults; written with them, read by the tick and the dispatcher.
    route text not null,
    endpoint text not null default '',
    overlap carillon.overlap not null,
    catch_up carillon.catch_up not null default 'LATEST',
    catch_up_window interval not null default interval '1 day' check (catch_up_window >= interval '0'),
    attempt_timeout interval not null check (attempt_timeout > interval '0'),
    run_timeout interval not null check (run_timeout > interval '0'),
    cancel_grace interval not null check (cancel_grace >= interval '0'),
    max_attempts integer not null check (max_attempts between 1 and 100),
    retry_delay interval not null check (retry_delay >= interval '0'),
    tenant_schedules boolean not null,
    labels jsonb not null,
    config jsonb not null,
    generation bigint not null,
    owed_from timestamptz not null,
    paused_at timestamptz,
    archived_at timestamptz,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    unique (service, job)
  );
  comment on column carillon.jobs.declared is 'The JobSpec from code; replaced by registration only.';
  comment on column carillon.jobs.overrides is 'What operators changed; registration never touches it.';
  comment on column carillon.jobs.owed_from is
    'Its schedules owe nothing before this: when the job was created, last resumed or brought back.';

  create table carillon.schedules (
    schedule_id bigint generated always as identity primary key,
    job_id bigint not null references carillon.jobs,
    tenant_id text not null check (tenant_id = '-' or tenant_id ~ '^[A-Za-z0-9][A-Za-z0-9._:@|-]{0,127}$'),
    schedule text not null check (schedule ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    timing jsonb not null,
    enabled boolean not null,
    config jsonb not null default '{}',
    labels jsonb not null default '{}',
    -- `timing` with every default filled in. Changes only together with `revision`.
    cron text not null check (octet_length(cron) between 1 and 256),
    time_zone text not null,
    gap text not null check (gap in ('SHIFT', 'SKIP')),
    repeat text not null check (repeat in ('FIRST', 'BOTH')),
    phase interval not null check (phase >= interval '0'),
    jitter interval not null check (jitter between interval '0' and interval '1 hour'),
    revision integer not null default 1 check (revision > 0),
    settled_to timestamptz not null,
    next_run_at timestamptz,
    set_aside_reason text,
    created_at timestamptz not null,
    created_by text not null,
    updated_at timestamptz not null,
    updated_by text not null,
    unique (job_id, tenant_id, schedule),
    check (next_run_at is null or enabled),
    check (set_aside_reason is null or next_run_at is null)
  );
  comment on column carillon.schedules.timing is 'What was asked for; fields that are missing follow the job.';
  comment on column carillon.schedules.settled_to is
    'Every occurrence up to this nominal instant has its outcome. Only moves forward, in the transaction that writes the outcomes.';
  comment on column carillon.schedules.next_run_at is
    'The next occurrence plus jitter. Null: not armed (disabled, never due again, or set aside).';
  create index schedules_due on carillon.schedules (next_run_at) where next_run_at is not null;
  create index schedules_by_tenant on carillon.schedules (tenant_id, schedule_id) where tenant_id <> '-';
  alter table carillon.schedules set (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);

  create table carillon.schedule_revisions (
    schedule_id bigint not null references carillon.schedules on delete cascade,
    revision integer not null,
    enabled boolean not null,
    cron text not null,
    time_zone text not null,
    gap text not null,
    repeat text not null,
    phase interval not null,
    jitter interval not null,
    in_force_from timestamptz not null,
    changed_by text not null,
    primary key (schedule_id, revision)
  );
  comment on table carillon.schedule_revisions is
    'Each timing a schedule ever had, from when on; what was owed at any time follows from it. Append-only.';

  create table carillon.requests (
    principal text not null,
    request_id text not null,
    digest bytea not null,
    response bytea not null,
    created_at timestamptz not null,
    primary key (principal, request_id)
  );
  comment on table carillon.requests is 'Answers to mutations with a request_id, kept for 24 h.';
  create index requests_by_age on carillon.requests (created_at);

  insert into carillon.migrations (number, name) values (2, 'definitions');
end
$migration$;
