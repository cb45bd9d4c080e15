"""Whether a call to a service's endpoint comes from the worker service, for it, and came when it was made."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from carillon.errors import SignatureInvalid, SigningKeysMissing
from carillon.signing import HEADERS, ID, PREFIX, SIGNATURE, TIMESTAMP, VERSION, SigningKeys, split

TOLERANCE_SECONDS = 300

_IDEMPOTENCY_KEY = "idempotency-key"
_REQUIRED = (*HEADERS, _IDEMPOTENCY_KEY)
_MOST_SIGNATURES = 10
_MESSAGE = re.compile(r"[A-Za-z0-9_-]{1,256}")
_SECONDS = re.compile(r"[0-9]{1,12}")


class Headers(Protocol):
    """What frameworks' headers and dicts have in common."""

    def items(self) -> Iterable[tuple[str, str]]: ...


def resolve_keys(given: Sequence[str] | None) -> SigningKeys | None:
    """The keys that are given; else those of `CARILLON_SIGNING_KEYS`, or of the file that `CARILLON_SIGNING_KEYS_FILE`
    names; else None. Raises ValueError if they are malformed, OSError if the file cannot be read."""
    if given is not None:
        if isinstance(given, str):
            raise TypeError("signing_keys must be a list, such as ['whsec_...']")
        return _keys("signing_keys", given)
    if text := os.environ.get("CARILLON_SIGNING_KEYS"):
        return _keys("CARILLON_SIGNING_KEYS", split(text))
    if file := os.environ.get("CARILLON_SIGNING_KEYS_FILE"):
        return _keys("CARILLON_SIGNING_KEYS_FILE", split(Path(file).read_text()))
    return None


def verify(
    keys: SigningKeys | None, headers: Headers, body: bytes, now: float, *, service: str, job: str | None = None
) -> None:
    """See `Jobs.verify`. now: seconds since the Unix epoch. service: who is called."""
    if keys is None:
        raise SigningKeysMissing(
            "the call cannot be verified: set CARILLON_SIGNING_KEYS (or CARILLON_SIGNING_KEYS_FILE) to the key "
            "whsec_... that the worker service signs calls to this service with, or give Jobs(..., signing_keys=[...])"
        )
    if not isinstance(body, bytes):
        raise TypeError(f"body must be the bytes as they were received, not {type(body).__name__}")
    found = _found(headers)
    message, timestamp = found[ID], found[TIMESTAMP]
    if not _MESSAGE.fullmatch(message) or not _SECONDS.fullmatch(timestamp):
        raise SignatureInvalid(f"the call is not signed: {ID} or {TIMESTAMP} is malformed")
    if not keys.made_one_of(_of_this_version(found[SIGNATURE]), message, timestamp, body):
        raise SignatureInvalid(
            "the signature is wrong: another key signed the call, or something changed it on its way"
        )
    # After the signature, so that only a call that was really made is told about clocks.
    _require_recent(now - int(timestamp))
    if found[_IDEMPOTENCY_KEY] != message:
        raise SignatureInvalid(f"the header Idempotency-Key is not what was signed: it differs from {ID}")
    _require_meant(_object(body), message, service, job)


def _keys(name: str, texts: Sequence[str]) -> SigningKeys:
    if any(f"={PREFIX}" in text for text in texts):
        raise ValueError(f"{name} is the service's own: write {PREFIX}..., without the service that the worker's has")
    try:
        return SigningKeys(texts)
    except ValueError as wrong:
        raise ValueError(f"{name}: {wrong}") from None


def _found(headers: Headers) -> dict[str, str]:
    """The headers that count, by their names in lower case."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        if (lower := name.lower()) not in _REQUIRED:
            continue
        if found.setdefault(lower, value) != value:
            raise SignatureInvalid(f"the header {lower} comes twice")
    if missing := [name for name in _REQUIRED if name not in found]:
        raise SignatureInvalid(f"the call is not signed: {_are(missing)} missing")
    return found


def _are(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last} are" if others else f"{last} is"


def _of_this_version(header: str) -> list[str]:
    parts = [part.partition(",") for part in header.split(" ")[:_MOST_SIGNATURES]]
    return [signature for version, _, signature in parts if version == VERSION]


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise SignatureInvalid("the body is signed, but is no run as the worker service posts it")
    return value


def _require_meant(run: Mapping[str, Any], message: str, service: str, job: str | None) -> None:
    """A key may have signed calls that were meant for somebody else: another service with the same key, or another job
    of this one."""
    if run.get("run") != message:
        raise SignatureInvalid(f"the signed body is of another run than {ID}")
    if run.get("service") != service:
        raise SignatureInvalid(f"the call is for a job of another service than {service}")
    if job is not None and run.get("job") != job:
        raise SignatureInvalid(f"the call is for another job than {job}")


def _require_recent(age: float) -> None:
    if age > TOLERANCE_SECONDS:
        raise SignatureInvalid(
            f"the call was signed {age:.0f} s ago, at most {TOLERANCE_SECONDS} s are accepted: it is a repetition, or "
            "the clocks of the worker service and this service differ"
        )
    if age < -TOLERANCE_SECONDS:
        raise SignatureInvalid(
            f"the call was signed {-age:.0f} s in the future, at most {TOLERANCE_SECONDS} s are accepted: the clocks "
            "of the worker service and this service differ"
        )
