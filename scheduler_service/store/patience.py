"""How long a statement waits for what somebody else has locked."""

from __future__ import annotations

from typing import LiteralString

PATIENCE = 0.5
"""Seconds for which what a worker reports waits for a lock. Longer than anybody of ours has one as a rule; shorter than
deadlock_timeout."""
BRIEFLY = 0.05

# Evaluated once, before the first row is locked, and in force until the statement's transaction ends: PostgreSQL looks
# at it whenever it begins to wait. A statement of its own would cost each group a way there and back. (A table that
# somebody has locked is waited for before that.)
PATIENTLY: LiteralString = "(select set_config('lock_timeout', %(patience)s, true)) is not null"

# What a statement that updates live runs `r` takes instead, once it has waited in vain. The lock is the update's own.
UNLOCKED: LiteralString = """r.run_id in (
  select run_id from carillon.live_runs where run_id = any(%(run_ids)s::uuid[]) for no key update skip locked
)"""


def in_ms(seconds: float) -> str:
    """As PostgreSQL's settings have it."""
    return f"{seconds * 1000:.0f}ms"
