"""The secrets of one local stack: made once, kept in a file that only its owner reads."""

from __future__ import annotations

import base64
import json
import os
import secrets
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt

ADMIN_TOKEN_LIFETIME = timedelta(hours=12)


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """Passwords of the database's roles, service tokens (`id.secret`), the secret of JWTs, and the key that signs calls
    to the email service."""

    api_password: str
    engine_password: str
    jwt_secret: str
    worker_token: str
    email_service_token: str
    kpi_service_token: str
    my_service_token: str
    email_service_signing_key: str

    @property
    def service_tokens(self) -> str:
        """As CARILLON_SERVICE_TOKENS wants them."""
        tokens = {
            "*": self.worker_token,
            "email-service": self.email_service_token,
            "kpi-service": self.kpi_service_token,
            "my-service": self.my_service_token,
        }
        return ",".join(f"{service}={token}" for service, token in tokens.items())

    @property
    def signing_keys(self) -> str:
        """As the worker's CARILLON_SIGNING_KEYS wants them."""
        return f"email-service={self.email_service_signing_key}"

    def admin_jwt(self) -> str:
        """See `admin_jwt`."""
        return admin_jwt(self.jwt_secret)


def admin_jwt(jwt_secret: str) -> str:
    """A JWT with the admin role, good for twelve hours."""
    now = datetime.now(UTC)
    claims = {"sub": "local-admin", "role": "admin", "iss": "carillon", "aud": "carillon", "iat": now}
    return jwt.encode({**claims, "exp": now + ADMIN_TOKEN_LIFETIME}, jwt_secret, algorithm="HS256")


def kept_secrets(file: Path) -> Secrets:
    """Reads them; makes and keeps those that are not there yet."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    secrets_of_all = Secrets(**{field.name: kept.get(field.name) or _made(field.name) for field in fields(Secrets)})
    if asdict(secrets_of_all) != kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump(asdict(secrets_of_all), stream, indent=2)
    return secrets_of_all


def _made(name: str) -> str:
    if name.endswith("_signing_key"):
        return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
    token = secrets.token_urlsafe(32)
    return f"{name.partition('_')[0]}.{token}" if name.endswith("_token") else token
