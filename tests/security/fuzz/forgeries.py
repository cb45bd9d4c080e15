"""Mutated JWTs and service tokens: everything but what was given out."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from scheduler_service.domain.access import ANONYMOUS
from scheduler_service.domain.credentials import JwtRules, parse_service_tokens
from scheduler_service.domain.errors import Unauthenticated
from scheduler_service.identity.credentials import Credentials
from scheduler_service.identity.jwts import JwtVerifier
from scheduler_service.identity.key_sets import KeySet, read_key_set
from scheduler_service.identity.service_tokens import ServiceTokens

SECRET = "only-for-fuzzing-only-for-fuzzing-only"
TOKEN = f"email-1.{SECRET}"
_ALGORITHMS = (
    "HS256",
    "HS384",
    "HS512",
    "RS256",
    "PS256",
    "ES256",
    "ES384",
    "EdDSA",
    "none",
    "None",
    "",
    "hs256",
    "dir",
)
_ODD_JSON = (
    b"{}", b"[]", b"null", b"1", b'"a"', b"{", b"\xff", b"", b'{"alg":"HS256","alg":"none"}', b"[" * 2000, b"NaN",
    b'{"sub":"a","sub":"b"}', b'{"exp":1e400}', b'{"exp":' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}", b"{}\0", b" {} ",
)  # fmt: skip
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, "", "0", [], {}, [[]], -1, 0, 1e18, 10**30, float("nan"), "admin", ["admin"], {"a": 1}, "\x00"),
)
_UNICODE = "\u200b\u202e\u00a0\u212a\uff21\u0131\u017f\u00df\u00e9\x7f\t\r\n \0"
_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/=."


class FixedKeys:
    """The keys of a set that was read once."""

    algorithms = frozenset({"RS256", "ES256", "EdDSA"})

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys

    async def key(self, algorithm: str, kid: str | None) -> jwt.PyJWK:
        if (found := self._keys.find(algorithm, kid)) is None:
            raise Unauthenticated("there is no such key", reason="CREDENTIALS_INVALID")
        return found


@dataclass(frozen=True)
class Scheme:
    """A way to sign, and who verifies it. `public`: what a forger knows of the key."""

    algorithm: str
    kid: str | None
    key: Any
    public: tuple[bytes, ...]
    credentials: Credentials

    def sign(self, claims: Mapping[str, Any], headers: Mapping[str, Any] | None = None) -> str:
        kid = {"kid": self.kid} if self.kid else {}
        return jwt.encode(dict(claims), self.key, self.algorithm, headers={**kid, **(headers or {})})


def schemes() -> list[Scheme]:
    """The development secret, and a key set with a key of each kind."""
    tokens = ServiceTokens(parse_service_tokens(f"email-service={TOKEN},*=worker.{SECRET}"))
    keys: dict[str, Any] = {
        "RS256": rsa.generate_private_key(65537, 2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }
    writers: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
    published = [
        {**writers[name].to_jwk(key.public_key(), as_dict=True), "kid": name, "use": "sig", "alg": name}
        for name, key in keys.items()
    ]
    known = FixedKeys(read_key_set(json.dumps({"keys": published}).encode()))
    by_set = Credentials(tokens, JwtVerifier(JwtRules(), known))
    by_secret = Credentials(tokens, JwtVerifier(JwtRules(secret=SECRET)))
    return [
        Scheme("HS256", None, SECRET, (), by_secret),
        *(Scheme(name, name, key, _public(key, written), by_set)
          for (name, key), written in zip(keys.items(), published, strict=True)),
    ]  # fmt: skip


def _public(key: Any, written: Mapping[str, Any]) -> tuple[bytes, ...]:
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return pem, pem.strip(), der, json.dumps(written).encode()


def good_claims(**claims: object) -> dict[str, Any]:
    now = int(time.time())
    fixed = {"sub": "alice", "role": "admin", "iss": "carillon", "aud": "carillon", "iat": now, "exp": now + 3600}
    return fixed | claims


class Forger:
    """Makes forgeries of a scheme's good JWT and of a good service token, as the dice fall."""

    def __init__(self, scheme: Scheme, dice: random.Random) -> None:
        self._scheme = scheme
        self._dice = dice
        self.good = scheme.sign(good_claims())
        self._tricks: tuple[Callable[[], str], ...] = (
            *(self._flipped, self._flipped, self._cut, self._other_algorithm, self._edited, self._signed_wrongly),
            *(self._odd_json, self._base64, self._unicode, self._stuffed, self._unsigned, self._good_key_bad_claims),
        )

    def metadata(self) -> list[tuple[str, str | bytes]]:
        """What a call would carry."""
        if self._dice.random() < 0.25:
            return [("x-service-token", self._token())]
        forged = self._dice.choice(self._tricks)()
        scheme = self._dice.choice(
            ("Bearer ", "Bearer ", "Bearer ", "bearer  ", "BEARER\t", "Bearer Bearer ", "JWT ", "")
        )
        return [("authorization", scheme + forged)]

    def is_good(self, metadata: list[tuple[str, str | bytes]]) -> bool:
        """Whether it is just what was given out."""
        [(key, value)] = metadata
        if key == "x-service-token":
            return value == TOKEN
        scheme, _, token = str(value).partition(" ")
        return scheme.lower() == "bearer" and token.strip() == self.good

    def _token(self) -> str:
        dice = self._dice
        token_id, _, secret = TOKEN.partition(".")
        return dice.choice(
            (
                *(self._change_one(TOKEN), TOKEN[: dice.randrange(len(TOKEN))], TOKEN + dice.choice(_BASE64)),
                *(
                    f"{token_id}.{self._change_one(secret)}",
                    f"worker.{secret[::-1]}",
                    f"{token_id}.{token_id}.{secret}",
                ),
                *(
                    TOKEN.upper(),
                    f" {TOKEN}\u200b",
                    f"{token_id}{secret}",
                    f"{token_id}\0.{secret}",
                    "." * dice.randrange(5000),
                ),
                *(f"{TOKEN},{TOKEN}", secret, f"*.{secret}", TOKEN.replace("o", "\u043e", 1), f"{TOKEN}\x00"),
            )
        )

    def _flipped(self) -> str:
        raw = bytearray(self.good.encode())
        for _ in range(self._dice.choice((1, 1, 2, 8))):
            raw[self._dice.randrange(len(raw))] ^= 1 << self._dice.randrange(7)
        return raw.decode(errors="replace")

    def _change_one(self, text: str) -> str:
        place = self._dice.randrange(len(text))
        return text[:place] + self._dice.choice(_BASE64) + text[place + 1 :]

    def _cut(self) -> str:
        begin, end = sorted(self._dice.randrange(len(self.good) + 1) for _ in range(2))
        return self._dice.choice((self.good[:end], self.good[begin:], self.good[:begin] + self.good[end:]))

    def _other_algorithm(self) -> str:
        """The claims under another algorithm, signed with what everybody may know."""
        algorithm = self._dice.choice(_ALGORITHMS)
        key = self._dice.choice((b"", b"secret", SECRET[:-1].encode(), *self._scheme.public))
        header = self._header(
            alg=algorithm, kid=self._dice.choice((self._scheme.kid, "RS256", "../../dev/null", "' or 1"))
        )
        return self._joined(header, _json(good_claims()), _mac(algorithm, key))

    def _edited(self) -> str:
        """Other claims under the signature of the good ones."""
        header, payload, signature = self.good.split(".")
        claims = json.loads(_unpadded(payload)) | {self._dice.choice(("sub", "role", "tenant", "exp")): "root"}
        return f"{header}.{_encoded(_json(claims))}.{signature}"

    def _signed_wrongly(self) -> str:
        others: dict[str, Any] = {"HS256": "x" * 40, "ES256": _OTHER_EC, "EdDSA": _OTHER_ED}
        algorithm = self._dice.choice(tuple(others))
        embedded = {"jwk": {"kty": "oct", "k": "eA"}, "jku": "http://127.0.0.1:1/keys", "x5u": "file:///etc/passwd"}
        headers = dict([self._dice.choice(tuple(embedded.items()))]) | {
            "kid": self._dice.choice(("RS256", "ES256", "x"))
        }
        return jwt.encode(good_claims(), others[algorithm], algorithm, headers=headers)

    def _odd_json(self) -> str:
        header = self._dice.choice((*_ODD_JSON, self._header()))
        body = self._dice.choice((*_ODD_JSON, _json(good_claims())))
        return self._joined(header, body, _mac("HS256", self._dice.choice((b"", b"x" * 40))))

    def _good_key_bad_claims(self) -> str:
        """Signed by who may sign, and wrong in itself: too old, too long-lived, for others, of a wrong type."""
        now = int(time.time())
        wrong: dict[str, Any] = self._dice.choice(
            (
                *({"exp": now - 60}, {"iat": now + 600}, {"nbf": now + 600}, {"iss": "Carillon"}, {"aud": "carillon "}),
                *({"aud": []}, {"exp": now + 10**7}, {"sub": self._dice.choice((None, 1, [], {}, True))}),
                {self._dice.choice(("exp", "iat")): self._dice.choice((None, [], {}, "x", float("nan"), True))},
                {"tenant": self._dice.choice(("-", "a/b", " ", "x" * 129, "ä")), "role": ""},
            )
        )
        try:
            return self._scheme.sign(good_claims() | wrong)
        except (TypeError, ValueError):
            payload = _json(good_claims() | wrong)
            return self._joined(self._header(alg=self._scheme.algorithm), payload, lambda _: b"x" * 32)

    def _base64(self) -> str:
        header, payload, signature = self.good.split(".")
        return self._dice.choice(
            (
                *(f"{self.good}=", f"{self.good}==", f"{header}=.{payload}.{signature}", self.good.replace("-", "+")),
                *(
                    f"{self.good}\n",
                    f"{header}.{payload}.{signature[:5]}\n{signature[5:]}",
                    self.good.replace("_", "/"),
                ),
                *(f"{header}..{payload}.{signature}", f".{self.good}", f"{self.good}.", f"{self.good}.{signature}"),
                *(
                    f"{header}.{payload}.{signature}A",
                    f"{self.good[:-1]}{self._dice.choice(_BASE64)}",
                    f"{header}.{payload}.",
                ),
                *(f"{payload}.{header}.{signature}", f"{header}.{signature}.{payload}", self.good.replace(".", "%2e")),
            )
        )

    def _unicode(self) -> str:
        place = self._dice.randrange(len(self.good) + 1)
        return self.good[:place] + self._dice.choice(_UNICODE) + self.good[place:]

    def _stuffed(self) -> str:
        """Far too long, or with headers in it."""
        return self._dice.choice(
            (
                *(self.good + "A" * self._dice.choice((1, 9000, 100_000)), "A" * 8192, f"{'A' * 8000}.{self.good}"),
                *(
                    f"{self.good}\r\nx-service-token: {TOKEN}",
                    f"{self.good}, Bearer {self.good}",
                    f"{self.good};{self.good}",
                ),
            )
        )

    def _unsigned(self) -> str:
        algorithm: Any = self._dice.choice(("none", "NONE", "nOnE", None, [], "HS256", self._scheme.algorithm))
        empty = self._dice.choice((b"", b"\0", b"\0" * 64, b"\0" * 32, b"\0" * 256))
        return self._joined(self._header(alg=algorithm), _json(good_claims()), lambda _: empty)

    def _header(self, **said: Any) -> bytes:
        header: dict[str, Any] = {"alg": self._scheme.algorithm, "typ": "JWT"} | said
        if self._dice.random() < 0.3:
            header[self._dice.choice(("alg", "typ", "kid", "crit", "b64", "zip", "cty", "x5c"))] = self._dice.choice(
                _ODD_VALUES
            )
        return _json(header)

    def _joined(self, header: bytes, payload: bytes, sign: Callable[[bytes], bytes]) -> str:
        signed = f"{_encoded(header)}.{_encoded(payload)}"
        return f"{signed}.{_encoded(sign(signed.encode()))}"


_OTHER_EC = ec.generate_private_key(ec.SECP256R1())
_OTHER_ED = ed25519.Ed25519PrivateKey.generate()


def _mac(algorithm: str, key: bytes) -> Callable[[bytes], bytes]:
    digest = {"HS384": hashlib.sha384, "HS512": hashlib.sha512}.get(algorithm, hashlib.sha256)
    return lambda signed: hmac.new(key, signed, digest).digest()


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@dataclass
class Verdicts:
    """What became of forgeries: which were accepted, and which made something else happen than a refusal."""

    tried: int = 0
    accepted: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


async def try_forgeries(count: int, seed: int, progressed: Callable[[], object] = lambda: None) -> Verdicts:
    """So many, over every scheme in turn."""
    dice = random.Random(seed)
    forgers = [(scheme, Forger(scheme, dice)) for scheme in schemes()]
    verdicts = Verdicts()
    for scheme, forger in forgers:
        assert (await scheme.credentials.principal([("authorization", f"Bearer {forger.good}")])).is_admin
    while verdicts.tried < count:
        scheme, forger = forgers[verdicts.tried % len(forgers)]
        metadata = forger.metadata()
        if forger.is_good(metadata):
            continue
        verdicts.tried += 1
        progressed()
        try:
            principal = await scheme.credentials.principal(metadata)
        except Unauthenticated as refused:
            if any(secret in refused.message for secret in (SECRET, forger.good)):
                verdicts.odd.append(f"{scheme.algorithm}: its refusal repeats a secret: {metadata!r:.300}")
        except Exception as error:
            verdicts.odd.append(f"{scheme.algorithm}: {error!r:.200} for {metadata!r:.300}")
        else:
            if principal != ANONYMOUS:
                verdicts.accepted.append(f"{scheme.algorithm} {principal}: {metadata!r:.900}, given out {forger.good}")
    return verdicts
