-- Roles, the schema and its books. Applied by `python -m scheduler_service migrate`, or by psql (as
-- docker-entrypoint-initdb.d); a file that has been applied returns at once.
do $migration$
declare
  role_name text;
begin
  if to_regclass('carillon.migrations') is not null then
    if exists (select from carillon.migrations where number = 1) then return; end if;
  end if;

  -- Rights belong to these; nobody logs in as the owner. `migrate` gives login names and passwords to the others.
  foreach role_name in array array['carillon_owner', 'carillon_engine', 'carillon_api'] loop
    begin
      execute format('create role %I nologin', role_name);
    exception when duplicate_object or unique_violation then
      null; -- roles belong to the whole server: another database made it
    end;
  end loop;
  -- Unless a superuser migrates, the migrator must be able to become the owner.
  if not pg_has_role(current_user, 'carillon_owner', 'set') then
    execute format('grant carillon_owner to %I', current_user);
  end if;

  create schema if not exists carillon authorization carillon_owner;
  set local role carillon_owner;
  grant usage on schema carillon to carillon_engine, carillon_api;

  create table carillon.migrations (
    number integer primary key,
    name text not null,
    applied_at timestamptz not null default now()
  );
  comment on table carillon.migrations is 'Which migration files were applied. Written by the files themselves.';
  alter table carillon.migrations enable row level security, force row level security;
  create policy migrations_all_owner on carillon.migrations to carillon_owner using (true) with check (true);
  create policy migrations_select_service on carillon.migrations for select
    to carillon_engine, carillon_api using (true);
  grant select on carillon.migrations to carillon_engine, carillon_api;

  -- Alembic's book; made here so that the schema is the same whoever applied it.
  create table carillon.alembic_version (version_num varchar(32) constraint alembic_version_pkc primary key);
  alter table carillon.alembic_version enable row level security, force row level security;
  create policy alembic_version_all_owner on carillon.alembic_version to carillon_owner using (true) with check (true);

  insert into carillon.migrations (number, name) values (1, 'foundation');
end
$migration$;
