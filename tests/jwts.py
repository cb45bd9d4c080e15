"""An issuer of JWTs for tests, and whoever forges them: header, payload and signature each as one likes."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt import PyJWK
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from scheduler_service.domain.jwts import refused
from scheduler_service.identity.key_sets import ALGORITHMS, KeySet, read_key_set
from tests import canary

SECRET = canary.secret("jwt")
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@cache
def private_key(algorithm: str, number: int = 0) -> PrivateKey:
    """The same for the same number, in one test process."""
    del number
    if algorithm == "RS256":
        return rsa.generate_private_key(65537, 2048)
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


def jwk(key: PrivateKey, kid: str | None = None, **fields: Any) -> dict[str, Any]:
    """The public JWK of a private key."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        made = RSAAlgorithm.to_jwk(public, as_dict=True)
        made.pop("key_ops", None)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        made = ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        made = OKPAlgorithm.to_jwk(public, as_dict=True)
    return made | ({} if kid is None else {"kid": kid}) | fields


def key_set(*keys: Mapping[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def claims(**more: Any) -> dict[str, Any]:
    """Those that must be there, good for five minutes, and more; None leaves one out."""
    now = int(datetime.now(UTC).timestamp())
    said = {"sub": "alice", "iss": "carillon", "aud": "carillon", "iat": now, "exp": now + 300, **more}
    return {name: value for name, value in said.items() if value is not None}


def signed(key: PrivateKey | str, algorithm: str, kid: str | None = None, **more: Any) -> str:
    """A good JWT, apart from what its claims may say."""
    return jwt.encode(claims(**more), key, algorithm, headers={} if kid is None else {"kid": kid})


def base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(
    header: Mapping[str, Any] | bytes, payload: Mapping[str, Any] | bytes, sign: Callable[[bytes], bytes]
) -> str:
    """Any header and payload, as bytes or as JSON, with the signature that `sign` makes of both."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    content = ".".join(base64url(part) for part in parts)
    return f"{content}.{base64url(sign(content.encode()))}"


class FixedKeys:
    """The keys of one set."""

    algorithms = ALGORITHMS

    def __init__(self, *keys: Mapping[str, Any]) -> None:
        self._keys: KeySet = read_key_set(key_set(*keys))

    async def key(self, algorithm: str, kid: str | None) -> PyJWK:
        if (key := self._keys.find(algorithm, kid)) is None:
            raise refused("it names no key of the issuer's key set")
        return key
