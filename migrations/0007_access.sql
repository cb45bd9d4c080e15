-- Who may touch what: every role, every grant and every row policy, in one place (so this file is long). Nothing of
-- earlier files is left of them.
--
-- carillon_engine ticks, dispatches, completes, reaps and seals, for all tenants: its policies are `true`, because a
-- policy on a setting doubles the cost of completing a run. carillon_api serves callers; each of its transactions first
-- says on whose behalf it acts (carillon.kind, carillon.service, carillon.tenant, carillon.principal), and sees and
-- writes only that caller's rows: without the settings none. People's rights come from their login role alone.
--
-- A policy is named table_verb_who. Of carillon_api's, `who` is the kind of caller: admin, service, user, operator, or
-- caller for any of them. A caller's kind is asked in a sub-select, so that it is asked once and not for each row.
do $migration$
declare
  tables constant text[] := array['migrations', 'alembic_version', 'services', 'jobs', 'job_changes', 'schedules',
    'schedule_revisions', 'gaps', 'remedies', 'backfills', 'tenants', 'requests', 'sessions', 'live_runs', 'runs',
    'attempts', 'items', 'run_keys', 'job_stats', 'time_zone_rules', 'service_tokens', 'users', 'audit_events',
    'audit_unsealed', 'audit_seals'];
  views constant text[] := array['job_status', 'failed_runs', 'waiting_runs'];
  functions constant text[] := array['caller_is', 'caller_service', 'caller_tenant', 'caller_jobs', 'id_floor',
    'count_ended_runs', 'queue_audit_events', 'refuse_change', 'create_partitions', 'drop_partitions',
    'clear_payloads', 'record_as_login', 'job_named', 'rows_asked_for', 'get_job_execution_history',
    'get_job_execution_stats'];
  give_up_at constant timestamptz := clock_timestamp() + interval '0.9 s';
  migrator text;
  own regclass;
  own_function regprocedure;
  earlier record;
begin
  if exists (select from carillon.migrations where number = 7) then return; end if;
  set local role carillon_owner;

  -- First of all, and within 0.9 s together: whoever comes meanwhile waits behind us, and where a run's completion and
  -- we wait for each other, it is us who give way (deadlock_timeout is 1 s).
  for own in select c.oid::regclass from pg_class c
    where c.relnamespace = 'carillon'::regnamespace and c.relkind in ('r', 'p') and c.relname = any (tables)
  loop
    perform set_config('lock_timeout', greatest(1, ceil(1000 * extract(epoch from
      give_up_at - clock_timestamp())))::text, true);
    execute format('lock table only %s in access exclusive mode', own);
  end loop;

  for earlier in select tablename, policyname from pg_policies
    where schemaname = 'carillon' and tablename = any (tables)
  loop
    execute format('drop policy %I on carillon.%I', earlier.policyname, earlier.tablename);
  end loop;
  -- Only of what is Carillon's own: something of others' in the schema is let be. Backups read everything; row level
  -- security is passed by the role's attribute.
  for own in select c.oid::regclass from pg_class c left join pg_inherits i on i.inhrelid = c.oid
      left join pg_class p on p.oid = i.inhparent
    where c.relnamespace = 'carillon'::regnamespace and c.relkind in ('r', 'p', 'v')
      and coalesce(p.relname, c.relname) = any (tables || views)
  loop
    execute format('revoke all on %s from carillon_engine, carillon_api', own);
    execute format('grant select on %s to carillon_backup', own);
  end loop;
  for own in select d.objid::regclass from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'
    where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.deptype = 'i'
      and d.refobjid in (select c.oid from pg_class c
        where c.relnamespace = 'carillon'::regnamespace and c.relname = any (tables))
    union all select 'carillon.claim_ids'::regclass
  loop
    execute format('revoke all on sequence %s from carillon_engine, carillon_api', own);
    execute format('grant select on sequence %s to carillon_backup', own);
  end loop;
  alter default privileges in schema carillon grant select on tables to carillon_backup;
  alter default privileges in schema carillon grant select on sequences to carillon_backup;
  for own_function in select p.oid::regprocedure from pg_proc p
    where p.pronamespace = 'carillon'::regnamespace and p.proname = any (functions)
  loop
    execute format('revoke all on function %s from public, carillon_engine, carillon_api', own_function);
  end loop;

  grant usage on schema carillon to carillon_engine, carillon_api, carillon_auditor, carillon_backup,
    carillon_retention;
  grant usage on sequence carillon.claim_ids to carillon_engine;

  -- Functions. Triggers' own need no grant.
  grant execute on function carillon.id_floor to carillon_engine, carillon_api, carillon_auditor, carillon_retention;
  grant execute on function carillon.caller_is, carillon.caller_service, carillon.caller_tenant, carillon.caller_jobs
    to carillon_api;
  grant execute on function carillon.create_partitions, carillon.drop_partitions, carillon.clear_payloads
    to carillon_engine;
  grant execute on function carillon.record_as_login to carillon_retention;
  grant execute on function carillon.job_named, carillon.rows_asked_for, carillon.get_job_execution_history,
    carillon.get_job_execution_stats to carillon_auditor;
  grant select on carillon.job_status, carillon.failed_runs, carillon.waiting_runs to carillon_auditor;

  grant select on carillon.migrations to carillon_engine, carillon_api, carillon_auditor;
  create policy migrations_select_owner on carillon.migrations for select to carillon_owner using (true);
  comment on policy migrations_select_owner on carillon.migrations is
    'Migration files see which of them were applied.';
  create policy migrations_insert_owner on carillon.migrations for insert to carillon_owner with check (true);
  comment on policy migrations_insert_owner on carillon.migrations is 'Migration files write that they were applied.';
  create policy migrations_select_engine on carillon.migrations for select to carillon_engine using (true);
  comment on policy migrations_select_engine on carillon.migrations is 'The engine sees the schema''s version.';
  create policy migrations_select_caller on carillon.migrations for select to carillon_api using (true);
  comment on policy migrations_select_caller on carillon.migrations is
    'The scheduler checks the schema''s version, whoever calls.';
  create policy migrations_select_auditor on carillon.migrations for select to carillon_auditor using (true);
  comment on policy migrations_select_auditor on carillon.migrations is 'Auditors read which migrations were applied.';

  grant select on carillon.alembic_version to carillon_auditor;
  create policy alembic_version_select_owner on carillon.alembic_version for select to carillon_owner using (true);
  comment on policy alembic_version_select_owner on carillon.alembic_version is 'Alembic keeps its book.';
  create policy alembic_version_insert_owner on carillon.alembic_version for insert to carillon_owner
    with check (true);
  comment on policy alembic_version_insert_owner on carillon.alembic_version is 'Alembic keeps its book.';
  create policy alembic_version_update_owner on carillon.alembic_version for update to carillon_owner
    using (true) with check (true);
  comment on policy alembic_version_update_owner on carillon.alembic_version is 'Alembic keeps its book.';
  create policy alembic_version_delete_owner on carillon.alembic_version for delete to carillon_owner using (true);
  comment on policy alembic_version_delete_owner on carillon.alembic_version is 'Alembic keeps its book.';
  create policy alembic_version_select_auditor on carillon.alembic_version for select to carillon_auditor using (true);
  comment on policy alembic_version_select_auditor on carillon.alembic_version is 'Auditors read Alembic''s book.';

  grant select on carillon.services to carillon_engine, carillon_auditor;
  grant select, insert, update on carillon.services to carillon_api;
  create policy services_select_engine on carillon.services for select to carillon_engine using (true);
  comment on policy services_select_engine on carillon.services is 'The engine finds where services are.';
  create policy services_select_admin on carillon.services for select to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy services_select_admin on carillon.services is 'Admins see every service.';
  create policy services_select_service on carillon.services for select to carillon_api
    using (service = (select carillon.caller_service()));
  comment on policy services_select_service on carillon.services is 'A service sees itself.';
  create policy services_insert_service on carillon.services for insert to carillon_api
    with check (service = (select carillon.caller_service()));
  comment on policy services_insert_service on carillon.services is 'A service registers itself.';
  create policy services_update_service on carillon.services for update to carillon_api
    using (service = (select carillon.caller_service())) with check (service = (select carillon.caller_service()));
  comment on policy services_update_service on carillon.services is 'A service registers itself again.';
  create policy services_select_auditor on carillon.services for select to carillon_auditor using (true);
  comment on policy services_select_auditor on carillon.services is 'Auditors read every service.';

  grant select on carillon.jobs to carillon_engine, carillon_auditor;
  grant select, insert, update on carillon.jobs to carillon_api;
  grant select (job_id, service, job) on carillon.jobs to carillon_retention;
  create policy jobs_select_engine on carillon.jobs for select to carillon_engine using (true);
  comment on policy jobs_select_engine on carillon.jobs is 'The engine takes from jobs how runs behave.';
  create policy jobs_select_admin on carillon.jobs for select to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy jobs_select_admin on carillon.jobs is 'Admins see every job.';
  create policy jobs_select_service on carillon.jobs for select to carillon_api
    using (service = (select carillon.caller_service()));
  comment on policy jobs_select_service on carillon.jobs is 'A service sees its own jobs.';
  create policy jobs_select_user on carillon.jobs for select to carillon_api
    using (tenant_schedules and (select carillon.caller_tenant()) <> '');
  comment on policy jobs_select_user on carillon.jobs is 'Users see the jobs that let tenants have schedules.';
  create policy jobs_insert_service on carillon.jobs for insert to carillon_api
    with check (service = (select carillon.caller_service()));
  comment on policy jobs_insert_service on carillon.jobs is 'A service registers its own jobs.';
  create policy jobs_update_admin on carillon.jobs for update to carillon_api
    using ((select carillon.caller_is('admin'))) with check ((select carillon.caller_is('admin')));
  comment on policy jobs_update_admin on carillon.jobs is 'Admins override and pause jobs.';
  create policy jobs_update_service on carillon.jobs for update to carillon_api
    using (service = (select carillon.caller_service())) with check (service = (select carillon.caller_service()));
  comment on policy jobs_update_service on carillon.jobs is
    'A service registers its own jobs again, and archives them.';
  create policy jobs_update_user on carillon.jobs for update to carillon_api
    using (tenant_schedules and (select carillon.caller_tenant()) <> '') with check (false);
  comment on policy jobs_update_user on carillon.jobs is
    'A user who puts a schedule locks its job (FOR SHARE asks for update rights), and can change nothing of it.';
  create policy jobs_select_auditor on carillon.jobs for select to carillon_auditor using (true);
  comment on policy jobs_select_auditor on carillon.jobs is 'Auditors read every job.';
  create policy jobs_select_retention on carillon.jobs for select to carillon_retention using (true);
  comment on policy jobs_select_retention on carillon.jobs is 'clear_payloads finds the job by its name.';

  grant select on carillon.job_changes to carillon_engine, carillon_auditor;
  grant select, insert on carillon.job_changes to carillon_api;
  create policy job_changes_select_engine on carillon.job_changes for select to carillon_engine using (true);
  comment on policy job_changes_select_engine on carillon.job_changes is
    'The engine sees from when on jobs owe something.';
  create policy job_changes_select_caller on carillon.job_changes for select to carillon_api
    using (exists (select from carillon.jobs p where p.job_id = job_changes.job_id));
  comment on policy job_changes_select_caller on carillon.job_changes is
    'Who sees a job sees when it was paused and resumed.';
  create policy job_changes_insert_admin on carillon.job_changes for insert to carillon_api
    with check ((select carillon.caller_is('admin')));
  comment on policy job_changes_insert_admin on carillon.job_changes is 'Admins pause and resume jobs.';
  create policy job_changes_insert_service on carillon.job_changes for insert to carillon_api
    with check (job_id = any ((select carillon.caller_jobs())::bigint[]));
  comment on policy job_changes_insert_service on carillon.job_changes is
    'A service''s registration creates, archives and brings back its jobs.';
  create policy job_changes_select_auditor on carillon.job_changes for select to carillon_auditor using (true);
  comment on policy job_changes_select_auditor on carillon.job_changes is
    'Auditors read when jobs were paused and resumed.';

  grant select, update on carillon.schedules to carillon_engine;
  grant select, insert, update on carillon.schedules to carillon_api;
  grant select on carillon.schedules to carillon_auditor;
  create policy schedules_select_engine on carillon.schedules for select to carillon_engine using (true);
  comment on policy schedules_select_engine on carillon.schedules is 'The engine reads what is due.';
  create policy schedules_update_engine on carillon.schedules for update to carillon_engine
    using (true) with check (true);
  comment on policy schedules_update_engine on carillon.schedules is 'The engine moves schedules on.';
  create policy schedules_select_admin on carillon.schedules for select to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy schedules_select_admin on carillon.schedules is 'Admins see every schedule.';
  create policy schedules_select_service on carillon.schedules for select to carillon_api
    using (job_id = any ((select carillon.caller_jobs())::bigint[]));
  comment on policy schedules_select_service on carillon.schedules is 'A service sees the schedules of its jobs.';
  create policy schedules_select_user on carillon.schedules for select to carillon_api
    using (tenant_id = (select carillon.caller_tenant()));
  comment on policy schedules_select_user on carillon.schedules is 'Users see their tenant''s schedules.';
  create policy schedules_insert_admin on carillon.schedules for insert to carillon_api
    with check ((select carillon.caller_is('admin')));
  comment on policy schedules_insert_admin on carillon.schedules is 'Admins make schedules for anybody.';
  create policy schedules_insert_service on carillon.schedules for insert to carillon_api
    with check (job_id = any ((select carillon.caller_jobs())::bigint[]));
  comment on policy schedules_insert_service on carillon.schedules is 'A service makes schedules of its jobs.';
  create policy schedules_insert_user on carillon.schedules for insert to carillon_api
    with check (tenant_id = (select carillon.caller_tenant())
      and exists (select from carillon.jobs p where p.job_id = schedules.job_id));
  comment on policy schedules_insert_user on carillon.schedules is
    'Users make schedules for their tenant, of jobs that they see.';
  create policy schedules_update_admin on carillon.schedules for update to carillon_api
    using ((select carillon.caller_is('admin'))) with check ((select carillon.caller_is('admin')));
  comment on policy schedules_update_admin on carillon.schedules is 'Admins change every schedule.';
  create policy schedules_update_service on carillon.schedules for update to carillon_api
    using (job_id = any ((select carillon.caller_jobs())::bigint[]))
    with check (job_id = any ((select carillon.caller_jobs())::bigint[]));
  comment on policy schedules_update_service on carillon.schedules is 'A service changes the schedules of its jobs.';
  create policy schedules_update_user on carillon.schedules for update to carillon_api
    using (tenant_id = (select carillon.caller_tenant())) with check (tenant_id = (select carillon.caller_tenant()));
  comment on policy schedules_update_user on carillon.schedules is 'Users change their tenant''s schedules.';
  create policy schedules_select_auditor on carillon.schedules for select to carillon_auditor using (true);
  comment on policy schedules_select_auditor on carillon.schedules is 'Auditors read every schedule.';

  grant select on carillon.schedule_revisions to carillon_engine, carillon_auditor;
  grant select, insert on carillon.schedule_revisions to carillon_api;
  create policy schedule_revisions_select_engine on carillon.schedule_revisions for select to carillon_engine
    using (true);
  comment on policy schedule_revisions_select_engine on carillon.schedule_revisions is
    'The engine reads what was owed.';
  create policy schedule_revisions_select_caller on carillon.schedule_revisions for select to carillon_api
    using (exists (select from carillon.schedules p where p.schedule_id = schedule_revisions.schedule_id));
  comment on policy schedule_revisions_select_caller on carillon.schedule_revisions is
    'Who sees a schedule sees its revisions.';
  create policy schedule_revisions_insert_caller on carillon.schedule_revisions for insert to carillon_api
    with check (exists (select from carillon.schedules p where p.schedule_id = schedule_revisions.schedule_id));
  comment on policy schedule_revisions_insert_caller on carillon.schedule_revisions is
    'Who changes a schedule writes its next revision.';
  create policy schedule_revisions_select_auditor on carillon.schedule_revisions for select to carillon_auditor
    using (true);
  comment on policy schedule_revisions_select_auditor on carillon.schedule_revisions is
    'Auditors read every revision.';

  grant select, insert on carillon.gaps to carillon_engine;
  grant select, insert on carillon.gaps to carillon_api;
  grant select on carillon.gaps to carillon_auditor;
  create policy gaps_select_engine on carillon.gaps for select to carillon_engine using (true);
  comment on policy gaps_select_engine on carillon.gaps is 'The engine continues gaps.';
  create policy gaps_insert_engine on carillon.gaps for insert to carillon_engine with check (true);
  comment on policy gaps_insert_engine on carillon.gaps is 'The engine records what was missed.';
  create policy gaps_select_caller on carillon.gaps for select to carillon_api
    using (exists (select from carillon.schedules p where p.schedule_id = gaps.schedule_id));
  comment on policy gaps_select_caller on carillon.gaps is 'Who sees a schedule sees what it missed.';
  create policy gaps_insert_caller on carillon.gaps for insert to carillon_api
    with check (exists (select from carillon.schedules p where p.schedule_id = gaps.schedule_id));
  comment on policy gaps_insert_caller on carillon.gaps is 'Who changes a schedule first settles what it owed.';
  create policy gaps_select_auditor on carillon.gaps for select to carillon_auditor using (true);
  comment on policy gaps_select_auditor on carillon.gaps is 'Auditors read what was missed.';

  grant select, insert on carillon.remedies to carillon_api;
  grant select on carillon.remedies to carillon_auditor;
  create policy remedies_select_caller on carillon.remedies for select to carillon_api
    using (exists (select from carillon.schedules p where p.schedule_id = remedies.schedule_id));
  comment on policy remedies_select_caller on carillon.remedies is
    'Who sees a schedule sees what was run afterwards for it.';
  create policy remedies_insert_caller on carillon.remedies for insert to carillon_api
    with check (exists (select from carillon.schedules p where p.schedule_id = remedies.schedule_id));
  comment on policy remedies_insert_caller on carillon.remedies is
    'Who sees a schedule may have an occurrence of it run again, where the API allows that.';
  create policy remedies_select_auditor on carillon.remedies for select to carillon_auditor using (true);
  comment on policy remedies_select_auditor on carillon.remedies is 'Auditors read what was run afterwards.';

  grant select, insert, update (cancelled_at, cancelled_by) on carillon.backfills to carillon_api;
  grant select on carillon.backfills to carillon_auditor;
  create policy backfills_select_admin on carillon.backfills for select to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy backfills_select_admin on carillon.backfills is 'Admins see every backfill.';
  create policy backfills_insert_admin on carillon.backfills for insert to carillon_api
    with check ((select carillon.caller_is('admin')));
  comment on policy backfills_insert_admin on carillon.backfills is 'Admins backfill.';
  create policy backfills_update_admin on carillon.backfills for update to carillon_api
    using ((select carillon.caller_is('admin'))) with check ((select carillon.caller_is('admin')));
  comment on policy backfills_update_admin on carillon.backfills is 'Admins cancel backfills.';
  create policy backfills_select_auditor on carillon.backfills for select to carillon_auditor using (true);
  comment on policy backfills_select_auditor on carillon.backfills is 'Auditors read every backfill.';

  grant select, insert, update, delete on carillon.tenants to carillon_api;
  grant select on carillon.tenants to carillon_auditor;
  create policy tenants_select_admin on carillon.tenants for select to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy tenants_select_admin on carillon.tenants is 'Admins see every tenant.';
  create policy tenants_select_service on carillon.tenants for select to carillon_api
    using ((select carillon.caller_service()) <> '');
  comment on policy tenants_select_service on carillon.tenants is
    'A service that registers a job arms the tenants'' schedules of it in their zones, and is shown the default of one that has none.';
  create policy tenants_select_user on carillon.tenants for select to carillon_api
    using (tenant_id = (select carillon.caller_tenant()));
  comment on policy tenants_select_user on carillon.tenants is 'Users see their own tenant.';
  create policy tenants_insert_admin on carillon.tenants for insert to carillon_api
    with check ((select carillon.caller_is('admin')));
  comment on policy tenants_insert_admin on carillon.tenants is 'Admins set any tenant''s zone.';
  create policy tenants_insert_user on carillon.tenants for insert to carillon_api
    with check (tenant_id = (select carillon.caller_tenant()));
  comment on policy tenants_insert_user on carillon.tenants is 'Users set their own tenant''s zone.';
  create policy tenants_update_admin on carillon.tenants for update to carillon_api
    using ((select carillon.caller_is('admin'))) with check ((select carillon.caller_is('admin')));
  comment on policy tenants_update_admin on carillon.tenants is 'Admins set any tenant''s zone.';
  create policy tenants_update_user on carillon.tenants for update to carillon_api
    using (tenant_id = (select carillon.caller_tenant())) with check (tenant_id = (select carillon.caller_tenant()));
  comment on policy tenants_update_user on carillon.tenants is 'Users set their own tenant''s zone.';
  create policy tenants_delete_admin on carillon.tenants for delete to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy tenants_delete_admin on carillon.tenants is 'Admins remove tenants.';
  create policy tenants_select_auditor on carillon.tenants for select to carillon_auditor using (true);
  comment on policy tenants_select_auditor on carillon.tenants is 'Auditors read every tenant.';

  grant select, delete on carillon.requests to carillon_engine;
  grant select, insert on carillon.requests to carillon_api;
  grant select on carillon.requests to carillon_auditor;
  create policy requests_select_engine on carillon.requests for select to carillon_engine using (true);
  comment on policy requests_select_engine on carillon.requests is 'The engine finds answers that have grown old.';
  create policy requests_delete_engine on carillon.requests for delete to carillon_engine using (true);
  comment on policy requests_delete_engine on carillon.requests is 'The engine forgets them.';
  create policy requests_select_caller on carillon.requests for select to carillon_api
    using (principal = (select current_setting('carillon.principal', true)));
  comment on policy requests_select_caller on carillon.requests is 'Each caller sees the answers to its own requests.';
  create policy requests_insert_caller on carillon.requests for insert to carillon_api
    with check (principal = (select current_setting('carillon.principal', true)));
  comment on policy requests_insert_caller on carillon.requests is
    'Each caller''s answers are kept under its own name.';
  create policy requests_select_auditor on carillon.requests for select to carillon_auditor using (true);
  comment on policy requests_select_auditor on carillon.requests is 'Auditors read the answers that are kept.';

  grant select, insert, update, delete on carillon.sessions to carillon_engine;
  grant select (session_id, worker) on carillon.sessions to carillon_api;
  grant select on carillon.sessions to carillon_auditor;
  create policy sessions_select_engine on carillon.sessions for select to carillon_engine using (true);
  comment on policy sessions_select_engine on carillon.sessions is 'The engine reads workers'' leases.';
  create policy sessions_insert_engine on carillon.sessions for insert to carillon_engine with check (true);
  comment on policy sessions_insert_engine on carillon.sessions is 'The engine opens sessions.';
  create policy sessions_update_engine on carillon.sessions for update to carillon_engine
    using (true) with check (true);
  comment on policy sessions_update_engine on carillon.sessions is 'The engine extends leases.';
  create policy sessions_delete_engine on carillon.sessions for delete to carillon_engine using (true);
  comment on policy sessions_delete_engine on carillon.sessions is 'The engine ends leases.';
  create policy sessions_select_admin on carillon.sessions for select to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy sessions_select_admin on carillon.sessions is 'Admins see workers'' names.';
  create policy sessions_select_caller on carillon.sessions for select to carillon_api
    using (exists (select from carillon.live_runs r where r.session_id = sessions.session_id));
  comment on policy sessions_select_caller on carillon.sessions is
    'Who sees a live run sees the name of the worker that holds it.';
  create policy sessions_select_auditor on carillon.sessions for select to carillon_auditor using (true);
  comment on policy sessions_select_auditor on carillon.sessions is 'Auditors read every session.';

  grant select, insert, update, delete on carillon.live_runs to carillon_engine, carillon_api;
  grant select on carillon.live_runs to carillon_auditor;
  grant select (run_id) on carillon.live_runs to carillon_retention;
  create policy live_runs_select_engine on carillon.live_runs for select to carillon_engine using (true);
  comment on policy live_runs_select_engine on carillon.live_runs is 'The engine reads what waits.';
  create policy live_runs_insert_engine on carillon.live_runs for insert to carillon_engine with check (true);
  comment on policy live_runs_insert_engine on carillon.live_runs is 'The engine makes runs of occurrences.';
  create policy live_runs_update_engine on carillon.live_runs for update to carillon_engine
    using (true) with check (true);
  comment on policy live_runs_update_engine on carillon.live_runs is 'The engine claims, retries and unblocks.';
  create policy live_runs_delete_engine on carillon.live_runs for delete to carillon_engine using (true);
  comment on policy live_runs_delete_engine on carillon.live_runs is 'The engine ends runs.';
  create policy live_runs_select_admin on carillon.live_runs for select to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy live_runs_select_admin on carillon.live_runs is 'Admins see every live run.';
  create policy live_runs_select_service on carillon.live_runs for select to carillon_api
    using (job_id = any ((select carillon.caller_jobs())::bigint[]));
  comment on policy live_runs_select_service on carillon.live_runs is 'A service sees its jobs'' live runs.';
  create policy live_runs_select_user on carillon.live_runs for select to carillon_api
    using (tenant_id = (select carillon.caller_tenant()));
  comment on policy live_runs_select_user on carillon.live_runs is 'Users see their tenant''s live runs.';
  create policy live_runs_insert_admin on carillon.live_runs for insert to carillon_api
    with check ((select carillon.caller_is('admin')));
  comment on policy live_runs_insert_admin on carillon.live_runs is 'Admins make runs of anything.';
  create policy live_runs_insert_service on carillon.live_runs for insert to carillon_api
    with check (job_id = any ((select carillon.caller_jobs())::bigint[]));
  comment on policy live_runs_insert_service on carillon.live_runs is 'A service makes runs of its jobs.';
  create policy live_runs_insert_user on carillon.live_runs for insert to carillon_api
    with check (tenant_id = (select carillon.caller_tenant())
      and exists (select from carillon.jobs p where p.job_id = live_runs.job_id));
  comment on policy live_runs_insert_user on carillon.live_runs is
    'Users make runs for their tenant, of jobs that they see.';
  create policy live_runs_update_admin on carillon.live_runs for update to carillon_api
    using ((select carillon.caller_is('admin'))) with check ((select carillon.caller_is('admin')));
  comment on policy live_runs_update_admin on carillon.live_runs is 'Admins cancel, hold and unblock runs.';
  create policy live_runs_update_service on carillon.live_runs for update to carillon_api
    using (job_id = any ((select carillon.caller_jobs())::bigint[]))
    with check (job_id = any ((select carillon.caller_jobs())::bigint[]));
  comment on policy live_runs_update_service on carillon.live_runs is
    'A service''s registration cancels and unblocks its jobs'' runs.';
  create policy live_runs_update_user on carillon.live_runs for update to carillon_api
    using (tenant_id = (select carillon.caller_tenant())) with check (tenant_id = (select carillon.caller_tenant()));
  comment on policy live_runs_update_user on carillon.live_runs is 'Users cancel and unblock their tenant''s runs.';
  create policy live_runs_delete_admin on carillon.live_runs for delete to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy live_runs_delete_admin on carillon.live_runs is 'Admins end runs that nobody holds.';
  create policy live_runs_delete_service on carillon.live_runs for delete to carillon_api
    using (job_id = any ((select carillon.caller_jobs())::bigint[]));
  comment on policy live_runs_delete_service on carillon.live_runs is
    'A service''s registration ends runs of its jobs that nobody holds.';
  create policy live_runs_delete_user on carillon.live_runs for delete to carillon_api
    using (tenant_id = (select carillon.caller_tenant()));
  comment on policy live_runs_delete_user on carillon.live_runs is 'Users end their tenant''s runs that nobody holds.';
  create policy live_runs_select_auditor on carillon.live_runs for select to carillon_auditor using (true);
  comment on policy live_runs_select_auditor on carillon.live_runs is 'Auditors read every live run.';
  create policy live_runs_select_owner on carillon.live_runs for select to carillon_owner using (true);
  comment on policy live_runs_select_owner on carillon.live_runs is 'drop_partitions spares the months of live runs.';
  create policy live_runs_select_retention on carillon.live_runs for select to carillon_retention using (true);
  comment on policy live_runs_select_retention on carillon.live_runs is
    'clear_payloads spares what live runs have so far.';

  grant select, insert on carillon.runs to carillon_engine, carillon_api;
  grant select on carillon.runs to carillon_auditor;
    grant select (run_id, job_id, payload, metadata, error), update (payload, metadata, error) on carillon.runs to
    carillon_retention;
  create policy runs_select_engine on carillon.runs for select to carillon_engine using (true);
  comment on policy runs_select_engine on carillon.runs is 'The engine reads records.';
  create policy runs_insert_engine on carillon.runs for insert to carillon_engine with check (true);
  comment on policy runs_insert_engine on carillon.runs is 'The engine records runs that ended.';
  create policy runs_select_admin on carillon.runs for select to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy runs_select_admin on carillon.runs is 'Admins see every record.';
  create policy runs_select_service on carillon.runs for select to carillon_api
    using (job_id = any ((select carillon.caller_jobs())::bigint[]));
  comment on policy runs_select_service on carillon.runs is 'A service sees its jobs'' records.';
  create policy runs_select_user on carillon.runs for select to carillon_api
    using (tenant_id = (select carillon.caller_tenant()));
  comment on policy runs_select_user on carillon.runs is 'Users see their tenant''s records.';
  create policy runs_insert_admin on carillon.runs for insert to carillon_api
    with check ((select carillon.caller_is('admin')));
  comment on policy runs_insert_admin on carillon.runs is 'Admins end runs that nobody holds.';
  create policy runs_insert_service on carillon.runs for insert to carillon_api
    with check (job_id = any ((select carillon.caller_jobs())::bigint[]));
  comment on policy runs_insert_service on carillon.runs is 'A service ends runs of its jobs that nobody holds.';
  create policy runs_insert_user on carillon.runs for insert to carillon_api
    with check (tenant_id = (select carillon.caller_tenant())
      and exists (select from carillon.jobs p where p.job_id = runs.job_id));
  comment on policy runs_insert_user on carillon.runs is 'Users end their tenant''s runs that nobody holds.';
  create policy runs_select_auditor on carillon.runs for select to carillon_auditor using (true);
  comment on policy runs_select_auditor on carillon.runs is 'Auditors read every record.';
  create policy runs_select_retention on carillon.runs for select to carillon_retention using (true);
  comment on policy runs_select_retention on carillon.runs is 'clear_payloads finds aged runs.';
  create policy runs_update_retention on carillon.runs for update to carillon_retention using (true) with check (true);
  comment on policy runs_update_retention on carillon.runs is 'clear_payloads empties them.';

  grant select, insert on carillon.attempts to carillon_engine;
  grant select on carillon.attempts to carillon_api, carillon_auditor;
  grant select (run_id, job_id, error), update (error) on carillon.attempts to carillon_retention;
  create policy attempts_select_engine on carillon.attempts for select to carillon_engine using (true);
  comment on policy attempts_select_engine on carillon.attempts is 'The engine reads attempts.';
  create policy attempts_insert_engine on carillon.attempts for insert to carillon_engine with check (true);
  comment on policy attempts_insert_engine on carillon.attempts is 'The engine records attempts.';
  create policy attempts_select_admin on carillon.attempts for select to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy attempts_select_admin on carillon.attempts is 'Admins see all attempts.';
  create policy attempts_select_service on carillon.attempts for select to carillon_api
    using (job_id = any ((select carillon.caller_jobs())::bigint[]));
  comment on policy attempts_select_service on carillon.attempts is 'A service sees its jobs'' attempts.';
  create policy attempts_select_user on carillon.attempts for select to carillon_api
    using (tenant_id = (select carillon.caller_tenant()));
  comment on policy attempts_select_user on carillon.attempts is 'Users see their tenant''s attempts.';
  create policy attempts_select_auditor on carillon.attempts for select to carillon_auditor using (true);
  comment on policy attempts_select_auditor on carillon.attempts is 'Auditors read all attempts.';
  create policy attempts_select_retention on carillon.attempts for select to carillon_retention using (true);
  comment on policy attempts_select_retention on carillon.attempts is 'clear_payloads finds aged attempts.';
  create policy attempts_update_retention on carillon.attempts for update to carillon_retention
    using (true) with check (true);
  comment on policy attempts_update_retention on carillon.attempts is 'clear_payloads empties them.';

  grant select, insert on carillon.items to carillon_engine;
  grant select on carillon.items to carillon_api, carillon_auditor;
  grant select (run_id, job_id), delete on carillon.items to carillon_retention;
  create policy items_select_engine on carillon.items for select to carillon_engine using (true);
  comment on policy items_select_engine on carillon.items is 'The engine reads items.';
  create policy items_insert_engine on carillon.items for insert to carillon_engine with check (true);
  comment on policy items_insert_engine on carillon.items is 'The engine records items.';
  create policy items_select_admin on carillon.items for select to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy items_select_admin on carillon.items is 'Admins see all items.';
  create policy items_select_service on carillon.items for select to carillon_api
    using (job_id = any ((select carillon.caller_jobs())::bigint[]));
  comment on policy items_select_service on carillon.items is 'A service sees its jobs'' items.';
  create policy items_select_user on carillon.items for select to carillon_api
    using (tenant_id = (select carillon.caller_tenant()));
  comment on policy items_select_user on carillon.items is 'Users see their tenant''s items.';
  create policy items_select_auditor on carillon.items for select to carillon_auditor using (true);
  comment on policy items_select_auditor on carillon.items is 'Auditors read all items.';
  create policy items_select_retention on carillon.items for select to carillon_retention using (true);
  comment on policy items_select_retention on carillon.items is 'clear_payloads finds aged items.';
  create policy items_delete_retention on carillon.items for delete to carillon_retention using (true);
  comment on policy items_delete_retention on carillon.items is 'clear_payloads removes them.';

  grant select, insert on carillon.run_keys to carillon_api;
  grant select on carillon.run_keys to carillon_auditor;
  create policy run_keys_select_admin on carillon.run_keys for select to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy run_keys_select_admin on carillon.run_keys is 'Admins see every key.';
  create policy run_keys_select_service on carillon.run_keys for select to carillon_api
    using (job_id = any ((select carillon.caller_jobs())::bigint[]));
  comment on policy run_keys_select_service on carillon.run_keys is 'A service sees its jobs'' keys.';
  create policy run_keys_insert_admin on carillon.run_keys for insert to carillon_api
    with check ((select carillon.caller_is('admin')));
  comment on policy run_keys_insert_admin on carillon.run_keys is 'Admins take keys for any job.';
  create policy run_keys_insert_service on carillon.run_keys for insert to carillon_api
    with check (job_id = any ((select carillon.caller_jobs())::bigint[]));
  comment on policy run_keys_insert_service on carillon.run_keys is 'A service takes keys for its jobs.';
  create policy run_keys_select_auditor on carillon.run_keys for select to carillon_auditor using (true);
  comment on policy run_keys_select_auditor on carillon.run_keys is 'Auditors read every key.';

  grant select, insert, delete on carillon.job_stats to carillon_engine;
  grant select, insert on carillon.job_stats to carillon_api;
  grant select on carillon.job_stats to carillon_auditor;
  create policy job_stats_select_engine on carillon.job_stats for select to carillon_engine using (true);
  comment on policy job_stats_select_engine on carillon.job_stats is 'The engine reads counts.';
  create policy job_stats_insert_engine on carillon.job_stats for insert to carillon_engine with check (true);
  comment on policy job_stats_insert_engine on carillon.job_stats is 'The engine counts what it records.';
  create policy job_stats_delete_engine on carillon.job_stats for delete to carillon_engine using (true);
  comment on policy job_stats_delete_engine on carillon.job_stats is 'The engine folds many rows into one.';
  create policy job_stats_select_admin on carillon.job_stats for select to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy job_stats_select_admin on carillon.job_stats is 'Admins see every job''s counts.';
  create policy job_stats_select_service on carillon.job_stats for select to carillon_api
    using (job_id = any ((select carillon.caller_jobs())::bigint[]));
  comment on policy job_stats_select_service on carillon.job_stats is 'A service sees its jobs'' counts.';
  create policy job_stats_insert_caller on carillon.job_stats for insert to carillon_api
    with check (pg_trigger_depth() > 0 and exists (select from carillon.jobs p where p.job_id = job_stats.job_id));
  comment on policy job_stats_insert_caller on carillon.job_stats is
    'Who records a run of a job has it counted: by the trigger on runs, not by hand.';
  create policy job_stats_select_auditor on carillon.job_stats for select to carillon_auditor using (true);
  comment on policy job_stats_select_auditor on carillon.job_stats is 'Auditors read every count.';

  grant select, insert, update on carillon.time_zone_rules to carillon_engine;
  grant select on carillon.time_zone_rules to carillon_auditor;
  create policy time_zone_rules_select_engine on carillon.time_zone_rules for select to carillon_engine using (true);
  comment on policy time_zone_rules_select_engine on carillon.time_zone_rules is
    'The engine reads by which tzdata times were computed.';
  create policy time_zone_rules_insert_engine on carillon.time_zone_rules for insert to carillon_engine
    with check (true);
  comment on policy time_zone_rules_insert_engine on carillon.time_zone_rules is 'The engine records that.';
  create policy time_zone_rules_update_engine on carillon.time_zone_rules for update to carillon_engine
    using (true) with check (true);
  comment on policy time_zone_rules_update_engine on carillon.time_zone_rules is 'The engine records a newer one.';
  create policy time_zone_rules_select_auditor on carillon.time_zone_rules for select to carillon_auditor using (true);
  comment on policy time_zone_rules_select_auditor on carillon.time_zone_rules is
    'Auditors read by which tzdata times were computed.';

  alter table carillon.service_tokens enable row level security, force row level security;
  grant select, update (last_used_at) on carillon.service_tokens to carillon_engine;
    grant select (token_id, service, scopes, description, created_at, created_by, expires_at, revoked_at,
    revoked_by, last_used_at, replaces), insert, update (expires_at, revoked_at, revoked_by) on carillon.service_tokens
    to carillon_api;
    grant select (token_id, service, scopes, description, created_at, created_by, expires_at, revoked_at,
    revoked_by, last_used_at, replaces) on carillon.service_tokens to carillon_auditor;
  create policy service_tokens_select_engine on carillon.service_tokens for select to carillon_engine using (true);
  comment on policy service_tokens_select_engine on carillon.service_tokens is
    'The engine reads what tokens are accepted.';
  create policy service_tokens_update_engine on carillon.service_tokens for update to carillon_engine
    using (true) with check (true);
  comment on policy service_tokens_update_engine on carillon.service_tokens is 'The engine records their last use.';
  create policy service_tokens_select_operator on carillon.service_tokens for select to carillon_api
    using ((select carillon.caller_is('operator')));
  comment on policy service_tokens_select_operator on carillon.service_tokens is
    'Operators list tokens, without their hashes.';
  create policy service_tokens_insert_operator on carillon.service_tokens for insert to carillon_api
    with check ((select carillon.caller_is('operator')));
  comment on policy service_tokens_insert_operator on carillon.service_tokens is 'Operators make tokens.';
  create policy service_tokens_update_operator on carillon.service_tokens for update to carillon_api
    using ((select carillon.caller_is('operator'))) with check ((select carillon.caller_is('operator')));
  comment on policy service_tokens_update_operator on carillon.service_tokens is 'Operators rotate and revoke tokens.';
  create policy service_tokens_select_auditor on carillon.service_tokens for select to carillon_auditor using (true);
  comment on policy service_tokens_select_auditor on carillon.service_tokens is
    'Auditors read every token, without its hash.';

  alter table carillon.users enable row level security, force row level security;
  grant select on carillon.users to carillon_engine, carillon_auditor;
  grant select, insert, update, delete on carillon.users to carillon_api;
  create policy users_select_engine on carillon.users for select to carillon_engine using (true);
  comment on policy users_select_engine on carillon.users is 'The engine reads what subjects may do.';
  create policy users_select_operator on carillon.users for select to carillon_api
    using ((select carillon.caller_is('operator')));
  comment on policy users_select_operator on carillon.users is 'Operators list users.';
  create policy users_insert_operator on carillon.users for insert to carillon_api
    with check ((select carillon.caller_is('operator')));
  comment on policy users_insert_operator on carillon.users is 'Operators add users.';
  create policy users_update_operator on carillon.users for update to carillon_api
    using ((select carillon.caller_is('operator'))) with check ((select carillon.caller_is('operator')));
  comment on policy users_update_operator on carillon.users is 'Operators change users.';
  create policy users_delete_operator on carillon.users for delete to carillon_api
    using ((select carillon.caller_is('operator')));
  comment on policy users_delete_operator on carillon.users is 'Operators remove users.';
  create policy users_select_auditor on carillon.users for select to carillon_auditor using (true);
  comment on policy users_select_auditor on carillon.users is 'Auditors read every user.';

  alter table carillon.audit_events enable row level security, force row level security;
  -- Its id and its time are the database's to say.
  grant select, insert (principal, action, resource, tenant_id, before, after, request_id, address)
    on carillon.audit_events to carillon_engine, carillon_api;
  grant select on carillon.audit_events to carillon_auditor;
  grant insert (principal, action, resource, before, request_id, address) on carillon.audit_events
    to carillon_retention;
  create policy audit_events_select_engine on carillon.audit_events for select to carillon_engine using (true);
  comment on policy audit_events_select_engine on carillon.audit_events is 'The engine''s sealer reads events.';
  create policy audit_events_insert_engine on carillon.audit_events for insert to carillon_engine with check (true);
  comment on policy audit_events_insert_engine on carillon.audit_events is 'The engine records its own repairs.';
  create policy audit_events_select_admin on carillon.audit_events for select to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy audit_events_select_admin on carillon.audit_events is 'Admins read the audit trail.';
  create policy audit_events_select_operator on carillon.audit_events for select to carillon_api
    using ((select carillon.caller_is('operator')));
  comment on policy audit_events_select_operator on carillon.audit_events is 'Operators read the audit trail.';
  create policy audit_events_insert_caller on carillon.audit_events for insert to carillon_api
    with check (principal = (select current_setting('carillon.principal', true)) and principal <> '');
  comment on policy audit_events_insert_caller on carillon.audit_events is
    'Whoever makes a change writes it in its own name, and in nobody else''s.';
  create policy audit_events_select_auditor on carillon.audit_events for select to carillon_auditor using (true);
  comment on policy audit_events_select_auditor on carillon.audit_events is 'Auditors read the audit trail.';
  create policy audit_events_insert_owner on carillon.audit_events for insert to carillon_owner
    with check (principal = 'role:' || session_user);
  comment on policy audit_events_insert_owner on carillon.audit_events is
    'drop_partitions records itself, in the name of the login.';
  create policy audit_events_insert_retention on carillon.audit_events for insert to carillon_retention
    with check (principal = 'role:' || session_user);
  comment on policy audit_events_insert_retention on carillon.audit_events is
    'clear_payloads records itself, in the name of the login.';

  alter table carillon.audit_unsealed enable row level security, force row level security;
  grant select, insert, delete on carillon.audit_unsealed to carillon_engine;
  grant select, insert on carillon.audit_unsealed to carillon_api;
  grant select on carillon.audit_unsealed to carillon_auditor;
  grant insert on carillon.audit_unsealed to carillon_retention;
  create policy audit_unsealed_select_engine on carillon.audit_unsealed for select to carillon_engine using (true);
  comment on policy audit_unsealed_select_engine on carillon.audit_unsealed is 'The sealer reads what waits.';
  create policy audit_unsealed_insert_engine on carillon.audit_unsealed for insert to carillon_engine
    with check (true);
  comment on policy audit_unsealed_insert_engine on carillon.audit_unsealed is
    'Events of the engine wait for their seal.';
  create policy audit_unsealed_delete_engine on carillon.audit_unsealed for delete to carillon_engine using (true);
  comment on policy audit_unsealed_delete_engine on carillon.audit_unsealed is 'The sealer takes away what it sealed.';
  create policy audit_unsealed_select_admin on carillon.audit_unsealed for select to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy audit_unsealed_select_admin on carillon.audit_unsealed is 'Admins see what waits for its seal.';
  create policy audit_unsealed_select_operator on carillon.audit_unsealed for select to carillon_api
    using ((select carillon.caller_is('operator')));
  comment on policy audit_unsealed_select_operator on carillon.audit_unsealed is
    'Operators see what waits for its seal.';
  create policy audit_unsealed_insert_caller on carillon.audit_unsealed for insert to carillon_api
    with check (pg_trigger_depth() > 0);
  comment on policy audit_unsealed_insert_caller on carillon.audit_unsealed is
    'A caller''s events wait for their seal: the trigger on audit_events adds them. What is no event cannot wait.';
  create policy audit_unsealed_select_auditor on carillon.audit_unsealed for select to carillon_auditor using (true);
  comment on policy audit_unsealed_select_auditor on carillon.audit_unsealed is
    'Auditors read what waits for its seal.';
  create policy audit_unsealed_insert_owner on carillon.audit_unsealed for insert to carillon_owner with check (true);
  comment on policy audit_unsealed_insert_owner on carillon.audit_unsealed is
    'The event of drop_partitions waits for its seal.';
  create policy audit_unsealed_insert_retention on carillon.audit_unsealed for insert to carillon_retention
    with check (true);
  comment on policy audit_unsealed_insert_retention on carillon.audit_unsealed is
    'The event of clear_payloads waits for its seal.';

  alter table carillon.audit_seals enable row level security, force row level security;
  grant select, insert on carillon.audit_seals to carillon_engine;
  grant select on carillon.audit_seals to carillon_api, carillon_auditor;
  create policy audit_seals_select_engine on carillon.audit_seals for select to carillon_engine using (true);
  comment on policy audit_seals_select_engine on carillon.audit_seals is 'The sealer reads the chain''s head.';
  create policy audit_seals_insert_engine on carillon.audit_seals for insert to carillon_engine with check (true);
  comment on policy audit_seals_insert_engine on carillon.audit_seals is 'The sealer adds to the chain.';
  create policy audit_seals_select_admin on carillon.audit_seals for select to carillon_api
    using ((select carillon.caller_is('admin')));
  comment on policy audit_seals_select_admin on carillon.audit_seals is 'Admins verify the chain.';
  create policy audit_seals_select_operator on carillon.audit_seals for select to carillon_api
    using ((select carillon.caller_is('operator')));
  comment on policy audit_seals_select_operator on carillon.audit_seals is 'Operators verify the chain.';
  create policy audit_seals_select_auditor on carillon.audit_seals for select to carillon_auditor using (true);
  comment on policy audit_seals_select_auditor on carillon.audit_seals is 'Auditors read the chain.';

  -- Of a role whose rights end at what it has to clear. A migrator that is no superuser is a member for this moment only.
  grant create on schema carillon to carillon_retention;
  set local role none;
  migrator := current_user;
  if not pg_has_role(migrator, 'carillon_retention', 'set') then
    execute format('grant carillon_retention to %I', migrator);
    alter function carillon.clear_payloads owner to carillon_retention;
    execute format('revoke carillon_retention from %I', migrator);
  else
    alter function carillon.clear_payloads owner to carillon_retention;
  end if;
  set local role carillon_owner;
  revoke create on schema carillon from carillon_retention;

  insert into carillon.migrations (number, name) values (7, 'access');
end
$migration$;
