"""The email example against a real SMTP sink: each message once, whatever is asked for again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiosmtpd.smtp import SMTP, Envelope, Session
from carillon import Jobs

from examples.email_service.app import EmailService, who_is_new
from examples.email_service.mail import MailServer, Recipient, read_recipients
from examples.email_service.mailings import Mailings
from examples.smtp_sink.sink import SmtpSink
from tests.ports import silent_port
from tests.signed import KEY, signed_json

RECIPIENTS = read_recipients(Path(__file__).parents[3] / "examples/email_service/recipients.csv")
JOBS = Jobs("email-service", signing_keys=[KEY])
Client = TestClient[web.Request, web.Application]


class Inbox:
    """What a sink wrote down."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]


def a_run(run: str = "r-1", attempt: int = 1, job: str = "weekly-digest", **payload: Any) -> dict[str, Any]:
    meant = {"run": run, "service": "email-service", "job": job}
    return {**meant, "attempt": attempt, "scheduled_time": "2026-11-23T14:00:00Z", "payload": payload}


def a_welcome(run: str = "r-1", attempt: int = 1) -> dict[str, Any]:
    return a_run(run, attempt, "welcome-mail")


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return Inbox(tmp_path / "mail.jsonl")


@pytest.fixture
async def sink(inbox: Inbox) -> AsyncIterator[SmtpSink]:
    async with SmtpSink(inbox.file, port=0) as sink:
        yield sink


@pytest.fixture
async def client(sink: SmtpSink) -> AsyncIterator[Client]:
    app = EmailService(JOBS, Mailings(MailServer("127.0.0.1", sink.port)), RECIPIENTS).app()
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_the_digest_reaches_everyone_once(client: Client, inbox: Inbox) -> None:
    response = await client.post("/api/jobs/weekly-digest", **signed_json(a_run(attempt=2, batchSize=5)))
    everyone = len(RECIPIENTS)
    assert response.status == 200
    answer = await response.json()
    assert answer["items"] == {"processed": everyone, "succeeded": everyone, "failed": 0}
    assert answer["metrics"] == {"messages": everyone}
    messages = inbox.messages()
    assert [message["to"] for message in messages] == [[recipient.email] for recipient in RECIPIENTS]
    assert {message["headers"]["X-Carillon-Run"] for message in messages} == {"r-1"}
    assert {message["headers"]["X-Carillon-Attempt"] for message in messages} == {"2"}
    assert len({message["headers"]["Message-ID"] for message in messages}) == everyone
    assert messages[0]["headers"]["Subject"] == "Your digest, week 48 of 2026"
    assert all(message["size"] > 100 for message in messages)


async def test_a_repeated_run_gets_the_same_answer_and_sends_nothing(client: Client, inbox: Inbox) -> None:
    responses = await asyncio.gather(
        *(client.post("/api/jobs/welcome-mail", **signed_json(a_welcome(attempt=attempt))) for attempt in (1, 1, 2))
    )
    answers = [await response.json() for response in responses]
    assert answers[0] == answers[1] == answers[2]
    assert len(inbox.messages()) == answers[0]["items"]["processed"] > 0


async def test_message_ids_follow_from_run_and_recipient(client: Client, inbox: Inbox, sink: SmtpSink) -> None:
    await client.post("/api/jobs/welcome-mail", **signed_json(a_welcome("r-1")))
    first = [message["headers"]["Message-ID"] for message in inbox.messages()]
    restarted = EmailService(JOBS, Mailings(MailServer("127.0.0.1", sink.port)), RECIPIENTS).app()
    async with TestClient(TestServer(restarted)) as other:
        await other.post("/api/jobs/welcome-mail", **signed_json(a_welcome("r-1")))
        await other.post("/api/jobs/welcome-mail", **signed_json(a_welcome("r-2")))
    ids = [message["headers"]["Message-ID"] for message in inbox.messages()]
    assert ids[len(first) : 2 * len(first)] == first
    assert not set(ids[2 * len(first) :]) & set(first)


@pytest.mark.parametrize(
    "body", [{**a_run(), "attempt": None}, {**a_run(), "scheduled_time": "soon"}, a_run(batchSize=0)]
)
async def test_a_body_that_is_no_run_is_refused(client: Client, inbox: Inbox, body: Any) -> None:
    response = await client.post("/api/jobs/weekly-digest", **signed_json(body))
    assert response.status == 400
    assert response.headers["Carillon-Retry"] == "false"
    assert inbox.messages() == []


async def test_a_call_that_nobody_signed_sends_nothing(client: Client, inbox: Inbox) -> None:
    response = await client.post("/api/jobs/weekly-digest", json=a_run())
    assert (response.status, await response.text()) == (
        401,
        "the call is not signed: webhook-id, webhook-timestamp, webhook-signature and idempotency-key are missing",
    )
    assert inbox.messages() == []


async def test_a_call_that_was_signed_for_another_job_sends_nothing(client: Client, inbox: Inbox) -> None:
    response = await client.post("/api/jobs/weekly-digest", **signed_json(a_welcome()))
    assert (response.status, await response.text()) == (401, "the call is for another job than weekly-digest")
    assert inbox.messages() == []


class Fickle:
    """A mail server that refuses one address, and hangs up once when it is to take another."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.hung_up = False

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address == RECIPIENTS[1].email:
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if envelope.rcpt_tos == [RECIPIENTS[4].email] and not self.hung_up:
            self.hung_up = True
            return "421 going down"
        self.taken += envelope.rcpt_tos
        return "250 OK"


@pytest.fixture
async def fickle() -> AsyncIterator[tuple[Fickle, Client]]:
    fickle = Fickle()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(fickle, hostname="localhost"), "127.0.0.1", 0)
    mail_server = MailServer("127.0.0.1", server.sockets[0].getsockname()[1])
    async with TestClient(TestServer(EmailService(JOBS, Mailings(mail_server), RECIPIENTS).app())) as client:
        yield fickle, client
    server.close()


async def test_a_second_attempt_sends_only_what_is_missing(fickle: tuple[Fickle, Client]) -> None:
    server, client = fickle
    broken = await client.post("/api/jobs/weekly-digest", **signed_json(a_run()))
    assert broken.status == 503
    assert broken.headers["Retry-After"] == "15"
    assert "421" in await broken.text()
    answer = await (await client.post("/api/jobs/weekly-digest", **signed_json(a_run(attempt=2)))).json()
    assert answer["items"] == {"processed": 12, "succeeded": 11, "failed": 1}
    assert answer["metadata"] == {"refused": {RECIPIENTS[1].email: "550 no such mailbox"}}
    assert sorted(server.taken) == sorted(r.email for r in RECIPIENTS if r != RECIPIENTS[1])


async def test_no_mail_server_at_all_asks_for_another_attempt() -> None:
    with silent_port() as port:
        app = EmailService(JOBS, Mailings(MailServer("127.0.0.1", port)), RECIPIENTS).app()
        async with TestClient(TestServer(app)) as client:
            response = await client.post("/api/jobs/weekly-digest", **signed_json(a_run()))
            assert response.status == 503
            assert "the mail server cannot be used" in await response.text()


def test_the_newcomers_rotate_and_follow_from_the_instant() -> None:
    people = [Recipient(str(number), f"{number}@example.com") for number in range(5)]

    def new(second: int) -> list[str]:
        return [one.name for one in who_is_new(people, datetime.fromtimestamp(second, timezone.utc))]

    assert [new(second) for second in (0, 2, 4, 6, 8)] == [["0"], ["1", "2"], ["2", "3", "4"], ["3"], ["4", "0"]]
    assert new(1) == new(0)
    assert new(10**9) == new(10**9)


async def test_memory_is_bounded(sink: SmtpSink, inbox: Inbox) -> None:
    mailings = Mailings(MailServer("127.0.0.1", sink.port), limit=2)
    for run in ("r-1", "r-2", "r-3", "r-1", "r-1"):
        await mailings.send(run, 1, RECIPIENTS[:1], subject="s", text="t")
    assert [m["headers"]["X-Carillon-Run"] for m in inbox.messages()] == ["r-1", "r-2", "r-3", "r-1"]
