"""Who is there in a fault run, by name, and what breaking one of them may do to attempts.

A process has its name, and a link the names of its two ends: `worker-1>scheduler-2`.
"""

from __future__ import annotations

SCHEDULERS = ("scheduler-1", "scheduler-2", "scheduler-3")
ALWAYS = SCHEDULERS[:2]
"""The third is there at times."""
BEHIND = ALWAYS[1]
"""Has its database behind PgBouncer."""
HANDLER_WORKERS = ("worker-1", "worker-2")
HTTP_WORKER = "worker-3"
WORKERS = (*HANDLER_WORKERS, HTTP_WORKER)
SERVICE = "http-service"
CLIENTS = ("client-1", "client-2")
POSTGRES = "postgres"
PGBOUNCER = "pgbouncer"


def touches(target: str) -> frozenset[str] | None:
    """The workers whose attempts it may cut or make twice; None: any's. A client's link carries no attempts, nor does
    that of the HTTP service, which only registers its jobs by it."""
    name, is_link, _ = target.partition(">")
    if name in CLIENTS or (is_link and name == SERVICE):
        return frozenset()
    if name == SERVICE:
        return frozenset({HTTP_WORKER})
    return frozenset({name}) if name in WORKERS else None


def way(target: str) -> str:
    """The scheduler by which workers do without the others, where it is that one alone which they lose with it;
    empty: what they lose, no other scheduler makes good."""
    name, _, other = target.partition(">")
    if name in SCHEDULERS:
        return name
    if name == PGBOUNCER:
        return BEHIND
    return other if name in WORKERS else ""


def role(name: str) -> str:
    """Without its number."""
    return name.rstrip("-0123456789")
