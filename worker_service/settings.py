"""The worker service's settings: the only reader of the environment."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, SecretStr, ValidationError
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from yarl import URL

from worker_service.targets import addresses
from worker_service.targets.addresses import AddressError

PREFIX = "CARILLON_"
MAX_TOKEN_BYTES = 4096

_Value = TypeVar("_Value")


class SettingsError(Exception):
    """A wrong setting; the message is one sentence that names its variable."""


def _wrong(sentence: str) -> PydanticCustomError:
    # Braces would be read as a place to fill in.
    return PydanticCustomError("setting", "{sentence}", {"sentence": sentence})


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536) or "//" in text:
        raise _wrong(f"must be host:port, such as 127.0.0.1:7007, not {text!r}")
    return text


def _base_urls(value: Any) -> dict[str, URL]:
    if isinstance(value, dict):
        return value
    entries = [entry.strip() for entry in str(value).split(",") if entry.strip()]
    return dict(_base_url(entry) for entry in entries)


def _base_url(entry: str) -> tuple[str, URL]:
    service, equals, text = entry.partition("=")
    if not equals or not service.strip():
        raise _wrong("must be written as service=http://host:port, several separated by commas")
    try:
        url = addresses.parse(text.strip())
    except AddressError as error:
        raise _wrong(f"has a wrong URL for {service.strip()}: it {error}") from None
    if url.query_string or url.fragment:
        raise _wrong(f"has a wrong URL for {service.strip()}: a base URL has no query and no fragment")
    return service.strip(), url


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
    worker_token: SecretStr = Field(
        default=SecretStr(""), description="The service token with scope `work`. Required, here or in a file."
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
    base_urls: Annotated[dict[str, URL], NoDecode, PlainValidator(_base_urls)] = Field(
        default={},
        description="`service=url,...`: replaces scheme, host, port and path prefix of their endpoints.",
    )
    log_format: Annotated[Literal["json", "text"], _Lowered] = Field(default="json", description="`json` or `text`.")
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _Lowered] = Field(
        default="info", description="`debug`, `info`, `warning` or `error`."
    )

    @property
    def token(self) -> str:
        return self.worker_token.get_secret_value()


def load() -> Settings:
    """The settings of this process's environment, with the token read. Errors: SettingsError."""
    try:
        settings = Settings()
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from None
    token = settings.token.strip() or _token_from_file(settings.worker_token_file)
    if not token.isascii() or not token.isprintable():
        raise SettingsError(f"{PREFIX}WORKER_TOKEN must be printable ASCII, as the scheduler handed it out")
    return settings.model_copy(update={"worker_token": SecretStr(token)})


def _token_from_file(path: Path | None) -> str:
    if path is None:
        raise SettingsError(
            f"{PREFIX}WORKER_TOKEN (or {PREFIX}WORKER_TOKEN_FILE) is required: "
            "a service token with scope `work`, such as those of CARILLON_SERVICE_TOKENS"
        )
    try:
        with path.open("rb") as file:
            token = file.read(MAX_TOKEN_BYTES).decode("ascii").strip()
    except OSError as error:
        raise SettingsError(f"{PREFIX}WORKER_TOKEN_FILE: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{PREFIX}WORKER_TOKEN_FILE: {path} holds more than a token") from None
    if not token:
        raise SettingsError(f"{PREFIX}WORKER_TOKEN_FILE: {path} is empty")
    return token


def _sentence(error: ValidationError) -> str:
    """The first complaint, without the value where it may be secret: only the validators above repeat one."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    variable = PREFIX + str(first["loc"][0]).upper()
    return f"{variable} {first['msg'].replace('Input should', 'must')}"
