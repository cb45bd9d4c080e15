"""Random probes by tenant B and by another service for what is tenant A's and the email-service's.

    python -m tests.security.probes --count 10000

A probe is a request by somebody to whom tenant A is nobody's business, about tenant A's things or around them. It
finds a leak if the answer has a planted value that the request had not, or if it is another answer than to the same
request about what is not there. One in five is SQL, as the API's role acting for tenant B. Exits 0 only if no leak is
found; `--seed` asks the same again.
"""

from __future__ import annotations

import asyncio
import base64
import random
import re
import secrets
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import typer
from carillon.v1 import run_service_pb2, schedule_service_pb2
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import Progress

from operations.logs import configure
from scheduler_service.rpc.methods import ACTIONS
from tests.security.calling import Answer, ask, input_of
from tests.security.canaries import TENANT, Canaries, plant
from tests.security.probe_texts import Texts, leave_own_jobs
from tests.security.random_requests import Requests
from tests.security.scratch import scratch_database
from tests.security.sql_probes import SqlProbes
from tests.security.world import ADMIN, CALLERS, KPI, USER_A, B, World, a_world, token

PROBERS = ("user-b", "other", "nobody")
_SQL_SHARE = 5
_PATIENCE = 20.0  # with a stream; each of those that are asked for here says something, or ends
_INSTANT = re.compile(rb"\d{4}-\d\d-\d\dT[\d:.]+")  # some sentences say what time it is
_READS = ("/Get", "/List", "/Watch", "/Preview")


@dataclass
class Tally:
    """What was asked, and what was found. `codes`: how the API answered."""

    probes: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)

    def line(self, seed: int) -> str:
        """For machines."""
        return f"seed={seed} probes={self.probes} answered={self.codes['OK']} leaks={len(self.leaks)}"


class Probes:
    """Probes of one world, the same ones for the same seed. `tokens`: page tokens of others."""

    def __init__(self, world: World, canaries: Canaries, tokens: list[str], seed: int) -> None:
        self._world = world
        self.canaries = canaries
        self._tokens = tokens
        self._dice = random.Random(seed)
        self._sql = SqlProbes(world, canaries, self._dice)
        self._told: dict[str, set[str]] = {caller: set() for caller in PROBERS}
        self.tally = Tally()

    async def run(self, count: int, progressed: Callable[[], object] = lambda: None) -> Tally:
        """So many probes, one after the other: an answer is to depend on nothing but its request."""
        try:
            for _ in range(count):
                self.tally.probes += 1
                if self._dice.randrange(_SQL_SHARE) == 0:
                    self.tally.leaks += await asyncio.to_thread(self._sql.probe, self._told_by_b())
                else:
                    await self._probe()
                progressed()
        finally:
            self._sql.close()
        return self.tally

    async def _probe(self) -> None:
        caller, method = self._dice.choice(PROBERS), self._dice.choice(list(ACTIONS))
        request = self._request(method)
        answer = await self._ask(method, request.SerializeToString(), caller)
        self.tally.codes[answer.code.name] += 1
        asked = f"{method} by {caller}: {str(request)[:300]!r}; {answer.code.name} {answer.details[:200]}"
        self.tally.leaks += [f"shows {canary!r}: {asked}" for canary in self._shown(answer, request, caller)]
        if answer.code is grpc.StatusCode.OK and not any(verb in method for verb in _READS):
            self._told[caller] |= self._named_in(request.SerializeToString())  # it is the caller's own now as well
        if (other := await self._told_apart(method, request.SerializeToString(), answer, caller)) is not None:
            self.tally.leaks.append(f"of what is not there it says {other.code.name} {other.details[:200]!r}: {asked}")

    def _request(self, method: str) -> Message:
        texts = Texts(self._world, self.canaries, [*self._tokens, self._mangled()])
        requests = Requests(self._dice, texts.of(method), list(self.canaries.twins), wild=0.04)
        request = requests.fill(input_of(method)(), likely=self._dice.choice((0.1, 0.4, 0.8)))
        leave_own_jobs(request)
        return request

    def _mangled(self) -> str:
        text = self._dice.choice(self._tokens or ["AAAA"])
        place = self._dice.randrange(len(text))
        return text[:place] + self._dice.choice("AZaz09-_=!\n") + text[place + 1 :]

    async def _ask(self, method: str, body: bytes, caller: str) -> Answer:
        return await ask(self._world.channel, method, body, CALLERS[caller], patience=_PATIENCE)

    def _named_in(self, said: bytes) -> set[str]:
        return {canary for canary in self.canaries.twins if canary.encode() in said}

    def _shown(self, answer: Answer, request: Message, caller: str) -> set[str]:
        """What the answer has of others' that neither this request nor an earlier one told it."""
        shown = self._named_in(answer.said() + _next_page(answer.message)) & set(self.canaries.hidden_from(caller))
        return shown - self._named_in(request.SerializeToString()) - self._told[caller]

    def _told_by_b(self) -> set[str]:
        """What tenant B's rows may say because B itself said it: its user, or its service in runs for it."""
        return set().union(*self._told.values())

    async def _told_apart(self, method: str, body: bytes, answer: Answer, caller: str) -> Answer | None:
        """The answer to the same request about what is not there, if it is another one each time."""
        twin = self.canaries.twin_of(body)
        if twin == body:
            return None
        for _ in range(3):  # once the time that passed may make a difference
            other = await self._ask(method, twin, caller)
            if self._outcome(answer) == self._outcome(other):
                return None
            answer = await self._ask(method, body, caller)
        return other

    def _outcome(self, answer: Answer) -> object:
        """What must not depend on whether something of somebody else's is there."""
        if answer.code is grpc.StatusCode.OK:
            return answer.code, answer.message is None, answer.is_empty_list
        return answer.code, _INSTANT.sub(b"<an instant>", self.canaries.twin_of(answer.said()))


def _next_page(message: Message | None) -> bytes:
    """What the answer's page token is made of."""
    text = getattr(message, "next_page_token", "")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) if text else b""


async def _tokens_of_others(world: World) -> list[str]:
    """Page tokens that tenant A, an admin and both services were given, of lists with tenant A's things."""
    asked = [
        ("/carillon.v1.RunService/ListRuns", run_service_pb2.ListRunsRequest(page_size=1)),
        ("/carillon.v1.RunService/ListRuns", run_service_pb2.ListRunsRequest(page_size=1, tenant=TENANT)),
        ("/carillon.v1.ScheduleService/ListSchedules", schedule_service_pb2.ListSchedulesRequest(page_size=1)),
    ]
    found = []
    for metadata in (ADMIN, USER_A, CALLERS["service"], CALLERS["user-b"], token(KPI)):
        for method, request in asked:
            answer = await ask(world.channel, method, request, metadata)
            found.append(str(getattr(answer.message, "next_page_token", "")))
    return [each for each in found if each]


async def probing(world: World, seed: int) -> Probes:
    """Plants the canaries, and is ready to look for them."""
    canaries = await plant(world)
    tokens = await _tokens_of_others(world)
    assert tokens
    return Probes(world, canaries, tokens, seed)


def main(
    count: int = typer.Option(10_000, help="How many probes."),
    seed: int | None = typer.Option(None, help="The seed of an earlier run, to see it again. Default: a new one."),
) -> None:
    """Probes, and says what was found."""
    configure("text", "error")
    chosen = secrets.randbelow(1 << 32) if seed is None else seed
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"tenant {B} and {KPI} look for what is {TENANT}'s; seed={chosen}", style="dim")
    with scratch_database() as urls:

        async def run() -> Tally:
            async with a_world(urls) as world:
                probes = await probing(world, chosen)
                with Progress(console=console, disable=not console.is_terminal) as progress:
                    task = progress.add_task("probes", total=count)
                    return await probes.run(count, lambda: progress.advance(task))

        tally = asyncio.run(run())
    for leak in tally.leaks[:20]:
        console.print(f"leak: {leak}")
    console.print(", ".join(f"{number} {code}" for code, number in tally.codes.most_common()))
    console.print(tally.line(chosen))
    sys.exit(bool(tally.leaks))


if __name__ == "__main__":
    typer.run(main)
