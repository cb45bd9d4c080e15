"""Calls as the worker service signs them, for services under test."""

from __future__ import annotations

import json
import time
from typing import Any

from carillon.signing import SigningKeys

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def signed(body: bytes, *keys: str, message: str = "r-1", age: float = 0) -> dict[str, str]:
    """The headers of a call that was signed `age` seconds ago, by KEY unless others are given."""
    headers = SigningKeys(keys or [KEY]).headers(message, int(time.time() - age), body)
    return {**headers, "Idempotency-Key": message}


def signed_json(run: Any) -> dict[str, Any]:
    """What `client.post` needs to post the run."""
    body = json.dumps(run).encode()
    message = run.get("run", "r-1") if isinstance(run, dict) else "r-1"
    return {"data": body, "headers": {"Content-Type": "application/json", **signed(body, message=message)}}
