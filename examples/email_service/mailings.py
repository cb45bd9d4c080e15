"""Mailings: what a run sends, each message once, however often the run is asked for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

from examples.email_service.mail import MailServer, Recipient, compose


@dataclass
class Mailing:
    """What one run has sent so far: for each address why it was refused, or None."""

    outcomes: dict[str, str | None] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def result(self) -> dict[str, Any]:
        """The answer to the worker: Carillon records items, metrics and metadata with the run."""
        refused = {address: why for address, why in self.outcomes.items() if why is not None}
        processed = len(self.outcomes)
        return {
            "items": {
                "processed": processed,
                "succeeded": processed - len(refused),
                "failed": len(refused),
            },
            "metrics": {"messages": processed - len(refused)},
            "metadata": {"refused": refused} if refused else {},
        }


class Mailings:
    """Remembers the newest `limit` runs, by the run's id.

    A repeated request gets the same answer and sends nothing; the second attempt of a run that broke off in the
    middle sends only what is missing. A service that is to remember over a restart keeps this in its database.
    """

    def __init__(self, server: MailServer, limit: int = 10_000) -> None:
        self._server = server
        self._limit = limit
        self._by_run: OrderedDict[str, Mailing] = OrderedDict()

    async def send(
        self,
        run: str,
        attempt: int,
        recipients: Sequence[Recipient],
        *,
        subject: str,
        text: str,
        batch_size: int = 100,
    ) -> dict[str, Any]:
        """Sends to everyone who has no message of this run yet, a connection for each batch.

        Errors: MailServerGone; what was sent before it is remembered.
        """
        mailing = self._of(run)
        async with mailing.lock:  # the same run may be asked for twice at the same time
            missing = [recipient for recipient in recipients if recipient.email not in mailing.outcomes]
            for first in range(0, len(missing), batch_size):
                batch = missing[first : first + batch_size]
                messages = [compose(run, attempt, recipient, subject, text) for recipient in batch]
                await asyncio.to_thread(self._send, mailing, batch, messages)
        return mailing.result()

    def _of(self, run: str) -> Mailing:
        mailing = self._by_run.setdefault(run, Mailing())
        self._by_run.move_to_end(run)
        while len(self._by_run) > self._limit:
            self._by_run.popitem(last=False)
        return mailing

    def _send(self, mailing: Mailing, batch: Sequence[Recipient], messages: Sequence[EmailMessage]) -> None:
        for recipient, refused in zip(batch, self._server.send(messages), strict=True):
            mailing.outcomes[recipient.email] = refused
