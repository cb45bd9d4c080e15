"""The scheduler's settings: the only reader of the environment. Each is `CARILLON_` and its name in capitals; each
`..._file` names a file that holds the value instead, for secrets that are mounted."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from scheduler_service.domain.credentials import JwtRules, ServiceToken, parse_service_tokens
from scheduler_service.domain.timing import TimingError, zone
from scheduler_service.store.migrations import API_ROLE, ENGINE_ROLE, Login

_PREFIX = "CARILLON_"
_URLS = ("database_url", "engine_url", "listen_url", "migration_url")
FROM_FILES = (
    "database_url",
    "engine_url",
    "listen_url",
    "migration_url",
    "service_tokens",
    "development_jwt_secret",
)


class SettingsError(Exception):
    """One sentence that names the variable."""


def _time_zone(name: str) -> str:
    try:
        zone(name)
    except TimingError as error:
        raise ValueError(str(error)) from error
    return name


def _default_replica() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class Settings(BaseSettings):
    """Everything that can be set, with its default."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="ignore", hide_input_in_errors=True)

    database_url: SecretStr = Field(description="PostgreSQL, as the API's role (`postgresql://...`). Required.")
    engine_url: SecretStr = Field(description="PostgreSQL, as the engine's role. Required.")
    listen_url: SecretStr = Field(
        default=SecretStr(""), description="A direct connection for LISTEN, where engine_url goes through PgBouncer."
    )
    migration_url: SecretStr = Field(
        default=SecretStr(""), description="As a role that may create roles: the scheduler migrates when it starts."
    )
    host: str = Field(default="127.0.0.1", description="The address to listen on; `0.0.0.0` in a container.")
    port: int = Field(default=7007, ge=0, le=65535, description="gRPC. 0 takes a free one and logs it.")
    metrics_port: int = Field(default=7008, ge=0, le=65535, description="HTTP: `/livez`, `/readyz` and `/metrics`.")
    service_tokens: SecretStr = Field(
        default=SecretStr(""),
        description="`email-service=id.secret,...`; the service `*` is a worker for all.",
    )
    development_jwt_secret: SecretStr = Field(
        default=SecretStr(""), description="HS256 secret of JWTs, for development: whoever has it is anybody."
    )
    jwt_issuer: str = Field(default="carillon", description="The `iss` that JWTs must have.")
    jwt_audience: str = Field(default="carillon", description="The `aud` that JWTs must have.")
    jwt_role_claim: str = Field(default="role", description="Path of the claim that says the role.")
    jwt_admin_role: str = Field(default="admin", description="The role that makes an admin.")
    jwt_tenant_claim: str = Field(default="tenant", description="Path of the claim that says a user's tenant.")
    default_time_zone: Annotated[str, AfterValidator(_time_zone)] = Field(
        default="UTC", description="For schedules and jobs that name none."
    )
    lease_seconds: float = Field(default=30, ge=2, le=600, description="How long a silent worker keeps its runs.")
    heartbeat_seconds: float = Field(default=5, ge=0.2, le=120, description="How often workers send a heartbeat.")
    drain_seconds: float = Field(default=20, ge=0, le=600, description="How long SIGTERM waits for calls to end.")
    reflection: bool = Field(default=True, description="Server reflection, for grpcurl and buf curl.")
    replica: str = Field(default_factory=_default_replica, description="This replica's name. Default: host and pid.")
    log_format: Literal["json", "text"] = Field(default="json", description="`json` or `text`.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="`debug`, `info`, `warning` or `error`."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        for name in _URLS:
            url = getattr(self, name).get_secret_value()
            if url and not url.startswith(("postgresql://", "postgres://")):
                raise ValueError(f"{_PREFIX}{name.upper()} must begin with postgresql://")
        if self.logins()[0].user == self.logins()[1].user:
            raise ValueError("CARILLON_DATABASE_URL and CARILLON_ENGINE_URL name one login; the two roles need two")
        if self.heartbeat_seconds * 3 > self.lease_seconds:
            raise ValueError("CARILLON_LEASE_SECONDS must be at least three times CARILLON_HEARTBEAT_SECONDS")
        secret = self.development_jwt_secret.get_secret_value()
        if secret and len(secret) < 32:
            raise ValueError(
                "CARILLON_DEVELOPMENT_JWT_SECRET is shorter than 32 characters; make it random, of 32 or more"
            )
        try:
            self.tokens()
        except ValueError as error:
            raise ValueError(f"CARILLON_SERVICE_TOKENS: {error}") from None
        return self

    def tokens(self) -> list[ServiceToken]:
        return parse_service_tokens(self.service_tokens.get_secret_value())

    def logins(self) -> list[Login]:
        return [
            Login(API_ROLE, self.database_url.get_secret_value()),
            Login(ENGINE_ROLE, self.engine_url.get_secret_value()),
        ]

    def jwt_rules(self) -> JwtRules:
        return JwtRules(
            secret=self.development_jwt_secret.get_secret_value(),
            issuer=self.jwt_issuer,
            audience=self.jwt_audience,
            role_claim=self.jwt_role_claim,
            admin_role=self.jwt_admin_role,
            tenant_claim=self.jwt_tenant_claim,
        )


def read_settings(**values: object) -> Settings:
    """The settings from the environment, with `values` over it. Errors: SettingsError, one line for each variable."""
    try:
        return Settings(**{**_from_files(), **values})  # type: ignore[arg-type]  # pydantic checks each value
    except ValidationError as error:
        raise SettingsError("\n".join(_sentence(dict(problem)) for problem in error.errors())) from None


def _from_files() -> dict[str, object]:
    variables = ((name, f"{_PREFIX}{name.upper()}_FILE") for name in FROM_FILES)
    return {
        name: _contents(variable, Path(os.environ[variable])) for name, variable in variables if variable in os.environ
    }


def _contents(variable: str, path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise SettingsError(f"{variable} names {path}, which cannot be read: {error.strerror}") from None


def _sentence(problem: dict[str, object]) -> str:
    location = problem["loc"]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not isinstance(location, tuple) or not location:
        return message
    variable = _PREFIX + str(location[0]).upper()
    if problem["type"] == "missing":
        return f"{variable} is not set: {Settings.model_fields[str(location[0])].description}"
    return f"{variable} is wrong: {message}"
