"""The scheduler's settings: the only reader of the environment. Each is `CARILLON_` and its name in capitals; each
`..._file` names a file that holds the value instead, for secrets that are mounted."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from scheduler_service.domain.claims import check_role_claim, check_tenant_claim
from scheduler_service.domain.credentials import JwtRules, ServiceToken, is_guessable, parse_service_tokens
from scheduler_service.domain.jwts import check_jwks_url, claim_path
from scheduler_service.domain.rates import RateLimits
from scheduler_service.domain.timing import TimingError, zone
from scheduler_service.store.logins import API_ROLE, ENGINE_ROLE, Login, is_database_url
from scheduler_service.transport import Transport, is_loopback

_PREFIX = "CARILLON_"
_RATES = RateLimits()
_URLS = ("database_url", "engine_url", "listen_url", "migration_url")
FROM_FILES = (
    "database_url",
    "engine_url",
    "listen_url",
    "migration_url",
    "service_tokens",
    "development_jwt_secret",
)

_S = TypeVar("_S", bound=BaseSettings)


class SettingsError(Exception):
    """One sentence that names the variable."""


def _time_zone(name: str) -> str:
    try:
        zone(name)
    except TimingError as error:
        raise ValueError(str(error)) from error
    return name


def _role_claim(path: str) -> str:
    check_role_claim(path)
    return path


def _tenant_claim(path: str) -> str:
    check_tenant_claim(path)
    return path


def _one_line(text: str) -> str:
    if not text or not text.isprintable() or text != text.strip():
        raise ValueError("it is empty, or has blanks at its ends or characters that cannot be seen")
    return text


def _retention_days(days: int) -> int:
    if 0 < days < 30:
        raise ValueError(f"{days} days are too few: give at least 30, or 0 to keep everything")
    return days


def _age(seconds: float) -> float:
    if 0 < seconds < 1:
        raise ValueError(f"{seconds:g} s are too few: give at least 1, or 0 to let each grow as old as it can")
    return seconds


def _default_replica() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class DatabaseSettings(BaseSettings):
    """What an operator's commands need."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="ignore", hide_input_in_errors=True)

    database_url: SecretStr = Field(description="PostgreSQL, as the API's role (`postgresql://...`). Required.")

    @model_validator(mode="after")
    def _are_of_postgresql(self) -> Self:
        if not self.database_url.get_secret_value():
            raise ValueError("CARILLON_DATABASE_URL is empty; write postgresql://...")
        for name in _URLS:
            url = getattr(self, name, SecretStr("")).get_secret_value()
            if url and not url.startswith(("postgresql://", "postgres://")):
                raise ValueError(f"{_PREFIX}{name.upper()} must begin with postgresql://")
            if url and not is_database_url(url):
                raise ValueError(
                    f"{_PREFIX}{name.upper()} is no URL of PostgreSQL: write postgresql://user:password@host:5432/database,"
                    " with %-escapes for what is special in a name or password, and only libpq's options after a `?`"
                )
        return self


class Settings(DatabaseSettings):
    """Everything that can be set, with its default."""

    engine_url: SecretStr = Field(description="PostgreSQL, as the engine's role. Required.")
    listen_url: SecretStr = Field(
        default=SecretStr(""), description="A direct connection for LISTEN, where engine_url goes through PgBouncer."
    )
    migration_url: SecretStr = Field(
        default=SecretStr(""), description="As a role that may create roles: the scheduler migrates when it starts."
    )
    host: str = Field(default="127.0.0.1", description="The address to listen on; `0.0.0.0` in a container.")
    port: int = Field(default=7007, ge=0, le=65535, description="gRPC. 0 takes a free one and logs it.")
    tls_certificate_file: Path | None = Field(
        default=None, description="PEM: the server's certificate and its intermediates. Read again when it changes."
    )
    tls_key_file: Path | None = Field(default=None, description="PEM: its private key.")
    plaintext: bool = Field(
        default=False, description="Allows plain gRPC beyond loopback, where a mesh or a proxy brings the TLS."
    )
    mtls_port: int | None = Field(
        default=None, ge=0, le=65535, description="A second gRPC port, on which every client shows a certificate."
    )
    tls_client_ca_file: Path | None = Field(
        default=None, description="PEM: who signs the certificates that clients show on the mTLS port."
    )
    worker_certificates: str = Field(
        default="",
        description="`worker-1.internal=*,email.internal=email-service`: what certificates' names stand for.",
    )
    require_mtls: bool = Field(default=False, description="Refuses work streams without a client certificate.")
    max_connections: int = Field(default=1000, ge=1, le=100_000, description="On each gRPC port.")
    max_streams: int = Field(default=2000, ge=1, description="Open work streams; and as many streams that watch runs.")
    max_streams_per_principal: int = Field(
        default=500, ge=1, description="Of those, how many may be of one token or certificate; of a user at most 20."
    )
    max_calls_per_principal: int = Field(
        default=250,
        ge=1,
        description="How many calls that are no streams a service or person may make at a time, on each replica.",
    )
    metrics_port: int = Field(default=7008, ge=0, le=65535, description="HTTP: `/livez`, `/readyz` and `/metrics`.")
    service_tokens: SecretStr = Field(
        default=SecretStr(""),
        description="`email-service=id.secret,...`; the service `*` is a worker for all.",
    )
    development_jwt_secret: SecretStr = Field(
        default=SecretStr(""), description="HS256 secret of JWTs, for development: whoever has it is anybody."
    )
    jwks_url: str = Field(
        default="",
        description="The issuer's key set (`https://.../.well-known/jwks.json`), which verifies JWTs.",
    )
    jwks_refresh_seconds: float = Field(default=300, ge=1, le=86_400, description="How often the key set is fetched.")
    jwks_max_age_seconds: float = Field(
        default=86_400, ge=60, le=2_592_000, description="How long its keys count while it cannot be fetched."
    )
    allow_development_jwts: bool = Field(
        default=False, description="Allows the development secret where `CARILLON_HOST` is not loopback."
    )
    jwt_issuer: Annotated[str, AfterValidator(_one_line)] = Field(
        default="carillon", description="The `iss` that JWTs must have."
    )
    jwt_audience: Annotated[str, AfterValidator(_one_line)] = Field(
        default="carillon", description="The `aud` that JWTs must have."
    )
    jwt_max_lifetime_seconds: int = Field(
        default=86_400, ge=60, le=2_592_000, description="How long a JWT may be good, from its `iat` to its `exp`."
    )
    jwt_roles_from: Literal["claims", "users"] = Field(
        default="claims",
        description="`claims`: a JWT says its role and tenant. `users`: `scheduler_service users` says them.",
    )
    jwt_role_claim: Annotated[str, AfterValidator(_role_claim)] = Field(
        default="role", description="Path of the claim that says the role, or lists roles, such as `metadata.role`."
    )
    jwt_admin_role: Annotated[str, AfterValidator(_one_line)] = Field(
        default="admin", description="The role that makes an admin."
    )
    jwt_tenant_claim: Annotated[str, AfterValidator(_tenant_claim)] = Field(
        default="tenant", description="Path of the claim that says a user's tenant."
    )
    registrations_per_minute: int = Field(
        default=_RATES.registrations_per_minute,
        ge=1,
        le=1_000_000,
        description="How often a service may register or remove jobs, on each replica; a minute's worth at once.",
    )
    triggers_per_second: int = Field(
        default=_RATES.triggers_per_second,
        ge=1,
        le=1_000_000,
        description="How often a caller may call `TriggerJob`, `RunSchedule` or `BackfillJob`, on each replica; ten"
        " seconds' worth at once.",
    )
    changes_per_second: int = Field(
        default=_RATES.changes_per_second,
        ge=1,
        le=1_000_000,
        description="How often a caller may make any other call that changes something, on each replica; ten seconds'"
        " worth at once.",
    )
    default_time_zone: Annotated[str, AfterValidator(_time_zone)] = Field(
        default="UTC", description="For schedules and jobs that name none."
    )
    lease_seconds: float = Field(default=30, ge=2, le=600, description="How long a silent worker keeps its runs.")
    heartbeat_seconds: float = Field(default=5, ge=0.2, le=120, description="How often workers send a heartbeat.")
    stream_age_seconds: Annotated[float, AfterValidator(_age)] = Field(
        default=3600,
        ge=0,
        le=604_800,
        description="Workers open another stream, perhaps to another replica, before theirs is as old as this; give"
        " less than the age at which a proxy or load balancer ends connections. 0: never.",
    )
    connection_age_seconds: Annotated[float, AfterValidator(_age)] = Field(
        default=3600,
        ge=0,
        le=604_800,
        description="Clients connect anew for their next calls, perhaps to another replica, when their connection is"
        " about as old as this; what is under way on it goes on. 0: never.",
    )
    drain_seconds: float = Field(default=20, ge=0, le=600, description="How long SIGTERM waits for calls to end.")
    retention_days: Annotated[int, AfterValidator(_retention_days)] = Field(
        default=0,
        ge=0,
        le=36_500,
        description="Records of months that ended longer ago than this are dropped; at least 30. 0 keeps all.",
    )
    reflection: bool = Field(default=True, description="Server reflection, for grpcurl and buf curl.")
    replica: str = Field(default_factory=_default_replica, description="This replica's name. Default: host and pid.")
    log_format: Literal["json", "text"] = Field(default="json", description="`json` or `text`.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="`debug`, `info`, `warning` or `error`."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if self.logins()[0].user == self.logins()[1].user:
            raise ValueError("CARILLON_DATABASE_URL and CARILLON_ENGINE_URL name one login; the two roles need two")
        if self.heartbeat_seconds * 3 > self.lease_seconds:
            raise ValueError("CARILLON_LEASE_SECONDS must be at least three times CARILLON_HEARTBEAT_SECONDS")
        self._check_development_secret()
        self._check_jwts()
        self.transport().check()
        try:
            self.tokens()
        except ValueError as error:
            raise ValueError(f"CARILLON_SERVICE_TOKENS: {error}") from None
        return self

    def _check_development_secret(self) -> None:
        secret = self.development_jwt_secret.get_secret_value()
        if not secret:
            return
        if len(secret) < 32 or is_guessable(secret):
            raise ValueError(
                "CARILLON_DEVELOPMENT_JWT_SECRET is shorter than 32 characters, or repeats few; make it random, of 32"
                " or more"
            )
        if not is_loopback(self.host) and not self.allow_development_jwts:
            raise ValueError(
                f"CARILLON_DEVELOPMENT_JWT_SECRET is set, and CARILLON_HOST is {self.host}, which others reach: whoever"
                " has the secret is anybody. Set CARILLON_JWKS_URL instead, or CARILLON_ALLOW_DEVELOPMENT_JWTS=true if"
                " this is for development"
            )

    def _check_jwts(self) -> None:
        if "," in self.jwt_issuer:
            raise ValueError(
                "CARILLON_JWT_ISSUER has a comma; one issuer is accepted, since the same `sub` of two is two persons"
            )
        if claim_path(self.jwt_role_claim) == claim_path(self.jwt_tenant_claim):
            raise ValueError(
                "CARILLON_JWT_ROLE_CLAIM and CARILLON_JWT_TENANT_CLAIM name one claim; the users of a tenant with the"
                " admin role's name would be admins"
            )
        if not self.jwks_url:
            return
        try:
            check_jwks_url(self.jwks_url)
        except ValueError as error:
            raise ValueError(f"CARILLON_JWKS_URL is wrong: {error}") from None
        if self.development_jwt_secret.get_secret_value():
            raise ValueError(
                "CARILLON_JWKS_URL and CARILLON_DEVELOPMENT_JWT_SECRET are both set; leave out the one for development"
            )
        if "jwt_issuer" not in self.model_fields_set:
            raise ValueError("CARILLON_JWKS_URL needs CARILLON_JWT_ISSUER, the `iss` of the JWTs")
        if self.jwks_max_age_seconds < self.jwks_refresh_seconds:
            raise ValueError("CARILLON_JWKS_MAX_AGE_SECONDS must be at least CARILLON_JWKS_REFRESH_SECONDS")

    def transport(self) -> Transport:
        return Transport(
            host=self.host,
            certificate=self.tls_certificate_file,
            key=self.tls_key_file,
            plaintext=self.plaintext,
            mtls_port=self.mtls_port,
            client_ca=self.tls_client_ca_file,
            worker_certificates=self.worker_certificates,
            require_mtls=self.require_mtls,
        )

    def tokens(self) -> list[ServiceToken]:
        return parse_service_tokens(self.service_tokens.get_secret_value())

    def retention(self) -> timedelta | None:
        return timedelta(days=self.retention_days) if self.retention_days else None

    def logins(self) -> list[Login]:
        return [
            Login(API_ROLE, self.database_url.get_secret_value()),
            Login(ENGINE_ROLE, self.engine_url.get_secret_value()),
        ]

    def rate_limits(self) -> RateLimits:
        return RateLimits(
            registrations_per_minute=self.registrations_per_minute,
            triggers_per_second=self.triggers_per_second,
            changes_per_second=self.changes_per_second,
        )

    def jwt_rules(self) -> JwtRules:
        return JwtRules(
            secret=self.development_jwt_secret.get_secret_value(),
            issuer=self.jwt_issuer,
            audience=self.jwt_audience,
            role_claim=self.jwt_role_claim,
            admin_role=self.jwt_admin_role,
            tenant_claim=self.jwt_tenant_claim,
            max_lifetime=self.jwt_max_lifetime_seconds,
        )


def read_settings(**values: object) -> Settings:
    """The settings from the environment, with `values` over it. Errors: SettingsError, one line for each variable."""
    return _read(Settings, {**_from_files(FROM_FILES), **values})


def read_database_settings() -> DatabaseSettings:
    """The database's alone, from the environment. Errors: SettingsError."""
    return _read(DatabaseSettings, _from_files(("database_url",)))


def _read(kind: type[_S], values: Mapping[str, object]) -> _S:
    try:
        return kind(**values)  # type: ignore[arg-type]  # pydantic checks each value
    except ValidationError as error:
        raise SettingsError("\n".join(_sentence(dict(problem)) for problem in error.errors())) from None


def _from_files(names: Iterable[str]) -> dict[str, object]:
    variables = ((name, f"{_PREFIX}{name.upper()}_FILE") for name in names)
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
