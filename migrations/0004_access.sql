-- Who may touch what: every grant and every row policy, in one place.
--
-- carillon_engine ticks, dispatches, completes and reaps, for all tenants: its policies are `true`, because a policy
-- on a setting doubles the cost of completing a run. carillon_api serves callers; each of its transactions first says
-- on whose behalf it acts (carillon.kind, carillon.service, carillon.tenant), and sees and writes only that caller's
-- rows. Without the settings it sees nothing.
do $migration$
begin
  if exists (select from carillon.migrations where number = 4) then return; end if;
  set local role carillon_owner;

  create function carillon.caller_is(kind text) returns boolean language sql stable
    return coalesce(current_setting('carillon.kind', true), '') = kind;
  create function carillon.caller_service() returns text language sql stable
    return case when coalesce(current_setting('carillon.kind', true), '') = 'service'
                then coalesce(current_setting('carillon.service', true), '') else '' end;
  -- Never '-': the system's rows are no user's.
  create function carillon.caller_tenant() returns text language sql stable
    return case when coalesce(current_setting('carillon.kind', true), '') = 'user'
                then nullif(coalesce(current_setting('carillon.tenant', true), ''), '-') else '' end;

  alter table carillon.services enable row level security, force row level security;
  grant select on carillon.services to carillon_engine;
  grant select, insert, update on carillon.services to carillon_api;
  create policy services_select_engine on carillon.services for select to carillon_engine using (true);
  create policy services_select_api on carillon.services for select to carillon_api
    using ((select carillon.caller_is('admin')) or service = (select carillon.caller_service()));
  create policy services_insert_api on carillon.services for insert to carillon_api
    with check (service = (select carillon.caller_service()));
  create policy services_update_api on carillon.services for update to carillon_api
    using (service = (select carillon.caller_service())) with check (service = (select carillon.caller_service()));

  alter table carillon.jobs enable row level security, force row level security;
  grant select on carillon.jobs to carillon_engine;
  grant select, insert, update on carillon.jobs to carillon_api;
  create policy jobs_select_engine on carillon.jobs for select to carillon_engine using (true);
  create policy jobs_select_api on carillon.jobs for select to carillon_api
    using ((select carillon.caller_is('admin')) or service = (select carillon.caller_service())
           or (tenant_schedules and (select carillon.caller_tenant()) <> ''));
  create policy jobs_insert_api on carillon.jobs for insert to carillon_api
    with check (service = (select carillon.caller_service()));
  create policy jobs_update_api on carillon.jobs for update to carillon_api
    using ((select carillon.caller_is('admin')) or service = (select carillon.caller_service()))
    with check ((select carillon.caller_is('admin')) or service = (select carillon.caller_service()));
  -- A user who puts a schedule locks its job (FOR SHARE), which asks for update rights, and can change nothing of it.
  create policy jobs_lock_user on carillon.jobs for update to carillon_api
    using (tenant_schedules and (select carillon.caller_tenant()) <> '') with check (false);

  -- The jobs whose rows elsewhere belong to the calling service.
  create function carillon.caller_jobs() returns bigint[] language sql stable
    return (select coalesce(array_agg(job_id), '{}') from carillon.jobs
            where service = carillon.caller_service() and carillon.caller_service() <> '');

  alter table carillon.schedules enable row level security, force row level security;
  grant select, update on carillon.schedules to carillon_engine;
  grant select, insert, update, delete on carillon.schedules to carillon_api;
  create policy schedules_select_engine on carillon.schedules for select to carillon_engine using (true);
  create policy schedules_update_engine on carillon.schedules for update to carillon_engine
    using (true) with check (true);
  create policy schedules_all_api on carillon.schedules for all to carillon_api
    using ((select carillon.caller_is('admin')) or tenant_id = (select carillon.caller_tenant())
           or job_id = any ((select carillon.caller_jobs())::bigint[]))
    with check ((select carillon.caller_is('admin')) or tenant_id = (select carillon.caller_tenant())
           or job_id = any ((select carillon.caller_jobs())::bigint[]));

  alter table carillon.schedule_revisions enable row level security, force row level security;
  grant select on carillon.schedule_revisions to carillon_engine;
  grant select, insert on carillon.schedule_revisions to carillon_api;
  create policy schedule_revisions_select_engine on carillon.schedule_revisions for select
    to carillon_engine using (true);
  create policy schedule_revisions_select_api on carillon.schedule_revisions for select to carillon_api
    using (exists (select from carillon.schedules s where s.schedule_id = schedule_revisions.schedule_id));
  create policy schedule_revisions_insert_api on carillon.schedule_revisions for insert to carillon_api
    with check (exists (select from carillon.schedules s where s.schedule_id = schedule_revisions.schedule_id));

  alter table carillon.requests enable row level security, force row level security;
  grant select, delete on carillon.requests to carillon_engine;
  grant select, insert on carillon.requests to carillon_api;
  create policy requests_select_engine on carillon.requests for select to carillon_engine using (true);
  create policy requests_delete_engine on carillon.requests for delete to carillon_engine using (true);
  create policy requests_select_api on carillon.requests for select to carillon_api
    using (principal = (select current_setting('carillon.principal', true)));
  create policy requests_insert_api on carillon.requests for insert to carillon_api
    with check (principal = (select current_setting('carillon.principal', true)));

  -- A worker's name is nobody's secret; its routes and lease are the engine's business.
  alter table carillon.sessions enable row level security, force row level security;
  grant select, insert, update, delete on carillon.sessions to carillon_engine;
  grant select (session_id, worker) on carillon.sessions to carillon_api;
  create policy sessions_all_engine on carillon.sessions for all to carillon_engine using (true) with check (true);
  create policy sessions_select_api on carillon.sessions for select to carillon_api using (true);

  alter table carillon.live_runs enable row level security, force row level security;
  grant select, insert, update, delete on carillon.live_runs to carillon_engine, carillon_api;
  create policy live_runs_all_engine on carillon.live_runs for all to carillon_engine using (true) with check (true);
  create policy live_runs_all_api on carillon.live_runs for all to carillon_api
    using ((select carillon.caller_is('admin')) or tenant_id = (select carillon.caller_tenant())
           or job_id = any ((select carillon.caller_jobs())::bigint[]))
    with check ((select carillon.caller_is('admin')) or tenant_id = (select carillon.caller_tenant())
           or job_id = any ((select carillon.caller_jobs())::bigint[]));

  -- Append-only: nobody has update, delete or truncate on these.
  alter table carillon.runs enable row level security, force row level security;
  grant select, insert on carillon.runs to carillon_engine, carillon_api;
  create policy runs_select_engine on carillon.runs for select to carillon_engine using (true);
  create policy runs_insert_engine on carillon.runs for insert to carillon_engine with check (true);
  create policy runs_select_api on carillon.runs for select to carillon_api
    using ((select carillon.caller_is('admin')) or tenant_id = (select carillon.caller_tenant())
           or job_id = any ((select carillon.caller_jobs())::bigint[]));
  create policy runs_insert_api on carillon.runs for insert to carillon_api
    with check ((select carillon.caller_is('admin')) or tenant_id = (select carillon.caller_tenant())
           or job_id = any ((select carillon.caller_jobs())::bigint[]));

  alter table carillon.attempts enable row level security, force row level security;
  grant select, insert on carillon.attempts to carillon_engine;
  grant select on carillon.attempts to carillon_api;
  create policy attempts_select_engine on carillon.attempts for select to carillon_engine using (true);
  create policy attempts_insert_engine on carillon.attempts for insert to carillon_engine with check (true);
  create policy attempts_select_api on carillon.attempts for select to carillon_api
    using ((select carillon.caller_is('admin')) or tenant_id = (select carillon.caller_tenant())
           or job_id = any ((select carillon.caller_jobs())::bigint[]));

  alter table carillon.items enable row level security, force row level security;
  grant select, insert on carillon.items to carillon_engine;
  grant select on carillon.items to carillon_api;
  create policy items_select_engine on carillon.items for select to carillon_engine using (true);
  create policy items_insert_engine on carillon.items for insert to carillon_engine with check (true);
  create policy items_select_api on carillon.items for select to carillon_api
    using ((select carillon.caller_is('admin')) or tenant_id = (select carillon.caller_tenant())
           or job_id = any ((select carillon.caller_jobs())::bigint[]));

  alter table carillon.gaps enable row level security, force row level security;
  grant select, insert on carillon.gaps to carillon_engine, carillon_api;
  create policy gaps_select_engine on carillon.gaps for select to carillon_engine using (true);
  create policy gaps_insert_engine on carillon.gaps for insert to carillon_engine with check (true);
  create policy gaps_select_api on carillon.gaps for select to carillon_api
    using (exists (select from carillon.schedules s where s.schedule_id = gaps.schedule_id));
  create policy gaps_insert_api on carillon.gaps for insert to carillon_api
    with check (exists (select from carillon.schedules s where s.schedule_id = gaps.schedule_id));

  alter table carillon.run_keys enable row level security, force row level security;
  grant select, insert on carillon.run_keys to carillon_api;
  create policy run_keys_all_api on carillon.run_keys for all to carillon_api
    using ((select carillon.caller_is('admin')) or job_id = any ((select carillon.caller_jobs())::bigint[]))
    with check ((select carillon.caller_is('admin')) or job_id = any ((select carillon.caller_jobs())::bigint[]));

  alter table carillon.job_stats enable row level security, force row level security;
  grant select, insert, delete on carillon.job_stats to carillon_engine;
  grant select, insert on carillon.job_stats to carillon_api;
  create policy job_stats_all_engine on carillon.job_stats for all to carillon_engine using (true) with check (true);
  create policy job_stats_select_api on carillon.job_stats for select to carillon_api
    using ((select carillon.caller_is('admin')) or job_id = any ((select carillon.caller_jobs())::bigint[]));
  -- Only the trigger on runs inserts; a caller that may insert the run may have it counted.
  create policy job_stats_insert_api on carillon.job_stats for insert to carillon_api with check (true);

  grant usage on sequence carillon.claim_ids to carillon_engine;
  grant execute on function carillon.id_floor to carillon_engine, carillon_api;

  insert into carillon.migrations (number, name) values (4, 'access');
end
$migration$;
