"""Clients under faults: each call is repeated under its key until it is answered, and each try is noted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

import jwt
from carillon import AlreadyExists, CarillonError, Client, NotAuthenticated, RateLimited, SchedulerUnavailable
from carillon.v1 import run_pb2

from tests.faults.evidence import Answer, Call
from tests.faults.journal import Journal, now

CALL_SECONDS = 6.0
_AGAIN_AFTER = 0.5
_HOURS_OFF = 2
"""Tokens are good for schedulers whose clocks are an hour off, too."""

What = Literal["trigger", "cancel", "retry"]
Runs = tuple[UUID, ...]


def token(secret: str, **claims: str) -> str:
    """A JWT of whom the claims say."""
    issued = datetime.now(UTC) - timedelta(hours=_HOURS_OFF)
    fixed = {"iss": "carillon", "aud": "carillon", "iat": issued, "exp": issued + timedelta(hours=4 * _HOURS_OFF)}
    return jwt.encode({**fixed, **claims}, secret, algorithm="HS256")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client wants done once, however often it has to ask."""

    what: What
    job: str
    tenant: str
    key: str
    ask: Callable[[Client], Awaitable[list[run_pb2.Run]]]
    of: UUID | None = None


async def until_answered(client: Client, wish: Wish, journal: Journal) -> Runs:
    """The runs that the answer named; none if it was refused for good. Asks for as long as that takes."""
    while True:
        began = now()
        answer, runs, is_final = await _ask(client, wish)
        journal.calls.append(Call(wish.what, wish.job, wish.tenant, wish.key, began, now(), answer, runs, wish.of))
        if is_final:
            return runs
        await asyncio.sleep(_AGAIN_AFTER)


async def _ask(client: Client, wish: Wish) -> tuple[Answer, Runs, bool]:
    """The answer, its runs, and whether asking again would change nothing."""
    try:
        return "ok", tuple(map(run_id, await wish.ask(client))), True
    except AlreadyExists as error:
        # The run of this key is there: an earlier try made it, whose answer was lost.
        return "ok", (UUID(error.metadata["run"].rpartition("/")[2]),), True
    except (RateLimited, NotAuthenticated):
        return "refused", (), False
    except SchedulerUnavailable:
        return "unknown", (), False
    except CarillonError as error:
        if error.reason == "RUN_LIVE":
            return "refused", (), False
        return ("unknown", (), False) if error.code in _SAY_NOTHING else ("refused", (), True)


_SAY_NOTHING = frozenset({"INTERNAL", "UNKNOWN", "CANCELLED", "ABORTED", "RESOURCE_EXHAUSTED"})


def run_id(run: run_pb2.Run) -> UUID:
    return UUID(run.name.removeprefix("runs/"))
