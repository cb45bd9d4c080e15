"""What clients do while everything breaks: runs by hand, some of them cancelled, some tried again; and tenants who look
for what is not theirs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from random import Random
from uuid import UUID

from carillon import CarillonError, Client, NotFound
from carillon.v1 import run_pb2

from tests.faults.calls import CALL_SECONDS, Wish, token, until_answered
from tests.faults.names import CLIENTS
from tests.faults.plan import BY_HAND, DOOMED, TENANTS, Job, marker
from tests.faults.site import Site

TRIGGER_EVERY = 2.0
"""Seconds, for each client."""
_PROBE_EVERY = 1.5
_PROBED = 100
_CANCELLED = 0.3
_KEY_CHARACTERS = 24


class Load:
    """All clients of a site. To be entered; `run` until cancelled, then `finish` what was begun."""

    def __init__(self, site: Site, seed: int) -> None:
        self._site = site
        self._random = Random(seed + 1)
        self._stack = AsyncExitStack()
        self._admins: list[Client] = []
        self._users: dict[str, Client] = {}
        self._open: set[asyncio.Task[None]] = set()
        self._known: dict[str, UUID] = {}  # a run of each tenant

    async def __aenter__(self) -> Load:
        secret = self._site.cluster.secrets.jwt_secret
        for name in CLIENTS:
            self._admins.append(await self._client(name, token(secret, sub=name, role="admin")))
        for number, tenant in enumerate(TENANTS):
            jwt = token(secret, sub=f"user-of-{tenant}", tenant=tenant)
            self._users[tenant] = await self._client(CLIENTS[number % len(CLIENTS)], jwt)
        return self

    async def __aexit__(self, *_error: object) -> None:
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._stack.aclose()

    async def run(self) -> None:
        """For ever. Errors: ExceptionGroup, of what no client expects."""
        async with asyncio.TaskGroup() as group:
            for admin in self._admins:
                group.create_task(self._trigger(admin))
            for tenant, user in self._users.items():
                group.create_task(self._probe(tenant, user))

    async def finish(self) -> None:
        """Waits until every call that was begun is answered. Errors: those of the calls."""
        while self._open:
            done, _ = await asyncio.wait(set(self._open))
            for task in done:
                task.result()

    async def _client(self, name: str, jwt: str) -> Client:
        client = Client(self._site.target_of(name), token=jwt, timeout=CALL_SECONDS)
        return await self._stack.enter_async_context(client)

    async def _trigger(self, admin: Client) -> None:
        while True:
            await asyncio.sleep(self._random.uniform(0.5, 1.5) * TRIGGER_EVERY)
            job = self._random.choice((BY_HAND, BY_HAND, DOOMED))
            task = asyncio.create_task(self._story(admin, job, self._random.choice(TENANTS), self._own_random()))
            self._open.add(task)
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        # One that failed stays, for `finish` to say so.
        if task.cancelled() or task.exception() is None:
            self._open.discard(task)

    async def _story(self, admin: Client, job: Job, tenant: str, random: Random) -> None:
        """A run by hand, and what becomes of it."""
        key = f"{random.getrandbits(4 * _KEY_CHARACTERS):0{_KEY_CHARACTERS}x}"
        run_key, request_id = (key, None) if random.random() < 0.5 else ("", key)
        payload = {"marker": marker(job.path, tenant)}

        async def trigger(client: Client) -> list[run_pb2.Run]:
            return await client.trigger_job(job.path, payload, tenants=[tenant], run_key=run_key, request_id=request_id)

        (run,) = await self._answered(admin, Wish("trigger", job.path, tenant, key, trigger))
        self._known[tenant] = run
        if job is BY_HAND:
            if random.random() > _CANCELLED:
                return
            await asyncio.sleep(random.uniform(0, 3))
            await self._cancel(admin, job, tenant, run)
        await self._retry(admin, job, tenant, run)

    async def _cancel(self, admin: Client, job: Job, tenant: str, run: UUID) -> None:
        async def cancel(client: Client) -> list[run_pb2.Run]:
            return [await client.cancel_run(run, "by the fault run")]

        await self._answered(admin, Wish("cancel", job.path, tenant, f"cancel-{run}", cancel, run))

    async def _retry(self, admin: Client, job: Job, tenant: str, run: UUID) -> None:
        """Once it has ended; one that completed is refused."""

        async def retry(client: Client) -> list[run_pb2.Run]:
            return [await client.retry_run(run, request_id=f"retry-{run}")]

        await self._answered(admin, Wish("retry", job.path, tenant, f"retry-{run}", retry, run))

    async def _answered(self, admin: Client, wish: Wish) -> tuple[UUID, ...]:
        return await until_answered(admin, wish, self._site.journal)

    async def _probe(self, tenant: str, user: Client) -> None:
        """Lists what it may see, and reads by id what it may not."""
        while True:
            await asyncio.sleep(_PROBE_EVERY)
            try:
                await self._look_at_own(tenant, user)
                await self._look_at_foreign(tenant, user)
            except NotFound as error:
                self._site.journal.foreign.append(f"{tenant} does not find its own: {error}")
            except CarillonError:
                continue
            self._site.journal.probes += 1

    async def _look_at_own(self, tenant: str, user: Client) -> None:
        seen = 0
        runs = user.list_runs()
        async for run in runs:
            self._check(tenant, run)
            seen += 1
            if seen == _PROBED:
                break
        await runs.aclose()
        async for schedule in user.list_schedules(tenant=tenant):
            if f"/tenants/{tenant}/" not in schedule.name:
                self._site.journal.foreign.append(f"{tenant} was shown {schedule.name}")

    async def _look_at_foreign(self, tenant: str, user: Client) -> None:
        for other, run in list(self._known.items()):
            if other == tenant:
                self._check(tenant, await user.get_run(run))
                continue
            try:
                found = await user.get_run(run)
            except NotFound:
                continue
            self._site.journal.foreign.append(f"{tenant} read {found.name} of {other}")

    def _check(self, tenant: str, run: run_pb2.Run) -> None:
        said = run.payload.fields["marker"].string_value if "marker" in run.payload.fields else ""
        if run.tenant != tenant or (said and not said.endswith(f"/{tenant}")):
            self._site.journal.foreign.append(f"{tenant} was shown {run.name} of {run.tenant}, with {said!r}")

    def _own_random(self) -> Random:
        return Random(self._random.random())
