"""Names become addresses off the loop, within a time, and once for all who ask at the same time."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Iterator, Sequence

import pytest

from worker_service.targets.hosts import Address
from worker_service.targets.resolving import (
    KEEP_FAILURE_SECONDS,
    KEEP_SECONDS,
    QUESTIONS_OF_A_SERVICE,
    Names,
    NotResolved,
    ask_system,
)

FIRST, SECOND = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")
PATIENCE = 60.0
SERVICE, OTHER = "email-service", "kpi-service"


class Dns:
    """A system's resolver that is slow until it is let go on, and counts what it is asked."""

    def __init__(self, *answers: Address) -> None:
        self.answers: Sequence[Address] = answers
        self.asked = 0
        self.threads: set[int] = set()
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, _name: str) -> Sequence[Address]:
        self.asked += 1
        self.threads.add(threading.get_ident())
        assert self.go_on.wait(PATIENCE)
        return self.answers


@pytest.fixture
def dns() -> Iterator[Dns]:
    dns = Dns(FIRST, FIRST, SECOND)
    yield dns
    dns.go_on.set()  # or its thread would keep the tests from ending


async def test_each_address_comes_once_from_another_thread(dns: Dns) -> None:
    async with Names(dns) as names:
        assert await names("a", SERVICE) == (FIRST, SECOND)
    assert threading.get_ident() not in dns.threads


async def test_those_who_ask_at_the_same_time_share_the_answer_though_the_first_gives_up(dns: Dns) -> None:
    dns.go_on.clear()
    async with Names(dns) as names:
        first, second = asyncio.ensure_future(names("a", SERVICE)), asyncio.ensure_future(names("a", SERVICE))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        dns.go_on.set()
        assert await second == (FIRST, SECOND)
    assert dns.asked == 1


async def test_a_slow_answer_is_not_waited_for(dns: Dns) -> None:
    dns.go_on.clear()
    async with Names(dns, seconds=0.01) as names:
        with pytest.raises(NotResolved, match=r"the host name was not resolved within 0\.01 s"):
            await names("a", SERVICE)
        dns.go_on.set()


async def test_an_answer_is_used_for_a_while_and_then_asked_for_again(dns: Dns) -> None:
    now = [0.0]
    async with Names(dns, clock=lambda: now[0]) as names:
        assert await names("a", SERVICE) == (FIRST, SECOND)
        dns.answers = [SECOND]
        now[0] = KEEP_SECONDS - 0.1
        assert await names("a", SERVICE) == (FIRST, SECOND)
        now[0] = KEEP_SECONDS
        assert await names("a", SERVICE) == (SECOND,)
    assert dns.asked == 2


async def test_no_answer_is_kept_for_a_moment_and_for_who_asked(dns: Dns) -> None:
    dns.answers = []
    now = [0.0]
    async with Names(dns, clock=lambda: now[0]) as names:
        for now[0] in (0.0, KEEP_FAILURE_SECONDS - 0.1):
            with pytest.raises(NotResolved, match="the host name has no address"):
                await names("a", SERVICE)
        assert dns.asked == 1
        dns.answers = [FIRST]
        assert await names("a", OTHER) == (FIRST,)
        dns.answers = []
        now[0] = KEEP_SECONDS + KEEP_FAILURE_SECONDS
        with pytest.raises(NotResolved):
            await names("a", SERVICE)
        assert dns.asked == 3


async def test_names_that_are_never_answered_hold_up_only_the_service_that_asks_for_them() -> None:
    go_on = threading.Event()
    asked: list[str] = []

    def ask(name: str) -> Sequence[Address]:
        asked.append(name)
        if name.startswith("slow"):
            assert go_on.wait(PATIENCE)
        return [FIRST]

    async with Names(ask, seconds=PATIENCE) as names:
        waiting = [asyncio.ensure_future(names(f"slow{number}", SERVICE)) for number in range(100)]
        own = asyncio.ensure_future(names("a", SERVICE))
        assert await names("a", OTHER) == (FIRST,)
        assert not any(each.done() for each in (*waiting, own))
        assert len([name for name in asked if name.startswith("slow")]) <= QUESTIONS_OF_A_SERVICE
        go_on.set()
        assert await asyncio.gather(*waiting, own) == [(FIRST,)] * 101


async def test_a_question_that_nobody_waits_for_any_more_still_counts(dns: Dns) -> None:
    dns.go_on.clear()
    async with Names(dns, seconds=0.01) as names:
        for number in range(QUESTIONS_OF_A_SERVICE + 3):
            with pytest.raises(NotResolved, match="was not resolved within"):
                await names(f"slow{number}", SERVICE)
        assert dns.asked <= QUESTIONS_OF_A_SERVICE
        dns.go_on.set()


async def test_a_name_that_is_not_known_says_so() -> None:
    def fails(_name: str) -> Sequence[Address]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with Names(fails) as names:
        with pytest.raises(NotResolved, match="the host name is not known"):
            await names("a", SERVICE)


def test_the_system_knows_this_machine() -> None:
    assert {str(address) for address in ask_system("localhost")} <= {"127.0.0.1", "::1"}
    assert ask_system("localhost")
