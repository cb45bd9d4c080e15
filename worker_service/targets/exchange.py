"""One request, one answer: what a service sends beside its answer ends the connection.

Otherwise a connection that waits to be used again would take in whatever a service sends, without bound; and an answer
that nobody asked for would be the next run's.
"""

from __future__ import annotations

from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader

# Of one answer, as it comes over the wire. Far above what its head and the part of its body that is read can have.
RAW_BYTES = 4 * 1024 * 1024


class AnswerTooLong(aiohttp.ClientPayloadError):
    """An answer went on and on: interim answers, or chunks with little in them."""


class Exchange(ResponseHandler):
    """A connection that takes one answer to each request, of at most RAW_BYTES, and hangs up on anything else."""

    _asked = False
    _received = 0
    _answer: StreamReader | None = None

    def set_response_params(self, **params: Any) -> None:
        """A request begins."""
        self._asked, self._received, self._answer = True, 0, None
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        if data and self._is_idle():
            self.abort()
            return
        self._received += len(data)
        if self._received > RAW_BYTES:
            self._give_up()
            return
        super().data_received(data)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """A head was read, and as much of its body as came with it."""
        if self._answer is not None:
            self.abort()
            return
        message, body = data
        if not _is_interim(message.code):
            self._answer = body
        super().feed_data(data, size)

    def _is_idle(self) -> bool:
        return not self._asked or (self._answer is not None and self._answer.is_eof())

    def _give_up(self) -> None:
        error = AnswerTooLong()
        if self._answer is not None:
            self._answer.set_exception(error)
        transport = self.transport
        self.set_exception(error)
        if transport is not None:
            transport.abort()


def _is_interim(status: int) -> bool:
    return 100 <= status < 200 and status != 101
