"""What a service says of a job, checked where it is written, as the `JobSpec` that is registered."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from carillon.structs import Seconds, to_duration, to_struct
from carillon.v1 import job_pb2

if TYPE_CHECKING:
    from typing_extensions import Unpack

Overlap = Literal["skip", "buffer_one", "buffer_all", "cancel_other", "allow_all"]
CatchUp = Literal["none", "latest", "all"]
Gap = Literal["shift", "skip"]
Repeat = Literal["first", "both"]

_DAY = 86_400.0
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_LABEL = re.compile(r"[a-zA-Z0-9._/-]{1,63}")
_CODE = re.compile(r"(?=.{1,63}\Z)[A-Z][A-Z0-9_]*\*?", re.ASCII)
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_CONFIG_BYTES = 256 * 1024
_MOST_CODES = 50

_OVERLAPS = {
    "skip": job_pb2.OVERLAP_SKIP,
    "buffer_one": job_pb2.OVERLAP_BUFFER_ONE,
    "buffer_all": job_pb2.OVERLAP_BUFFER_ALL,
    "cancel_other": job_pb2.OVERLAP_CANCEL_OTHER,
    "allow_all": job_pb2.OVERLAP_ALLOW_ALL,
}
_CATCH_UPS = {"none": job_pb2.CATCH_UP_NONE, "latest": job_pb2.CATCH_UP_LATEST, "all": job_pb2.CATCH_UP_ALL}
_GAPS = {"shift": job_pb2.GAP_POLICY_SHIFT, "skip": job_pb2.GAP_POLICY_SKIP}
_REPEATS = {"first": job_pb2.REPEAT_POLICY_FIRST, "both": job_pb2.REPEAT_POLICY_BOTH}


class TimingOptions(TypedDict, total=False):
    """When a job or schedule is owed."""

    # Five fields, `@daily` and the like, or `@every 90s`. Left out: only by hand, or for tenants.
    cron: str
    # An IANA name such as `Europe/Berlin`. Default: the deployment's, else `UTC`.
    time_zone: str
    # A fixed time that the clocks skip: at the first valid instant after it (the default), or not at all.
    gap: Gap
    # A fixed time that comes twice: at the first (the default), or at both.
    repeat: Repeat
    # For `@every`: the offset of its instants from the Unix epoch. Default: 0.
    phase: Seconds
    # Runs are put off by a fixed part of this, different for each schedule. At most 1 h. Default: 0.
    jitter: Seconds


class PolicyOptions(TimingOptions, total=False):
    """How the runs of a job behave."""

    # How long one attempt may take: 1 s to 7 days. Default: 1 h.
    timeout: Seconds
    # How long a run may take with all attempts and waits: 1 s to 30 days. Default: 24 h.
    run_timeout: Seconds
    # Attempts beyond the first, 0 to 99. Default: 2.
    retries: int
    # The wait after the first failed attempt, 0 s to 7 days. Default: 10 minutes.
    retry_delay: Seconds
    # By what each further wait is longer than the one before it, 1 to 100. Default: 1, all waits alike.
    retry_multiplier: float
    # The longest wait, also where a target asks for a longer one: 0 s to 7 days. Default: 7 days.
    max_retry_delay: Seconds
    # The share of a wait that may be taken off it, different for each run, 0 to 1. Default: 0.
    retry_jitter: float
    # Codes of errors after which a run ends, whatever attempts it has left: such as `HTTP_404`, or `HTTP_4*` for all
    # that begin so. At most 50. Default: none but those that no retry can mend, such as `BAD_PAYLOAD`.
    never_retry: list[str] | tuple[str, ...]
    # An occurrence that is due while an earlier run of its schedule is live: skip it (the default); let one wait for
    # that run to end (`buffer_one`), or every one (`buffer_all`); ask that run to stop, and wait until it has
    # (`cancel_other`); or run both (`allow_all`).
    overlap: Overlap
    # Occurrences that are 60 s late or more, because no scheduler was there: run the latest (the default), all or none.
    catch_up: CatchUp
    # How late an occurrence may be and still be caught up: 0 s to 30 days. Default: 1 day.
    catch_up_window: Seconds
    # How long a run that was asked to stop may take to do so: 0 to 1 h. Default: 30 s.
    cancel_grace: Seconds
    # What the target receives: a JSON object of at most 256 KiB. Schedules and triggers put theirs over it.
    config: Mapping[str, object]


class JobOptions(PolicyOptions, total=False):
    """All that a declaration takes: `Jobs.endpoint`, `Jobs.handler` and their likes for gRPC."""

    # A name for people. Default: the job's id.
    display_name: str
    # What it does, for people.
    description: str
    # Labels of each of its runs, for filters and reports. At most 32.
    labels: Mapping[str, str]
    # Whether tenants may have schedules of their own. Default: False.
    tenant_schedules: bool


def check_name(kind: str, name: object) -> str:
    """`name`, if it may be a service's or job's id. Raises ValueError or TypeError with a sentence."""
    if not isinstance(name, str):
        raise TypeError(f"a {kind}'s name must be a string, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be a {kind}'s name: 1 to 63 characters of a-z, 0-9, '-', '_' and '.', "
            "beginning with a letter or digit"
        )
    return name


def job_spec(job: str, target: job_pb2.Target, **options: Unpack[JobOptions]) -> job_pb2.JobSpec:
    """The declaration of one job. Raises ValueError or TypeError with a sentence that names the job and option."""
    what = f"job {check_name('job', job)!r}"
    _check_known(what, options)
    spec = job_pb2.JobSpec(
        job=job,
        display_name=_text(what, "display_name", options.get("display_name", ""), 200),
        description=_text(what, "description", options.get("description", ""), 2_000),
        labels=labels(what, options.get("labels", {})),
        target=target,
        tenant_schedules=options.get("tenant_schedules", False),
    )
    set_timing(spec.timing, what, options)
    set_policies(spec.policies, what, options)
    if config := options.get("config"):
        spec.config.CopyFrom(to_struct(config, f"{what}: config"))
        if (size := spec.config.ByteSize()) > _CONFIG_BYTES:
            raise ValueError(f"{what}: config has {size:,} bytes; at most {_CONFIG_BYTES:,} are allowed")
    return spec


def http_target(job: str, endpoint: str, base_url: str | None) -> job_pb2.Target:
    """An HTTP target. Raises ValueError unless the endpoint is a URL, or a path and there is a base URL."""
    if not endpoint.startswith(("http://", "https://", "/")) or len(endpoint) > 2_048:
        raise ValueError(
            f"job {job!r}: the endpoint must be an http:// or https:// URL or a path beginning with '/', of at most "
            f"2,048 characters, not {endpoint[:100]!r}"
        )
    if endpoint.startswith("/") and not base_url:
        raise ValueError(
            f"job {job!r}: the endpoint {endpoint!r} is a path; say where the service is found: "
            "Jobs(..., base_url='http://my-service:8080')"
        )
    return job_pb2.Target(http=job_pb2.HttpTarget(endpoint=endpoint))


def grpc_target(job: str, address: str, tls: bool) -> job_pb2.Target:
    """A gRPC target. Raises ValueError unless the address is `host:port`."""
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found[1]) < 65_536 or len(address) > 255:
        raise ValueError(
            f"job {job!r}: the address must be host:port, such as 'my-service:50051', of at most 255 characters, "
            f"not {address[:100]!r}"
        )
    return job_pb2.Target(grpc=job_pb2.GrpcTarget(address=address, tls=tls))


def set_timing(timing: job_pb2.Timing, what: str, options: TimingOptions) -> None:
    """Sets what the options name."""
    if "cron" in options:
        timing.cron = _text(what, "cron", options["cron"], 256)
    if "time_zone" in options:
        timing.time_zone = _text(what, "time_zone", options["time_zone"], 64)
    if "gap" in options:
        timing.gap = _choice(what, "gap", options["gap"], _GAPS)
    if "repeat" in options:
        timing.repeat = _choice(what, "repeat", options["repeat"], _REPEATS)
    if "phase" in options:
        timing.phase.CopyFrom(to_duration(options["phase"], f"{what}: phase"))
    if "jitter" in options:
        timing.jitter.CopyFrom(_span(what, "jitter", options["jitter"], 0, 3_600))


def set_policies(policies: job_pb2.Policies, what: str, options: PolicyOptions) -> None:
    """Sets what the options name."""
    if "overlap" in options:
        policies.overlap = _choice(what, "overlap", options["overlap"], _OVERLAPS)
    if "catch_up" in options:
        policies.catch_up = catch_up_value(what, options["catch_up"])
    if "catch_up_window" in options:
        policies.catch_up_window.CopyFrom(_span(what, "catch_up_window", options["catch_up_window"], 0, 30 * _DAY))
    if "timeout" in options:
        policies.attempt_timeout.CopyFrom(_span(what, "timeout", options["timeout"], 1, 7 * _DAY))
    if "run_timeout" in options:
        policies.run_timeout.CopyFrom(_span(what, "run_timeout", options["run_timeout"], 1, 30 * _DAY))
    if "cancel_grace" in options:
        policies.cancel_grace.CopyFrom(_span(what, "cancel_grace", options["cancel_grace"], 0, 3_600))
    _set_retries(policies, what, options)


def _set_retries(policies: job_pb2.Policies, what: str, options: PolicyOptions) -> None:
    if "retries" in options:
        retries: object = options["retries"]
        if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= 99:
            raise ValueError(f"{what}: retries must be a whole number from 0 to 99, not {retries!r}")
        policies.retry.max_attempts = retries + 1
    if "retry_delay" in options:
        policies.retry.delay.CopyFrom(_span(what, "retry_delay", options["retry_delay"], 0, 7 * _DAY))
    if "retry_multiplier" in options:
        policies.retry.multiplier = _number(what, "retry_multiplier", options["retry_multiplier"], 1, 100)
    if "max_retry_delay" in options:
        policies.retry.max_delay.CopyFrom(_span(what, "max_retry_delay", options["max_retry_delay"], 0, 7 * _DAY))
    if "retry_jitter" in options:
        policies.retry.jitter = _number(what, "retry_jitter", options["retry_jitter"], 0, 1)
    if "never_retry" in options:
        policies.retry.never_retry.CopyFrom(job_pb2.ErrorCodes(codes=_codes(what, options["never_retry"])))


def catch_up_value(what: str, choice: CatchUp) -> job_pb2.CatchUp.ValueType:
    """The message's value. Raises ValueError."""
    found: job_pb2.CatchUp.ValueType = _choice(what, "catch_up", choice, _CATCH_UPS)
    return found


def labels(what: str, given: Mapping[str, str]) -> Mapping[str, str]:
    """`given`, if the scheduler would take it. Raises ValueError."""
    if len(given) > 32:
        raise ValueError(f"{what}: {len(given)} labels; at most 32 are allowed")
    for key, value in given.items():
        if not _LABEL.fullmatch(key):
            raise ValueError(
                f"{what}: label {key!r}: keys have 1 to 63 characters of a-z, A-Z, 0-9, '-', '_', '.' and '/'"
            )
        _text(f"{what}: label {key!r}", "its value", value, 256)
    return given


def _check_known(what: str, options: Mapping[str, Any]) -> None:
    names = sorted(JobOptions.__annotations__)
    for option in options:
        if option not in names:
            close = difflib.get_close_matches(option, names, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
            raise TypeError(f"{what}: unknown option {option!r}; {hint}")


def _text(what: str, option: str, value: object, longest: int) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what}: {option} must be a string, not {type(value).__name__}")
    if len(value) > longest or "\0" in value:
        raise ValueError(f"{what}: {option} may have at most {longest:,} characters, and no NUL")
    return value


def _choice(what: str, option: str, value: str, choices: Mapping[str, Any]) -> Any:
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{what}: {option} must be {', '.join(others)} or {last}, not {value!r}")
    return choices[value]


def _number(what: str, option: str, value: object, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what}: {option} must be a number, not {type(value).__name__}")
    if not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"{what}: {option} must be from {least:g} to {most:g}, not {value}")
    return float(value)


def _codes(what: str, given: object) -> list[str]:
    if not isinstance(given, (list, tuple)):
        raise TypeError(
            f"{what}: never_retry must be a list of codes, such as ['HTTP_404'], not {type(given).__name__}"
        )
    if len(given) > _MOST_CODES:
        raise ValueError(f"{what}: never_retry has {len(given)} codes; at most {_MOST_CODES} are allowed")
    for code in given:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise ValueError(
                f"{what}: never_retry: {code!r} must be capitals, digits and underscores, such as 'HTTP_404', or the "
                "beginning of a code with a '*', such as 'HTTP_4*', at most 63 characters"
            )
        if given.count(code) > 1:
            raise ValueError(f"{what}: never_retry names {code!r} twice")
    return list(given)


def _span(what: str, option: str, value: Seconds, least: float, most: float) -> Any:
    duration = to_duration(value, f"{what}: {option}")
    seconds = duration.seconds + duration.nanos / 1e9
    if not least <= seconds <= most:
        longest = f"{most / _DAY:g} days" if most >= _DAY else f"{most / 3_600:g} h"
        raise ValueError(f"{what}: {option} must be from {least:g} s to {longest}, not {seconds:g} s")
    return duration
