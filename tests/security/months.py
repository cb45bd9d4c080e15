"""Months of the record that have passed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.security.sql_case import Connection


def make_month(admin: Connection, months_ago: int) -> datetime:
    """The partitions of a past month, as create_partitions made them then. Answers a moment in that month."""
    admin.execute("set role carillon_owner")
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    for _ in range(months_ago):
        month = (month - timedelta(days=1)).replace(day=1)
    for table in ("runs", "attempts", "items"):
        part = f"carillon.{table}_{month:%Y_%m}"
        admin.execute(f"create table {part} (like carillon.{table} including all)".encode())
        admin.execute(f"alter table {part} enable row level security, force row level security".encode())
        admin.execute(
            f"create trigger never_change before update or delete or truncate on {part}"
            " for each statement execute function carillon.refuse_change()".encode()
        )
        admin.execute(f"alter table {part} enable always trigger never_change".encode())
        admin.execute(
            f"alter table carillon.{table} attach partition {part} for values from (carillon.id_floor('{month}'))"
            f" to (carillon.id_floor('{month}'::timestamptz + interval '1 month'))".encode()
        )
    admin.execute("reset role")
    return month + timedelta(days=14)


def partitions(admin: Connection) -> set[str]:
    """Which months have a partition, by table."""
    found = admin.execute(
        "select c.relname from pg_inherits join pg_class c on c.oid = inhrelid where c.relkind = 'r'"
        " and c.relnamespace = 'carillon'::regnamespace"
    )
    return {name for (name,) in found}
