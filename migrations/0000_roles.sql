-- The roles that rights belong to. They are the whole server's, so another Carillon of it may have made them; whoever
-- else did so would keep a way in, and is refused here, before anything is theirs. It has no number of its own: it runs
-- until 0007, after which a scheduler looks at the roles itself.
do $migration$
declare
  -- Nobody logs in as the owner. Auditors are people who read, through a login that is a member; carillon_backup is
  -- pg_dump's; carillon_retention owns clear_payloads.
  ours constant text[] := array['carillon_owner', 'carillon_engine', 'carillon_api', 'carillon_auditor',
    'carillon_backup', 'carillon_retention'];
  role_name text;
  faults text;
  remedies text;
begin
  if to_regclass('carillon.migrations') is not null then
    if exists (select from carillon.migrations where number = 7) then return; end if;
  end if;

  foreach role_name in array ours loop
    begin
      execute format('create role %I nologin', role_name);
    exception when duplicate_object or unique_violation then
      null; -- what it is like is looked at below
    end;
  end loop;

  select string_agg(fault, '; ' order by fault), string_agg(distinct remedy, '; ') into faults, remedies from (
    select format('%s %s', r.rolname, a.fault) as fault, format('alter role %I %s', r.rolname, a.remedy) as remedy
    from pg_roles r cross join lateral (values
      (r.rolsuper, 'is a superuser', 'nosuperuser'),
      (r.rolbypassrls and r.rolname <> 'carillon_backup', 'may bypass row level security', 'nobypassrls'),
      (r.rolcreaterole, 'may create roles', 'nocreaterole'),
      (r.rolcreatedb, 'may create databases', 'nocreatedb'),
      (r.rolreplication, 'may replicate', 'noreplication'),
      -- These two may be the logins themselves, where a Carillon of this server gave them their passwords.
      (r.rolcanlogin and not (r.rolname in ('carillon_engine', 'carillon_api') and exists (
         select from pg_shdepend d join pg_roles o on o.oid = d.refobjid and o.rolname = 'carillon_owner'
         where d.refclassid = 'pg_authid'::regclass and d.classid = 'pg_namespace'::regclass and d.deptype = 'o')),
       'may log in', 'nologin')
    ) a (is_so, fault, remedy)
    where r.rolname = any (ours) and a.is_so
    union all
    select format(case when m.admin_option then '%2$s may grant %1$s to anybody' else '%2$s is a member of %1$s' end,
                  r.rolname, member.rolname),
      format('revoke %I from %I granted by %I cascade', r.rolname, member.rolname, grantor.rolname)
    from pg_auth_members m join pg_roles r on r.oid = m.roleid join pg_roles member on member.oid = m.member
      join pg_roles grantor on grantor.oid = m.grantor
    where r.rolname = any (ours) and not member.rolsuper and member.rolname <> current_user
      -- Logins and people are members of the others, if a superuser or this migrator made them so.
      and (m.admin_option or r.rolname in ('carillon_owner', 'carillon_retention')
           or not (grantor.rolsuper or grantor.rolname = current_user))
  ) found;
  if faults is not null then
    raise exception 'roles of Carillon''s are others'' to use: %', faults
      using errcode = 'object_not_in_prerequisite_state', hint = 'If no other Carillon of this server has them, drop '
        'those roles, and migrate again, which makes them. If one has, migrate as whoever migrated that one, or as a '
        'superuser: ' || remedies;
  end if;

  begin
    if not (select rolbypassrls from pg_roles where rolname = 'carillon_backup') then
      alter role carillon_backup bypassrls;
    end if;
  exception when insufficient_privilege then
    raise notice 'carillon_backup cannot make backups before a superuser runs: alter role carillon_backup bypassrls';
  end;
end
$migration$;
