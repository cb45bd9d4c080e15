"""Verifying calls by the worker service in frameworks."""

from __future__ import annotations

import carillon
from carillon.integrations.starlette import verified
from fastapi import Depends, FastAPI
from starlette.datastructures import Headers
from starlette.requests import Request

jobs = carillon.Jobs(service="email-service")
app = FastAPI()


@app.post("/digest", dependencies=[Depends(verified(jobs, "digest"))])
async def digest() -> None: ...


async def by_hand(request: Request) -> None:
    await verified(jobs, "digest")(request)
    jobs.verify(request.headers, await request.body())
    jobs.verify(request.headers, await request.body(), job="digest")


def with_headers(headers: Headers, body: bytes) -> None:
    try:
        jobs.verify(headers, body)
    except carillon.SignatureInvalid as invalid:
        str(invalid)
    jobs.verify(headers)  # E: Missing positional argument "body" in call to "verify" of "Jobs"


verified("email-service")  # E: Argument 1 to "verified" has incompatible type "str"; expected "Jobs"
