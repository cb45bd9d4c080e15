-- Who calls, and who changed what: service tokens, users, and the audit trail.
do $migration$
begin
  if exists (select from carillon.migrations where number = 6) then return; end if;
  set local role carillon_owner;

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
    check (service <> '*' or scopes = array['work'])
  );
  comment on table carillon.service_tokens is
    'Tokens that services and workers show. Managed by `python -m scheduler_service tokens`; read by every replica each second or two.';
  comment on column carillon.service_tokens.service is 'What it is bound to; ''*'': a worker for all.';
  comment on column carillon.service_tokens.secret_hash is 'SHA-256 of the secret, which has 256 random bits and is kept nowhere.';
  comment on column carillon.service_tokens.expires_at is 'Not accepted from then on. Rotation sets it on the old token.';
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
    event_at timestamptz not null,
    principal text not null,
    action text not null,
    resource text not null,
    tenant_id text not null default '',
    before jsonb,
    after jsonb,
    request_id text not null,
    address text not null
  );
  comment on table carillon.audit_events is
    'Every change by anyone, written in the change''s own transaction. Append-only.';
  create index audit_events_by_principal on carillon.audit_events (principal, event_id);
  create index audit_events_by_resource on carillon.audit_events (resource text_pattern_ops, event_id);
  create index audit_events_by_tenant on carillon.audit_events (tenant_id, event_id) where tenant_id <> '';
  create index audit_events_by_request on carillon.audit_events (request_id);
  create index audit_events_by_time on carillon.audit_events using brin (event_at) with (autosummarize = on);

  create table carillon.audit_unsealed (event_id bigint primary key);
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

  insert into carillon.migrations (number, name) values (6, 'security');
end
$migration$;
