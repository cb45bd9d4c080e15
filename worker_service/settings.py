"""The worker service's settings: the only reader of the environment."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from carillon.address import check_target, is_loopback, place_of
from carillon.signing import PREFIX as KEY_PREFIX
from carillon.signing import SigningKeys, split
from carillon.tls import Tls
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, SecretStr, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker_service.targets import addresses, allowed, networks
from worker_service.targets.addresses import AddressError, BaseUrls
from worker_service.targets.allowed import Target
from worker_service.targets.hosts import HostError
from worker_service.targets.networks import Network, NetworkError

PREFIX = "CARILLON_"
MAX_TOKEN_BYTES = 4096
MAX_KEYS_BYTES = 1024 * 1024

_SERVICE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_Value = TypeVar("_Value")


class SettingsError(Exception):
    """A wrong setting; the message is one sentence that names its variable."""


def _wrong(sentence: str) -> PydanticCustomError:
    # Braces would be read as a place to fill in.
    return PydanticCustomError("setting", "{sentence}", {"sentence": sentence})


def _address(text: str) -> str:
    try:
        place = place_of(check_target(text))
    except ValueError as error:
        raise _wrong(f"cannot be used: {error}, such as 127.0.0.1:7007") from None
    host, colon, port = place.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536) or "/" in place:
        raise _wrong("must be host:port, such as 127.0.0.1:7007")
    return text


def _base_urls(value: Any) -> BaseUrls:
    if isinstance(value, BaseUrls):
        return value
    found = BaseUrls({}, {})
    for number, entry in enumerate(split(str(value)), 1):
        service, text = _service_and(number, entry, "service=http://host:port")
        try:
            if text.startswith(("grpc://", "grpcs://")):
                found.grpc[service] = addresses.parse_grpc(text)
            else:
                found.http[service] = addresses.parse_base(text)
        except AddressError as error:
            raise _wrong(f"has a wrong URL in entry {number}: it {error}") from None
    return found


# Entries are named by their number: what stands there instead of what should may be a password or a key.
def _service_and(number: int, entry: str, shape: str) -> tuple[str, str]:
    service, equals, text = (part.strip() for part in entry.partition("="))
    if not equals or not _SERVICE.fullmatch(service) or service.startswith(KEY_PREFIX):
        raise _wrong(
            f"must be written as {shape}, several separated by commas; what stands before the = of entry {number} is "
            "no service's name (1 to 63 characters of a-z, 0-9, '-', '_' and '.')"
        )
    return service, text


def _allowed_targets(value: Any) -> tuple[Target, ...]:
    if isinstance(value, tuple):
        return value
    return tuple(_allowed_target(number, entry) for number, entry in enumerate(split(str(value)), 1))


def _allowed_target(number: int, entry: str) -> Target:
    try:
        return allowed.read_target(entry)
    except HostError as error:
        raise _wrong(f"has an entry, number {number}, that {error}") from None


def _allowed_networks(value: Any) -> tuple[Network, ...]:
    if isinstance(value, tuple):
        return value
    return tuple(_allowed_network(number, entry) for number, entry in enumerate(split(str(value)), 1))


def _allowed_network(number: int, entry: str) -> Network:
    try:
        return networks.read_network(entry)
    except NetworkError as error:
        raise _wrong(f"has an entry, number {number}, that {error}") from None


def _signing_keys(value: Any) -> Mapping[str, SigningKeys]:
    if isinstance(value, dict):
        return value
    texts: dict[str, list[str]] = {}
    for number, entry in enumerate(split(str(value)), 1):
        service, text = _service_and(number, entry, "service=whsec_...")
        texts.setdefault(service, []).append(text)
    return {service: _keys_of(service, keys) for service, keys in texts.items()}


def _keys_of(service: str, texts: list[str]) -> SigningKeys:
    try:
        return SigningKeys(texts)
    except ValueError as error:
        raise _wrong(f"has wrong keys for {service}: {error}") from None


def _name(text: str) -> str:
    if not 1 <= len(text) <= 200 or not text.isprintable():
        raise _wrong("must be 1 to 200 printable characters")
    return text


def _default_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"[:200]


_Lowered = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)


class Settings(BaseSettings):
    """Everything that can be set, with its default. A variable that is empty counts as not set."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore")

    target: Annotated[str, AfterValidator(_address)] = Field(
        default="127.0.0.1:7007", description="The scheduler's gRPC address."
    )
    tls: bool | None = Field(
        default=None,
        description="TLS to the scheduler, with the public authorities; not needed beside a `TLS_..._FILE`.",
    )
    tls_ca_file: Path | None = Field(default=None, description="PEM: the authorities to trust instead.")
    tls_certificate_file: Path | None = Field(
        default=None, description="PEM: this worker's certificate, for the scheduler's mTLS port."
    )
    tls_key_file: Path | None = Field(default=None, description="PEM: its private key.")
    plaintext: bool = Field(
        default=False, description="Allows plain gRPC beyond loopback, where a mesh or a proxy brings the TLS."
    )
    worker_token: SecretStr = Field(
        default=SecretStr(""),
        description="The service token with scope `work`. Required, here or in a file, without a certificate.",
    )
    worker_token_file: Path | None = Field(default=None, description="A file that holds the token instead.")
    worker_name: Annotated[str, AfterValidator(_name)] = Field(
        default_factory=_default_name, description="The worker's name in records. Default: host and pid."
    )
    worker_concurrency: int = Field(default=50, ge=1, le=10_000, description="How many runs at a time.")
    worker_host: str = Field(default="127.0.0.1", description="Where to listen; `0.0.0.0` in a container.")
    worker_port: int = Field(
        default=7009,
        ge=0,
        le=65535,
        description="HTTP: `/livez`, `/readyz` and `/metrics`. 0 takes a free one and logs it.",
    )
    drain_seconds: float = Field(
        default=25, ge=0, le=86_400, allow_inf_nan=False, description="How long SIGTERM waits for runs to end."
    )
    base_urls: Annotated[BaseUrls, NoDecode, PlainValidator(_base_urls)] = Field(
        default_factory=BaseUrls,
        description="`service=url,...`: replaces scheme, host, port and path prefix of their endpoints; "
        "`grpc://host:port` or `grpcs://host:port` replaces their gRPC addresses.",
    )
    allowed_targets: Annotated[tuple[Target, ...], NoDecode, PlainValidator(_allowed_targets)] = Field(
        default_factory=tuple,
        description="`host:port,...`: what may be called, besides what `CARILLON_BASE_URLS` names. `*.internal:8080` "
        "is any name with one label more, `host:*` any port, `service@host:port` for that service alone. "
        "See [Security](security.md#calls-to-targets).",
    )
    allowed_networks: Annotated[tuple[Network, ...], NoDecode, PlainValidator(_allowed_networks)] = Field(
        default_factory=tuple,
        description="`10.0.0.0/8,...`: networks that the names of allowed targets may be in, besides public addresses.",
    )
    signing_keys: Annotated[Mapping[str, SigningKeys], NoDecode, PlainValidator(_signing_keys)] = Field(
        default_factory=dict,
        description="`service=whsec_...,...`: the keys that HTTP calls are signed with; two of a service both sign.",
        repr=False,
    )
    signing_keys_file: Path | None = Field(default=None, description="A file that holds the keys instead.")
    require_signing: bool = Field(
        default=False, description="Whether HTTP calls to a service without a key are refused; otherwise unsigned."
    )
    log_format: Annotated[Literal["json", "text"], _Lowered] = Field(default="json", description="`json` or `text`.")
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _Lowered] = Field(
        default="info", description="`debug`, `info`, `warning` or `error`."
    )

    @property
    def tls_to_scheduler(self) -> Tls | bool:
        """What the client takes: files, True for the public authorities, False for plain gRPC."""
        if self.tls_ca_file or self.tls_certificate_file:
            return Tls(self.tls_ca_file, self.tls_certificate_file, self.tls_key_file)
        return bool(self.tls)

    @property
    def token(self) -> str:
        return self.worker_token.get_secret_value()


def load() -> Settings:
    """The settings of this process's environment, with the secrets read. Errors: SettingsError."""
    try:
        settings = Settings()
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from None
    keys = settings.signing_keys or _keys_from_file(settings.signing_keys_file)
    _check_tls(settings)
    token = settings.token.strip() or _token_from_file(settings)
    if not token.isascii() or not token.isprintable():
        raise SettingsError(f"{PREFIX}WORKER_TOKEN must be printable ASCII, as the scheduler handed it out")
    return settings.model_copy(update={"worker_token": SecretStr(token), "signing_keys": keys})


def _check_tls(settings: Settings) -> None:
    if (settings.tls_certificate_file is None) != (settings.tls_key_file is None):
        raise SettingsError(f"{PREFIX}TLS_CERTIFICATE_FILE and {PREFIX}TLS_KEY_FILE go together; set both or neither")
    tls = settings.tls_to_scheduler
    if isinstance(tls, Tls):
        if settings.tls is False:
            raise SettingsError(f"{PREFIX}TLS is false, and {PREFIX}TLS_..._FILE is set; leave out one")
        try:
            tls.credentials()
        except OSError as error:
            raise SettingsError(f"{PREFIX}TLS_..._FILE: cannot read {error.filename}: {error.strerror}") from None
        except ValueError as error:
            raise SettingsError(f"{PREFIX}TLS_..._FILE: {error}") from None
    if not (tls or settings.plaintext or is_loopback(settings.target)):
        raise SettingsError(
            f"{PREFIX}TARGET is {settings.target}, another machine, and there is no TLS: set {PREFIX}TLS_CA_FILE (or "
            f"{PREFIX}TLS=true for the public authorities), or {PREFIX}PLAINTEXT=true if a mesh or a proxy brings it"
        )


def _token_from_file(settings: Settings) -> str:
    path = settings.worker_token_file
    if path is None:
        if settings.tls_certificate_file is not None:
            return ""
        raise SettingsError(
            f"{PREFIX}WORKER_TOKEN (or {PREFIX}WORKER_TOKEN_FILE) is required: "
            "a service token with scope `work`, such as those of CARILLON_SERVICE_TOKENS"
        )
    return _from_file(f"{PREFIX}WORKER_TOKEN_FILE", path, MAX_TOKEN_BYTES, "a token")


def _keys_from_file(path: Path | None) -> Mapping[str, SigningKeys]:
    if path is None:
        return {}
    variable = f"{PREFIX}SIGNING_KEYS_FILE"
    text = _from_file(variable, path, MAX_KEYS_BYTES, "keys")
    try:
        return _signing_keys(text)
    except PydanticCustomError as error:
        raise SettingsError(f"{variable} {error.message()}") from None


def _from_file(variable: str, path: Path, most: int, what: str) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(most).decode("ascii").strip()
    except OSError as error:
        raise SettingsError(f"{variable}: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{variable}: {path} holds more than {what}") from None
    if not text:
        raise SettingsError(f"{variable}: {path} is empty")
    return text


def _sentence(error: ValidationError) -> str:
    """The first complaint, without the value where it may be secret: only the validators above repeat one."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    variable = PREFIX + str(first["loc"][0]).upper()
    return f"{variable} {first['msg'].replace('Input should', 'must')}"
