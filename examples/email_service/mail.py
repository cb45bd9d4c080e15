"""Messages, and the one way they leave this service."""

from __future__ import annotations

import csv
import hashlib
import smtplib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.headerregistry import Address
from email.message import EmailMessage
from pathlib import Path

SENDER = Address("Example Mail", "mail", "example.com")
SMTP_SECONDS = 10.0


class MailServerGone(Exception):
    """The mail server cannot be reached, or hung up: the rest was not sent."""


@dataclass(frozen=True)
class Recipient:
    name: str
    email: str


@dataclass(frozen=True)
class MailServer:
    host: str
    port: int

    def send(self, messages: Iterable[EmailMessage]) -> Iterator[str | None]:
        """Sends one after the other over one connection, and yields for each why it was refused, or None.

        Blocks, so call it in a thread. Errors: MailServerGone.
        """
        with _hanging_up_is_news(), smtplib.SMTP(self.host, self.port, timeout=SMTP_SECONDS) as server:
            for message in messages:
                yield _send(server, message)


def read_recipients(path: Path) -> list[Recipient]:
    with path.open(newline="", encoding="utf-8") as file:
        return [Recipient(row["name"], row["email"]) for row in csv.DictReader(file)]


def compose(run: str, attempt: int, recipient: Recipient, subject: str, text: str) -> EmailMessage:
    """A message that says which run it belongs to.

    Its `Message-ID` follows from run and recipient alone: should it ever be sent twice, both carry the same.
    """
    message = EmailMessage()
    message["From"] = SENDER
    message["To"] = Address(recipient.name, addr_spec=recipient.email)
    message["Subject"] = subject
    message["Message-ID"] = f"<{hashlib.sha256(f'{run} {recipient.email}'.encode()).hexdigest()[:32]}@example.com>"
    message["X-Carillon-Run"] = run
    message["X-Carillon-Attempt"] = str(attempt)
    message.set_content(f"Hello {recipient.name},\n\n{text}\n")
    return message


def _send(server: smtplib.SMTP, message: EmailMessage) -> str | None:
    try:
        server.send_message(message)
    except (smtplib.SMTPRecipientsRefused, smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as refused:
        if server.sock is None:  # 421: it refused, and hung up
            raise
        return _why(refused)
    return None


def _why(refused: smtplib.SMTPException) -> str:
    if isinstance(refused, smtplib.SMTPRecipientsRefused):
        [(code, text)] = refused.recipients.values()
    else:
        code, text = refused.args[:2]
    return f"{code} {text.decode(errors='replace')}"


@contextmanager
def _hanging_up_is_news() -> Iterator[None]:
    try:
        yield
    except (OSError, smtplib.SMTPException) as error:
        raise MailServerGone(f"the mail server cannot be used: {error}") from error
