-- Who calls, and who changed what: service tokens, users, and the audit trail. What never changes, and what people ask.
do $migration$
declare
  -- What never changes.
  records constant text[] := array['runs', 'attempts', 'items', 'gaps', 'remedies', 'schedule_revisions',
    'job_changes', 'audit_events', 'audit_seals'];
  give_up_at constant timestamptz := clock_timestamp() + interval '0.9 s';
  unchanging regclass;
begin
  if exists (select from carillon.migrations where number = 6) then return; end if;
  set local role carillon_owner;

  -- First of all, and within 0.9 s together: whoever comes meanwhile waits behind us, and where a run's completion and
  -- we wait for each other, it is us who give way (deadlock_timeout is 1 s).
  for unchanging in
    select c.oid::regclass from pg_class c left join pg_inherits i on i.inhrelid = c.oid
      join pg_class p on p.oid = coalesce(i.inhparent, c.oid)
    where c.relkind in ('r', 'p') and p.relnamespace = 'carillon'::regnamespace and p.relname = any (records)
  loop
    perform set_config('lock_timeout', greatest(1, ceil(1000 * extract(epoch from
      give_up_at - clock_timestamp())))::text, true);
    execute format('lock table only %s in share row exclusive mode', unchanging);
  end loop;

  create table carillon.service_tokens (
    token_id text primary key check (token_id ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    service text not null check (service = '*' or service ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
    scopes text[] not null check (cardinality(scopes) > 0
      and scopes <@ array['register', 'trigger', 'read', 'coverage', 'work']),
    secret_hash bytea not null check (octet_length(secret_hash) = 32),
    description text not null default '' check (length(description) <= 200),
    created_at timestamptz not null,
    created_by text not null,
    expires_at timestamptz,
    revoked_at timestamptz,
    revoked_by text not null default '',
    last_used_at timestamptz,
    replaces text unique references carillon.service_tokens,
    check (service <> '*' or scopes = array['work'])
  );
  comment on table carillon.service_tokens is
    'Tokens that services and workers show. Managed by `python -m scheduler_service tokens`; read by every replica each second or two.';
  comment on column carillon.service_tokens.service is 'What it is bound to; ''*'': a worker for all.';
  comment on column carillon.service_tokens.secret_hash is 'SHA-256 of the secret, which has 256 random bits and is kept nowhere.';
  comment on column carillon.service_tokens.expires_at is 'Not accepted from then on. Rotation sets it on the old token.';
  comment on column carillon.service_tokens.replaces is 'The token that it was rotated from: each is rotated once at most.';
  comment on column carillon.service_tokens.last_used_at is 'Written at most once a minute for each token.';

  create table carillon.users (
    subject text primary key check (length(subject) between 1 and 255),
    role text not null check (role in ('admin', 'user')),
    tenant_id text check (tenant_id ~ '^[A-Za-z0-9][A-Za-z0-9._:@|-]{0,127}$'),
    created_at timestamptz not null,
    updated_at timestamptz not null,
    updated_by text not null,
    check ((role = 'user') = (tenant_id is not null))
  );
  comment on table carillon.users is
    'What the subjects of JWTs may do, where JWTs do not say it themselves. Managed by `python -m scheduler_service users`.';

  create table carillon.audit_events (
    event_id bigint generated always as identity primary key,
    event_at timestamptz not null default clock_timestamp() check (isfinite(event_at)),
    principal text not null,
    action text not null,
    resource text not null,
    tenant_id text not null default '',
    before jsonb check (octet_length(before::text) <= 8388608),
    after jsonb check (octet_length(after::text) <= 8388608),
    request_id text not null,
    address text not null,
    -- The sealer reads every event whole. The scheduler's own stay far below.
    constraint audit_events_texts_check check (octet_length(principal) + octet_length(action) + octet_length(resource)
      + octet_length(tenant_id) + octet_length(request_id) + octet_length(address) <= 65536)
  );
  comment on table carillon.audit_events is
    'Every change by anyone, written in the change''s own transaction. Append-only.';
  create index audit_events_by_principal on carillon.audit_events (principal, event_id);
  create index audit_events_by_resource on carillon.audit_events (resource text_pattern_ops, event_id);
  create index audit_events_by_tenant on carillon.audit_events (tenant_id, event_id) where tenant_id <> '';
  create index audit_events_by_request on carillon.audit_events (request_id);
  create index audit_events_by_time on carillon.audit_events using brin (event_at) with (autosummarize = on);

  -- Its rows stay for a second: what they leave behind is swept up soon, since each look would wade through it.
  create table carillon.audit_unsealed (event_id bigint primary key references carillon.audit_events)
    with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
  comment on table carillon.audit_unsealed is
    'Events that wait for their seal. A trigger adds them with the event; the sealer takes them away with the seal.';

  create table carillon.audit_seals (
    position bigint primary key check (position > 0),
    event_id bigint not null unique,
    hash bytea not null check (octet_length(hash) = 32),
    sealed_at timestamptz not null
  );
  comment on table carillon.audit_seals is
    'The chain over the committed events: each hash is made of the one before and its event (docs/security.md). Append-only.';

  create function carillon.queue_audit_events() returns trigger language plpgsql
    set search_path = pg_catalog, pg_temp as $function$
  begin
    insert into carillon.audit_unsealed select event_id from added;
    return null;
  end
  $function$;
  create trigger audit_events_are_queued after insert on carillon.audit_events
    referencing new table as added for each statement execute function carillon.queue_audit_events();
  -- Also where a session says session_replication_role = replica.
  alter table carillon.audit_events enable always trigger audit_events_are_queued;

  create function carillon.refuse_change() returns trigger language plpgsql
    set search_path = pg_catalog, pg_temp as $function$
  begin
    -- Only clear_payloads acts as carillon_retention. Whoever becomes it, as a superuser can, has said so to the session.
    if current_user = 'carillon_retention' and session_user <> 'carillon_retention'
      and current_setting('role') <> 'carillon_retention' and tg_op <> 'TRUNCATE' then return null; end if;
    raise exception 'carillon.% is a record of what happened: its rows are never changed or removed', tg_table_name
      using errcode = 'insufficient_privilege', hint = 'Aged months go by carillon.drop_partitions(older_than), '
        'aged payloads by carillon.clear_payloads(job, before).';
  end
  $function$;
  for unchanging in
    select c.oid::regclass from pg_class c left join pg_inherits i on i.inhrelid = c.oid
      join pg_class p on p.oid = coalesce(i.inhparent, c.oid)
    where c.relkind in ('r', 'p') and p.relnamespace = 'carillon'::regnamespace and p.relname = any (records)
  loop
    -- For each statement, so that it speaks up also where policies hide the rows, as from the owner.
    execute format('create trigger never_change before update or delete or truncate on %s'
      ' for each statement execute function carillon.refuse_change()', unchanging);
    execute format('alter table %s enable always trigger never_change', unchanging);
  end loop;

  create or replace function carillon.create_partitions(months_ahead integer default 3) returns integer
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
        -- A partition inherits neither of these.
        execute format('alter table carillon.%I enable row level security, force row level security', partition);
        execute format('create trigger never_change before update or delete or truncate on carillon.%I'
          ' for each statement execute function carillon.refuse_change()', partition);
        execute format('alter table carillon.%I enable always trigger never_change', partition);
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

  create function carillon.record_as_login(action text, resource text, before jsonb) returns void
    language sql set search_path = pg_catalog, pg_temp as $function$
    insert into carillon.audit_events (principal, action, resource, before, request_id, address)
    values ('role:' || session_user, action, resource, before, gen_random_uuid()::text,
            coalesce(host(inet_client_addr()), 'local'))
  $function$;
  comment on function carillon.record_as_login is
    'Writes an audit event in the name of the login role, which no setting can change.';

  create function carillon.drop_partitions(older_than interval) returns integer
    -- Shorter than deadlock_timeout: whoever completes runs meanwhile is never the one that has to give way.
    language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '500ms' as $function$
  declare
    -- The month before this one is still written to: catch-up reaches back to its beginning.
    horizon timestamp := least(now() at time zone 'UTC' - older_than,
                               date_trunc('month', now() at time zone 'UTC') - interval '1 month');
    records constant regclass[] := array['carillon.runs', 'carillon.attempts', 'carillon.items'];
    readers text[];
    month timestamp;
    partition text;
    dropped text[];
  begin
    if older_than is null or older_than < interval '30 days' then
      raise exception 'older_than is % and must be at least 30 days', coalesce(older_than::text, 'null')
        using errcode = 'invalid_parameter_value';
    end if;
    if not pg_try_advisory_xact_lock(hashtext('carillon.drop_partitions')) then return 0; end if;
    -- Whoever reads for long would have everyone wait behind us in vain.
    select array_agg(l.virtualtransaction) into readers from pg_locks l join pg_database d on d.oid = l.database
      where d.datname = current_database() and l.relation = any (records) and l.pid <> pg_backend_pid();
    if readers is not null then
      perform pg_sleep(0.5);
      if exists (select from pg_locks l join pg_database d on d.oid = l.database
                 where d.datname = current_database() and l.relation = any (records)
                   and l.virtualtransaction = any (readers)) then
        raise exception 'somebody has been reading the records for half a second'
          using errcode = 'lock_not_available';
      end if;
    end if;
    for month in
      select distinct to_date(right(c.relname, 7), 'YYYY_MM')::timestamp
      from pg_inherits i join pg_class c on c.oid = i.inhrelid
      where i.inhparent = any (records)
        and c.relkind = 'r' and to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month' <= horizon
      order by 1
    loop
      -- Nobody adds a run of that month between the look and the drop.
      lock table carillon.live_runs in share mode;
      continue when exists (select from carillon.live_runs
        where run_id >= carillon.id_floor(month at time zone 'UTC')
          and run_id < carillon.id_floor((month + interval '1 month') at time zone 'UTC'));
      foreach partition in array array['items', 'attempts', 'runs'] loop
        partition := partition || to_char(month, '"_"YYYY"_"MM');
        continue when to_regclass('carillon.' || partition) is null;
        execute format('drop table carillon.%I', partition);
        dropped := dropped || partition;
      end loop;
      perform carillon.record_as_login('DropPartitions', 'partitions/' || to_char(month, 'YYYY-MM'),
        jsonb_build_object('tables', dropped));
      return cardinality(dropped);
    end loop;
    return 0;
  end
  $function$;
  comment on function carillon.drop_partitions is
    'Drops the records of the oldest month that ended longer ago than older_than and that no live run is of; answers how many tables that were. Call it until it answers 0. Leaves an audit event.';

  create function carillon.clear_payloads(job text, before timestamptz) returns bigint
    language plpgsql security definer set search_path = pg_catalog, pg_temp as $function$
  declare
    cleared constant jsonb := '{"message": "cleared, since it is older than its job keeps it", "detail": ""}';
    until constant uuid := carillon.id_floor(before);
    wanted bigint;
    runs bigint;
    attempts bigint;
    items bigint;
  begin
    if before is null or before > now() - interval '1 day' then
      raise exception 'before is % and must be at least a day ago', coalesce(before::text, 'null')
        using errcode = 'invalid_parameter_value';
    end if;
    select j.job_id into wanted from carillon.jobs j where j.service || '/' || j.job = clear_payloads.job;
    if wanted is null then
      raise exception 'there is no job %; write service/job', coalesce(job, 'null') using errcode = 'no_data_found';
    end if;
    update carillon.runs r set payload = '{}', metadata = '{}', error = r.error || cleared
      where r.job_id = wanted and r.run_id < until
        and (r.payload <> '{}' or r.metadata <> '{}' or r.error <> r.error || cleared);
    get diagnostics runs = row_count;
    -- What live runs have so far stays with them.
    update carillon.attempts a set error = a.error || cleared
      where a.job_id = wanted and a.run_id < until and a.error <> a.error || cleared
        and not exists (select from carillon.live_runs l where l.run_id = a.run_id);
    get diagnostics attempts = row_count;
    delete from carillon.items i where i.job_id = wanted and i.run_id < until
      and not exists (select from carillon.live_runs l where l.run_id = i.run_id);
    get diagnostics items = row_count;
    if runs + attempts + items > 0 then
      perform carillon.record_as_login('ClearPayloads',
        'services/' || split_part(job, '/', 1) || '/jobs/' || split_part(job, '/', 2),
        jsonb_build_object('before', before, 'runs', runs, 'attempts', attempts, 'items', items));
    end if;
    return runs;
  end
  $function$;
  comment on function carillon.clear_payloads is
    'Clears what the ended runs of a job (service/job) from before an instant, by their ids, were given and said: payload, metadata, error texts, items. Outcomes, times and counts stay. Answers how many runs; leaves an audit event.';

  -- For people who ask by SQL.
  create function carillon.job_named(name text) returns bigint language plpgsql stable
    set search_path = pg_catalog, pg_temp as $function$
  declare
    ids bigint[];
    names text;
  begin
    select array_agg(j.job_id), string_agg(j.service || '/' || j.job, ', ' order by j.service) into ids, names
      from carillon.jobs j where name in (j.job, j.service || '/' || j.job);
    if ids is null then
      raise exception 'there is no job named %', coalesce(name, 'null')
        using errcode = 'no_data_found', hint = 'All names: select service, job from carillon.job_status';
    elsif cardinality(ids) > 1 then
      raise exception 'several jobs are named %: %', name, names
        using errcode = 'ambiguous_parameter', hint = 'Say which one as service/job.';
    end if;
    return ids[1];
  end
  $function$;
  comment on function carillon.job_named is
    'The one job of that name (service/job, or job alone) among those that the caller sees.';

  create function carillon.rows_asked_for(name text, rows integer) returns bigint language plpgsql immutable
    set search_path = pg_catalog, pg_temp as $function$
  begin
    if rows is null or rows < 0 then
      raise exception '"%" is % and must be 0 or more', name, coalesce(rows::text, 'null')
        using errcode = 'invalid_parameter_value';
    end if;
    return rows;
  end
  $function$;
  comment on function carillon.rows_asked_for is 'A number of rows that somebody asked for, if there can be so many.';

  create function carillon.get_job_execution_history(job text, "limit" integer default 50, "offset" integer default 0)
    returns table (id uuid, job_name text, status text, started_at timestamptz, completed_at timestamptz,
      duration_ms bigint, items_processed bigint, items_succeeded bigint, items_failed bigint, error_message text,
      triggered_by text, triggered_by_user text, metadata jsonb)
    language sql stable set search_path = pg_catalog, pg_temp as $function$
    select r.run_id, j.service || '/' || j.job, lower(r.state), r.started_at, r.finished_at,
      round(extract(epoch from r.duration) * 1000)::bigint, r.items_processed, r.items_succeeded, r.items_failed,
      nullif(r.error ->> 'message', ''),
      case when r.trigger in ('SCHEDULE', 'CATCH_UP') then 'scheduler' else lower(r.trigger::text) end,
      substring(r.triggered_by from '^(?:admin|user):(.*)$'), r.metadata
    from (select carillon.job_named(job) as job_id) named join carillon.jobs j using (job_id) cross join lateral (
      (select e.run_id, e.state::text, e.started_at, e.finished_at, e.duration, e.items_processed, e.items_succeeded,
         e.items_failed, e.error, e.trigger, e.triggered_by, e.metadata
       from carillon.runs e where e.job_id = j.job_id
       order by e.run_id desc limit carillon.rows_asked_for('limit', get_job_execution_history."limit")
         + carillon.rows_asked_for('offset', get_job_execution_history."offset"))
      union all
      select l.run_id, case when l.claim_id is null then 'PENDING' else 'RUNNING' end, l.first_started_at, null, null,
        null, null, null, l.last_error, l.trigger, l.triggered_by, '{}'
      from carillon.live_runs l where l.job_id = j.job_id) r
    order by r.run_id desc limit carillon.rows_asked_for('limit', get_job_execution_history."limit")
      offset carillon.rows_asked_for('offset', get_job_execution_history."offset")
  $function$;
  comment on function carillon.get_job_execution_history is
    'Runs of a job (service/job, or job alone where that is one), newest first, those that have not ended too. "limit": how many; "offset": how many newer ones to leave out.';

  create function carillon.get_job_execution_stats(job text, since timestamptz default now() - interval '30 days')
    returns table (job_name text, total_runs bigint, completed_runs bigint, failed_runs bigint, cancelled_runs bigint,
      skipped_runs bigint, success_percent numeric, average_duration_ms bigint, longest_duration_ms bigint,
      items_processed bigint, items_succeeded bigint, items_failed bigint, last_completed_at timestamptz)
    language sql stable set search_path = pg_catalog, pg_temp as $function$
    select min(j.service || '/' || j.job), coalesce(sum(s.runs), 0)::bigint,
      coalesce(sum(s.runs) filter (where s.state = 'COMPLETED'), 0)::bigint,
      coalesce(sum(s.runs) filter (where s.state = 'FAILED'), 0)::bigint,
      coalesce(sum(s.runs) filter (where s.state = 'CANCELLED'), 0)::bigint,
      coalesce(sum(s.runs) filter (where s.state = 'SKIPPED'), 0)::bigint,
      round(100 * coalesce(sum(s.runs) filter (where s.state = 'COMPLETED'), 0)
            / nullif(sum(s.runs) filter (where s.state in ('COMPLETED', 'FAILED')), 0), 1),
      round(extract(epoch from sum(s.total_duration)) * 1000 / nullif(sum(s.timed), 0))::bigint,
      round(extract(epoch from max(s.longest_duration)) * 1000)::bigint,
      coalesce(sum(s.items_processed), 0)::bigint, coalesce(sum(s.items_succeeded), 0)::bigint,
      coalesce(sum(s.items_failed), 0)::bigint, max(s.last_finished_at) filter (where s.state = 'COMPLETED')
    from (select carillon.job_named(job) as job_id) named join carillon.jobs j using (job_id)
    left join carillon.job_stats s
      on s.job_id = j.job_id and s.hour >= date_trunc('hour', since, 'UTC')
  $function$;
  comment on function carillon.get_job_execution_stats is
    'Counts of a job''s ended runs since the hour of an instant, without tests. success_percent: of those that completed or failed.';

  create view carillon.job_status with (security_invoker = true) as
    select j.service, j.job, j.paused_at, j.archived_at, next.run_at as next_run_at, last.run_id as last_run_id,
      last.state as last_state, last.finished_at as last_finished_at, coalesce(live.pending, 0) as pending,
      coalesce(live.running, 0) as running, coalesce(day.completed, 0) as completed_last_day,
      coalesce(day.failed, 0) as failed_last_day
    from carillon.jobs j
    left join lateral (select min(s.next_run_at) as run_at from carillon.schedules s where s.job_id = j.job_id) next
      on true
    left join lateral (select r.run_id, r.state, r.finished_at from carillon.runs r
      where r.job_id = j.job_id order by r.run_id desc limit 1) last on true
    left join (select l.job_id, count(*) filter (where l.claim_id is null) as pending, count(l.claim_id) as running
      from carillon.live_runs l group by l.job_id) live on live.job_id = j.job_id
    left join (select s.job_id, sum(s.runs) filter (where s.state = 'COMPLETED')::bigint as completed,
        sum(s.runs) filter (where s.state = 'FAILED')::bigint as failed
      from carillon.job_stats s where s.hour > now() - interval '1 day' group by s.job_id) day on day.job_id = j.job_id;
  comment on view carillon.job_status is 'Each job with its next and last run, and how many it has.';

  create view carillon.failed_runs with (security_invoker = true) as
    select r.run_id, j.service, j.job, nullif(r.tenant_id, '-') as tenant_id, r.scheduled_for, r.finished_at, r.attempt,
      r.worker, r.error ->> 'code' as error_code, r.error ->> 'message' as error_message
    from carillon.runs r join carillon.jobs j using (job_id) where r.state = 'FAILED';
  comment on view carillon.failed_runs is 'Runs that failed. Order by run_id desc for the newest.';

  create view carillon.waiting_runs with (security_invoker = true) as
    select l.run_id, j.service, j.job, nullif(l.tenant_id, '-') as tenant_id, l.scheduled_for, l.run_after, l.attempt,
      l.route, l.blocked, now() - l.run_after as overdue_by
    from carillon.live_runs l join carillon.jobs j using (job_id) where l.claim_id is null;
  comment on view carillon.waiting_runs is
    'Runs that no worker holds yet. overdue_by is negative for those that are not due; blocked ones wait for an earlier run of their schedule.';

  insert into carillon.migrations (number, name) values (6, 'security');
end
$migration$;
