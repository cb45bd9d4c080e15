"""JSON Web Key Sets (RFC 7517): which keys of an answer may verify JWTs, and by which algorithm each.

A key's algorithm follows from its type and curve alone. What a JWT says of itself decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from scheduler_service.domain.fields import quoted
from scheduler_service.identity.strict_json import strict_json

MAX_KEYS = 100
MAX_KID_LENGTH = 255
ALGORITHMS = frozenset({"RS256", "ES256", "EdDSA"})
_BY_TYPE: Mapping[tuple[object, object], str] = {
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}
_PRIVATE = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")
_RSA_BITS = range(2048, 8193)
_MAX_EXPONENT = 2**32


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of a set that count. `ignored`: a sentence for each of the others."""

    keys: tuple[PyJWK, ...]
    ignored: tuple[str, ...] = ()

    def find(self, algorithm: str, kid: str | None) -> PyJWK | None:
        """The key of this id. A JWT that names none has its key only where just one key is of its algorithm."""
        if kid is not None:
            return next((key for key in self.keys if key.key_id == kid), None)
        fitting = [key for key in self.keys if key.algorithm_name == algorithm]
        return fitting[0] if len(fitting) == 1 else None


def read_key_set(body: bytes) -> KeySet:
    """Errors: ValueError with a sentence for an answer that is no set, or has no key that counts."""
    entries = _entries(strict_json(body))
    twins = {kid for kid, count in Counter(map(_kid, entries)).items() if kid is not None and count > 1}
    keys: list[PyJWK] = []
    ignored: list[str] = []
    for place, entry in enumerate(entries, 1):
        try:
            keys.append(_key(entry, twins))
        except ValueError as reason:
            ignored.append(f"key {place} ({quoted(_kid(entry) or '')}): {reason}")
    if not keys:
        raise ValueError(f"none of its {len(entries)} keys counts; {ignored[0]}" if ignored else "it has no keys")
    return KeySet(tuple(keys), tuple(ignored))


def _entries(answer: object) -> list[Any]:
    entries = answer.get("keys") if isinstance(answer, Mapping) else None
    if not isinstance(entries, list):
        raise ValueError("it is no JSON Web Key Set: an object with a list `keys`")
    if len(entries) > MAX_KEYS:
        raise ValueError(f"it has {len(entries)} keys; at most {MAX_KEYS} are read")
    return entries


def _kid(entry: object) -> str | None:
    kid = entry.get("kid") if isinstance(entry, Mapping) else None
    return kid if isinstance(kid, str) else None


def _key(entry: object, twins: set[str]) -> PyJWK:
    """Errors: ValueError that says why the key does not count, without its values."""
    if not isinstance(entry, dict):
        raise ValueError("it is no object")
    algorithm = _algorithm(entry)
    _check_purpose(entry)
    _check_id(entry, twins)
    try:
        key = PyJWK(entry, algorithm)
    except (PyJWTError, ValueError, TypeError, KeyError):  # their texts repeat the key
        raise ValueError(f"its numbers are no {entry['kty']} key") from None
    if isinstance(key.key, RSAPublicKey):
        _check_strength(key.key)
    return key


def _algorithm(entry: Mapping[str, Any]) -> str:
    kind, curve, named = entry.get("kty"), entry.get("crv"), entry.get("alg")
    if any(name in entry for name in _PRIVATE):
        raise ValueError("it is symmetric or private, and must be published nowhere")
    try:
        algorithm = _BY_TYPE[(kind, None if kind == "RSA" else curve)]
    except (KeyError, TypeError):
        raise ValueError("its type is none of RSA, EC with P-256 and OKP with Ed25519") from None
    if named is not None and named != algorithm:
        raise ValueError(f"its `alg` is not {algorithm}")
    return algorithm


def _check_purpose(entry: Mapping[str, Any]) -> None:
    if entry.get("use", "sig") != "sig":
        raise ValueError("its `use` is not sig")
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise ValueError("its `key_ops` have no verify")


def _check_id(entry: Mapping[str, Any], twins: set[str]) -> None:
    if "kid" not in entry:
        return
    kid = _kid(entry)
    if not kid or len(kid) > MAX_KID_LENGTH:
        raise ValueError(f"its `kid` is no text of 1 to {MAX_KID_LENGTH} characters")
    if kid in twins:
        raise ValueError("its `kid` stands twice in the set, so that none of them counts")


def _check_strength(key: RSAPublicKey) -> None:
    if key.key_size not in _RSA_BITS:
        raise ValueError(f"it has {key.key_size} bits; {_RSA_BITS.start} to {_RSA_BITS.stop - 1} are accepted")
    if key.public_numbers().e > _MAX_EXPONENT:
        raise ValueError("its exponent is longer than 32 bits")
