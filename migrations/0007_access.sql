-- Who may touch what: every grant and every row policy, in one place. Takes the place of 0004's and 0005's.
do $migration$
begin
  if exists (select from carillon.migrations where number = 7) then return; end if;
  set local role carillon_owner;

  alter table carillon.service_tokens enable row level security, force row level security;
  grant select, update (last_used_at) on carillon.service_tokens to carillon_engine;
  grant select (token_id, service, scopes, description, created_at, created_by, expires_at, revoked_at, revoked_by,
    last_used_at), insert, update (expires_at, revoked_at, revoked_by) on carillon.service_tokens to carillon_api;
  create policy service_tokens_select_engine on carillon.service_tokens for select to carillon_engine using (true);
  create policy service_tokens_update_engine on carillon.service_tokens for update to carillon_engine
    using (true) with check (true);
  create policy service_tokens_select_operator on carillon.service_tokens for select to carillon_api
    using ((select carillon.caller_is('operator')));
  create policy service_tokens_insert_operator on carillon.service_tokens for insert to carillon_api
    with check ((select carillon.caller_is('operator')));
  create policy service_tokens_update_operator on carillon.service_tokens for update to carillon_api
    using ((select carillon.caller_is('operator'))) with check ((select carillon.caller_is('operator')));

  alter table carillon.users enable row level security, force row level security;
  grant select on carillon.users to carillon_engine;
  grant select, insert, update, delete on carillon.users to carillon_api;
  create policy users_select_engine on carillon.users for select to carillon_engine using (true);
  create policy users_select_operator on carillon.users for select to carillon_api
    using ((select carillon.caller_is('operator')));
  create policy users_insert_operator on carillon.users for insert to carillon_api
    with check ((select carillon.caller_is('operator')));
  create policy users_update_operator on carillon.users for update to carillon_api
    using ((select carillon.caller_is('operator'))) with check ((select carillon.caller_is('operator')));
  create policy users_delete_operator on carillon.users for delete to carillon_api
    using ((select carillon.caller_is('operator')));

  alter table carillon.audit_events enable row level security, force row level security;
  grant select, insert on carillon.audit_events to carillon_engine, carillon_api;
  create policy audit_events_select_engine on carillon.audit_events for select to carillon_engine using (true);
  create policy audit_events_insert_engine on carillon.audit_events for insert to carillon_engine with check (true);
  create policy audit_events_select_admin on carillon.audit_events for select to carillon_api
    using ((select carillon.caller_is('admin')) or (select carillon.caller_is('operator')));
  -- Whoever makes a change writes it in its own name, and in nobody else's.
  create policy audit_events_insert_caller on carillon.audit_events for insert to carillon_api
    with check (principal = (select current_setting('carillon.principal', true)) and principal <> '');

  alter table carillon.audit_unsealed enable row level security, force row level security;
  grant select, insert, delete on carillon.audit_unsealed to carillon_engine;
  grant select, insert on carillon.audit_unsealed to carillon_api;
  create policy audit_unsealed_all_engine on carillon.audit_unsealed for all to carillon_engine
    using (true) with check (true);
  create policy audit_unsealed_select_admin on carillon.audit_unsealed for select to carillon_api
    using ((select carillon.caller_is('admin')) or (select carillon.caller_is('operator')));
  create policy audit_unsealed_insert_caller on carillon.audit_unsealed for insert to carillon_api with check (true);

  alter table carillon.audit_seals enable row level security, force row level security;
  grant select, insert on carillon.audit_seals to carillon_engine;
  grant select on carillon.audit_seals to carillon_api;
  create policy audit_seals_select_engine on carillon.audit_seals for select to carillon_engine using (true);
  create policy audit_seals_insert_engine on carillon.audit_seals for insert to carillon_engine with check (true);
  create policy audit_seals_select_admin on carillon.audit_seals for select to carillon_api
    using ((select carillon.caller_is('admin')) or (select carillon.caller_is('operator')));

  insert into carillon.migrations (number, name) values (7, 'access');
end
$migration$;
