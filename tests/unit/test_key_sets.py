"""Which keys of a JSON Web Key Set count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm

from scheduler_service.identity.key_sets import MAX_KEYS, KeySet, read_key_set
from tests.jwts import base64url, jwk, key_set, private_key

RSA = private_key("RS256")
EC = private_key("ES256")
ED = private_key("EdDSA")
GOOD = jwk(EC, "good")


def read(*keys: Mapping[str, Any]) -> KeySet:
    return read_key_set(key_set(*keys))


def why_not(entry: Mapping[str, Any]) -> str:
    """Why a key beside a good one does not count."""
    keys = read(GOOD, entry)
    assert [key.key_id for key in keys.keys] == ["good"]
    [sentence] = keys.ignored
    return sentence


def test_the_algorithm_is_that_of_the_keys_type() -> None:
    keys = read(jwk(RSA, "a"), jwk(EC, "b"), jwk(ED, "c"))
    assert [(key.key_id, key.algorithm_name) for key in keys.keys] == [("a", "RS256"), ("b", "ES256"), ("c", "EdDSA")]
    assert keys.ignored == ()


def test_what_a_published_key_may_say_besides() -> None:
    entry = jwk(RSA, "a", alg="RS256", use="sig", key_ops=["verify"], x5c=["MIIB"], x5t="abc", n_unknown=[1])
    assert [key.key_id for key in read(entry).keys] == ["a"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"alg": "RS384"}, "`alg` is not RS256"),
        ({"alg": "PS256"}, "`alg` is not RS256"),
        ({"alg": "HS256"}, "`alg` is not RS256"),
        ({"alg": "none"}, "`alg` is not RS256"),
        ({"alg": 7}, "`alg` is not RS256"),
        ({"use": "enc"}, "`use`"),
        ({"use": None}, "`use`"),
        ({"key_ops": ["sign"]}, "`key_ops`"),
        ({"key_ops": "verify"}, "`key_ops`"),
        ({"kid": 7}, "`kid`"),
        ({"kid": ""}, "`kid`"),
        ({"kid": "x" * 256}, "`kid`"),
        ({"kty": "EC"}, "type"),
        ({"kty": "EC", "crv": "P-256"}, "numbers"),
        ({"kty": "RSA1"}, "type"),
        ({"kty": None}, "type"),
        ({"kty": ["RSA"]}, "type"),
        ({"n": "!!!"}, "numbers"),
        ({"n": 7}, "numbers"),
        ({"n": None}, "numbers"),
        ({"e": base64url(b"\1")}, "numbers"),
        ({"e": base64url(b"\2")}, "numbers"),
        ({"e": base64url(b"\1" * 9)}, "exponent"),
    ],
)
def test_a_key_that_does_not_fit_is_ignored_with_its_reason(fields: Mapping[str, Any], reason: str) -> None:
    assert reason in why_not({**jwk(RSA, "odd"), **fields})


def test_curves_that_are_not_ours_are_ignored() -> None:
    p384 = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), as_dict=True)
    assert "type" in why_not(p384)
    assert "numbers" in why_not({**p384, "crv": "P-256"})
    assert "numbers" in why_not({**jwk(EC, "off"), "y": jwk(EC)["x"]})
    assert "type" in why_not({**jwk(ED, "x"), "crv": "X25519"})
    assert "type" in why_not({**jwk(ED, "x"), "crv": ["Ed25519"]})


@pytest.mark.filterwarnings("ignore::UserWarning")  # cryptography would rather not make such a key
def test_weak_and_monstrous_rsa_keys_are_ignored() -> None:
    assert "it has 1024 bits" in why_not(jwk(rsa.generate_private_key(65537, 1024), "weak"))
    monster = base64url(((1 << 16383) + 1).to_bytes(2048, "big"))
    assert "it has 16384 bits" in why_not({**jwk(RSA, "monster"), "n": monster})


def test_secret_keys_are_ignored_and_never_repeated() -> None:
    symmetric = {"kty": "oct", "k": base64url(b"a-secret-that-nobody-may-see-here"), "alg": "HS256", "kid": "s"}
    private = [{**jwk(key, "p"), "d": base64url(b"d" * 32)} for key in (RSA, EC, ED)]
    for entry in (symmetric, *private):
        sentence = why_not(entry)
        assert "symmetric or private" in sentence
        assert not any(entry[name] in sentence for name in ("k", "d", "n", "x") if name in entry)


def test_a_key_id_that_stands_twice_counts_for_none() -> None:
    keys = read(jwk(RSA, "twin"), GOOD, jwk(EC, "twin"))
    assert [key.key_id for key in keys.keys] == ["good"]
    assert len(keys.ignored) == 2


def test_a_jwt_without_a_key_id_has_the_one_key_of_its_algorithm() -> None:
    keys = read(jwk(RSA, "a"), jwk(EC, "b"), jwk(private_key("ES256", 1), "c"))
    only = keys.find("RS256", None)
    assert only is not None
    assert only.key_id == "a"
    assert keys.find("ES256", None) is None
    assert keys.find("EdDSA", None) is None
    assert keys.find("RS256", "nobody") is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<!doctype html><title>Sign in</title>",
        b'{"keys": [',
        b"[]",
        b"null",
        b"7",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": null}',
        b'{"keys": []}',
        b'{"keys": [1, "a", null, []]}',
        b'{"keys": [{}]}',
        b'{"keys": [], "keys": []}',
        b'{"keys": [NaN]}',
        b"[" * 100_000,
        b"\xff\xfe",
        "{}".encode("utf-16"),
        key_set({**GOOD, "kty": "oct"}),
        key_set(*[GOOD] * 2),
        key_set(*({**GOOD, "kid": str(number)} for number in range(MAX_KEYS + 1))),
        json.dumps({"keys": [GOOD]})[:-3].encode(),
    ],
    ids=lambda body: body[:20],
)
def test_what_is_no_set_of_good_keys_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(it|none|a name) "):
        read_key_set(body)
