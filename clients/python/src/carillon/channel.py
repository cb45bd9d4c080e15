"""The channel to the scheduler: where it is, who calls, TLS, retries and deadlines."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from carillon.address import check_target, is_list, is_loopback
from carillon.tls import Tls, flag_of_environment, tls_of_environment
from carillon.version import CLIENT

DEFAULT_TARGET = "127.0.0.1:7007"

# Calls that do the same when they are done twice, also since they carry a `request_id` each time. The others are not
# retried: the answer to the first may have been lost, and only the caller knows what a second one would mean.
_IDEMPOTENT = {
    "carillon.v1.RegistryService": ("RegisterJobs", "RemoveJob"),
    "carillon.v1.JobService": (
        *("GetJob", "ListJobs", "UpdateJob", "ResetJobOverrides", "PauseJob", "ResumeJob", "GetJobStats"),
        *("TriggerJob", "BackfillJob", "GetBackfill", "ListBackfills", "CancelBackfill"),
    ),
    "carillon.v1.ScheduleService": (
        *("GetSchedule", "ListSchedules", "PutSchedule", "PauseSchedule", "ResumeSchedule", "RunSchedule"),
        *("PreviewOccurrences", "ListLedger", "GetTenant", "PutTenant"),
    ),
    "carillon.v1.RunService": ("GetRun", "ListRuns", "ListAttempts", "ListItems", "CancelRun", "RetryRun"),
    "carillon.v1.AuditService": ("ListAuditEvents", "GetAuditHead", "VerifyAuditTrail"),
}


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach the scheduler. Opens nothing by itself."""

    target: str
    service_token: str | None = field(default=None, repr=False)
    jwt: str | None = field(default=None, repr=False)
    tls: Tls | bool | None = None

    @classmethod
    def resolve(
        cls,
        target: str | None = None,
        *,
        service_token: str | None = None,
        jwt: str | None = None,
        tls: Tls | bool | None = None,
        plaintext: bool | None = None,
    ) -> Connection:
        """Fills in what is not given: `CARILLON_TARGET`, without a JWT `CARILLON_SERVICE_TOKEN` or the content of the
        file that `CARILLON_SERVICE_TOKEN_FILE` names, `CARILLON_TLS...` and `CARILLON_PLAINTEXT`.

        Raises OSError if that file cannot be read, ValueError for what cannot be, such as a token that would go
        unencrypted to another machine without `plaintext`.
        """
        if service_token and jwt:
            raise ValueError("give either a token (a JWT) or a service_token, not both")
        if not jwt and not service_token:
            service_token = os.environ.get("CARILLON_SERVICE_TOKEN") or _mounted_token()
        target = target or os.environ.get("CARILLON_TARGET") or DEFAULT_TARGET
        try:
            check_target(target)
        except ValueError as wrong:
            raise ValueError(f"the target (CARILLON_TARGET) cannot be used: {wrong}") from None
        connection = cls(target, _token(service_token), _token(jwt), tls_of_environment() if tls is None else tls)
        if connection._tells_a_token() and not _may_be_plain(plaintext):
            raise ValueError(
                f"the token would go to {target} unencrypted; set tls=..., CARILLON_TLS_CA_FILE or CARILLON_TLS=true, "
                "or plaintext=True (CARILLON_PLAINTEXT=true) if a mesh or a proxy encrypts"
            )
        return connection

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The credentials, as each call carries them."""
        if self.jwt:
            return (("authorization", f"Bearer {self.jwt}"),)
        if self.service_token:
            return (("x-service-token", self.service_token),)
        return ()

    def open(self, *, for_work: bool = False) -> grpc.aio.Channel:
        """A new channel; needs a running event loop.

        A channel for work keeps its connection to itself, so that a new one may reach another replica; its
        stream carries its own heartbeats, so it sends no pings. Of a list of addresses it takes the first that it can
        connect to.
        """
        options = self._options(for_work=for_work)
        if (credentials := self._credentials()) is None:
            return grpc.aio.insecure_channel(self.target, options=options)
        return grpc.aio.secure_channel(self.target, credentials, options=options)

    def open_blocking(self) -> grpc.Channel:
        """A new channel for calls that block; needs no event loop."""
        if (credentials := self._credentials()) is None:
            return grpc.insecure_channel(self.target, options=self._options())
        return grpc.secure_channel(self.target, credentials, options=self._options())

    def _tells_a_token(self) -> bool:
        """Whether it sends one unencrypted to another machine."""
        return bool(self.metadata()) and not self.tls and not is_loopback(self.target)

    def _options(self, *, for_work: bool = False) -> list[tuple[str, str | int]]:
        # The order of a list is its session's affair; that of a name's addresses is nobody's.
        options = _options(for_work=for_work, shuffle=not (for_work and is_list(self.target)))
        # Or a proxy that the environment names would be sent what is to stay on this machine.
        return [*options, ("grpc.enable_http_proxy", 0)] if is_loopback(self.target) else options

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if not self.tls:
            return None
        return (Tls() if self.tls is True else self.tls).credentials()


def _options(*, for_work: bool, shuffle: bool) -> list[tuple[str, str | int]]:
    options: list[tuple[str, str | int]] = [
        ("grpc.primary_user_agent", CLIENT),
        ("grpc.max_receive_message_length", -1),
        ("grpc.enable_retries", 1),
        # gRPC's own default grows to two minutes: a client would find the scheduler that long after it is back.
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # A name is asked again when its addresses fail; gRPC's own default would go on with the old ones for 30 s,
        # which is as long as replacing all replicas takes.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        ("grpc.service_config", json.dumps(_service_config(shuffle=shuffle))),
    ]
    if for_work:
        return [*options, ("grpc.use_local_subchannel_pool", 1)]
    return [*options, ("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000)]


def _may_be_plain(given: bool | None) -> bool:
    return bool(flag_of_environment("CARILLON_PLAINTEXT") if given is None else given)


def _mounted_token() -> str | None:
    file = os.environ.get("CARILLON_SERVICE_TOKEN_FILE")
    return Path(file).read_text() if file else None


def _token(given: str | None) -> str | None:
    """The token without the line end that files and shells leave. gRPC would tell a malformed one in its error."""
    token = (given or "").strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token has a character that no token has; was something else pasted with it?")
    return token or None


def _service_config(*, shuffle: bool) -> object:
    names = [{"service": service, "method": method} for service, methods in _IDEMPOTENT.items() for method in methods]
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.2s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return {
        "loadBalancingConfig": [{"pick_first": {"shuffleAddressList": shuffle}}],
        "methodConfig": [{"name": names, "retryPolicy": retry}],
    }
