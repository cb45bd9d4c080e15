"""Mutations that may be sent again: the same `request_id` with the same request gets the same answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from scheduler_service.domain.errors import AlreadyExists
from scheduler_service.store import requests as store
from scheduler_service.store.database import Transaction


async def idempotent(
    tx: Transaction, request_id: str, request_digest: bytes, action: Callable[[], Awaitable[bytes]]
) -> bytes:
    """The answer of `action`, or the one that this caller got under this id before. An empty id acts every time.

    `request_digest` covers the method and the whole request. What the action refuses is not kept, so that it may be
    tried again. Two calls at once under one id: the second waits for the first. Errors: AlreadyExists
    (REQUEST_ID_REUSED) if the id was used with another request.
    """
    if not request_id:
        return await action()
    await store.lock_request(tx, request_id)
    answered = await store.find_request(tx, request_id)
    if answered is None:
        answered = store.AnsweredRequest(request_digest, await action())
        await store.keep_request(tx, request_id, answered)
    elif answered.digest != request_digest:
        raise AlreadyExists(
            f"the request_id {request_id!a} was used already with another request; a new request needs a new one",
            reason="REQUEST_ID_REUSED",
            request_id=request_id,
        )
    return answered.response
