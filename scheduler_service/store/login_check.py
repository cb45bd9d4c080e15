"""Whether a login of the scheduler's has the rights of its role, no others, and no settings that undo what is kept."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from scheduler_service.store.logins import settings_of

# What a server sets for all is its operator's own affair; what is set for this login, its database or this connection
# would be for Carillon alone. Other logins of schedulers (of other databases, or the next one while a password is
# changed) are told by the settings that `migrate` gives them. A migrator that is no superuser may grant the roles it
# made, but has not their rights.
_LOGIN = text("""
select r.rolname as name, r.rolsuper, r.rolbypassrls, r.rolcreaterole, r.rolcreatedb, r.rolreplication,
  (select c.oid::regclass::text from pg_class c where c.relowner = r.oid and c.relnamespace = 'carillon'::regnamespace
   order by 1 limit 1) as owns,
  (select g.rolname from pg_roles g where g.oid <> r.oid and g.rolname <> :group and pg_has_role(r.oid, g.oid, 'member')
   order by g.rolname limit 1) as other_group,
  pg_has_role(r.oid, :group, 'usage') as has_rights,
  (select a.rolname from pg_auth_members m join pg_roles a on a.oid = m.member
   where m.roleid = cast(:group as regrole) and not a.rolsuper and (a.oid <> r.oid or m.admin_option)
     and not (a.rolcreaterole and has_database_privilege(a.oid, current_database(), 'create')
       and not (m.set_option or m.inherit_option))
     and (m.admin_option or not coalesce(a.rolconfig, '{}') @> cast(:settings as text[]))
   order by a.rolname limit 1) as stranger,
  (select s.name || ' ' || s.setting from pg_settings s
   where (s.name, s.setting) in (('session_replication_role', 'replica'), ('session_replication_role', 'local'),
       ('synchronous_commit', 'off'))
     and s.source not in ('default', 'environment variable', 'configuration file', 'command line')
   order by s.name limit 1) as setting
from pg_roles r where r.rolname = session_user""")


async def login_problem(connection: AsyncConnection, group: str) -> str | None:
    """Why the login of this connection may not have the service's work; None if it has the rights of `group` only, and
    besides it only logins of schedulers have them."""
    settings = [f"{name}={value}" for name, value in settings_of(group).items()]
    login = (await connection.execute(_LOGIN, {"group": group, "settings": settings})).one()
    if (why := _wrong_rights(login, group)) is not None:
        return f"the login {login.name} {why}; it must have the rights of {group} and no others"
    if login.stranger is not None:
        return f"{login.stranger} is a member of {group} and no login that `migrate` gave; revoke {group} from it"
    if login.setting is not None:
        return f"the login {login.name} has {login.setting}; reset it on the login and the database"
    return None


def _wrong_rights(login: Row[Any], group: str) -> str | None:
    attributes = {
        "is a superuser": login.rolsuper,
        "may bypass row level security": login.rolbypassrls,
        "may create roles": login.rolcreaterole,
        "may create databases": login.rolcreatedb,
        "may replicate": login.rolreplication,
    }
    if (attribute := next((words for words, has in attributes.items() if has), None)) is not None:
        return attribute
    if login.owns is not None:
        return f"owns {login.owns}"
    if login.other_group is not None:
        return f"is a member of {login.other_group}"
    return None if login.has_rights else f"is not a member of {group}"
