"""An SMTP server that appends each message as a line of JSON to a file."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import datetime, timezone
from email.parser import BytesHeaderParser
from email.policy import default as modern
from pathlib import Path
from types import TracebackType
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session


class SmtpSink:
    """Listens while its block runs. `port` 0 takes a free one. Errors: OSError if port or file cannot be had.

    A message is on disk (fsync) before the sender is told that it was taken.
    """

    def __init__(self, file: Path, host: str = "127.0.0.1", port: int = 1025) -> None:
        self._path = file
        self._host = host
        self.port = port
        self._one_at_a_time = asyncio.Lock()

    async def __aenter__(self) -> SmtpSink:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("ab")
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: SMTP(self, hostname="localhost", ident="Carillon's example sink"), self._host, self.port
            )
        except OSError:
            self._file.close()
            raise
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._server.close()
        async with self._one_at_a_time:
            self._file.close()

    async def handle_DATA(self, _server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        line = json.dumps(_summary(session, envelope)).encode() + b"\n"
        async with self._one_at_a_time:
            if self._file.closed:
                return "421 The sink is closing"
            await asyncio.to_thread(self._append, line)
        return "250 Written down"

    def _append(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())


def _summary(session: Session, envelope: Envelope) -> dict[str, Any]:
    content = envelope.original_content or b""
    headers = BytesHeaderParser(policy=modern).parsebytes(content)
    return {
        "time": datetime.now(timezone.utc).isoformat(),
        "peer": session.peer[0] if session.peer else None,
        "from": envelope.mail_from,
        "to": envelope.rcpt_tos,
        "size": len(content),
        "headers": {name: str(value) for name, value in headers.items()},
    }
