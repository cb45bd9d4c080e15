"""Signatures of calls to services, after the Standard Webhooks specification (standardwebhooks.com), version `v1`."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence

ID = "webhook-id"
TIMESTAMP = "webhook-timestamp"
SIGNATURE = "webhook-signature"
HEADERS = (ID, TIMESTAMP, SIGNATURE)

PREFIX = "whsec_"
MOST_KEYS = 2
VERSION = "v1"

_KEY_BYTES = range(24, 65)
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_SHAPE = f"a key is {PREFIX} and base64 of 24 to 64 random bytes"


class SigningKeys:
    """The one or two keys of a service. Two are live while one takes the other's place. Never shown."""

    def __init__(self, texts: Sequence[str]) -> None:
        """texts: each `whsec_<base64>`. Raises ValueError with a sentence that repeats no key."""
        if not 1 <= len(texts) <= MOST_KEYS:
            raise ValueError(
                f"a service has one signing key, or two while one takes the other's place, not {len(texts)}"
            )
        self._keys = tuple(_read(text) for text in texts)
        if len(set(self._keys)) < len(texts):
            raise ValueError("a service's two signing keys are the same; leave out one")

    def __repr__(self) -> str:
        return f"SigningKeys({len(self._keys)} hidden)"

    def headers(self, message: str, timestamp: int, body: bytes) -> Mapping[str, str]:
        """The headers that sign `body`, with a signature of each key. timestamp: seconds since the Unix epoch."""
        signatures = self._signatures(message, str(timestamp), body)
        return {ID: message, TIMESTAMP: str(timestamp), SIGNATURE: " ".join(f"{VERSION},{one}" for one in signatures)}

    def made_one_of(self, signatures: Iterable[str], message: str, timestamp: str, body: bytes) -> bool:
        """Whether one of the signatures (base64) is by one of these keys. Takes as long for a wrong one as for a
        right one."""
        own = [one.encode() for one in self._signatures(message, timestamp, body)]
        found = False
        for signature in signatures:
            for one in own:
                found |= hmac.compare_digest(one, signature.encode("utf-8", "replace"))
        return found

    def _signatures(self, message: str, timestamp: str, body: bytes) -> Sequence[str]:
        content = f"{message}.{timestamp}.".encode() + body
        return [base64.b64encode(hmac.digest(key, content, "sha256")).decode() for key in self._keys]


def split(text: str) -> list[str]:
    """The entries of a list that is separated by commas or line ends."""
    return [entry for entry in (part.strip() for part in re.split(r"[,\n]", text)) if entry]


def _read(text: str) -> bytes:
    encoded = text.removeprefix(PREFIX)
    if encoded == text or not _BASE64.fullmatch(encoded):
        raise ValueError(f"a signing key is malformed: {_SHAPE}")
    try:
        key = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise ValueError(f"a signing key is malformed: {_SHAPE}") from None
    if len(key) not in _KEY_BYTES:
        raise ValueError(f"a signing key has {len(key)} bytes: {_SHAPE}")
    if not any(key):
        raise ValueError(f"a signing key is all zeros: {_SHAPE}")
    return key
