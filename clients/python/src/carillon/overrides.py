"""Changes by hand: new values, and the mask that says which fields they are."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf import field_mask_pb2

from carillon.declaration import PolicyOptions, TimingOptions, labels, set_policies, set_timing
from carillon.structs import to_struct
from carillon.v1 import job_pb2, schedule_pb2

_PATHS = {
    "cron": "timing.cron",
    "time_zone": "timing.time_zone",
    "gap": "timing.gap",
    "repeat": "timing.repeat",
    "phase": "timing.phase",
    "jitter": "timing.jitter",
    "timeout": "policies.attempt_timeout",
    "run_timeout": "policies.run_timeout",
    "retries": "policies.retry.max_attempts",
    "retry_delay": "policies.retry.delay",
    "retry_multiplier": "policies.retry.multiplier",
    "max_retry_delay": "policies.retry.max_delay",
    "retry_jitter": "policies.retry.jitter",
    "never_retry": "policies.retry.never_retry",
    "overlap": "policies.overlap",
    "cancel_grace": "policies.cancel_grace",
    "catch_up": "policies.catch_up",
    "catch_up_window": "policies.catch_up_window",
    "config": "config",
}


def overrides_and_mask(options: PolicyOptions) -> tuple[job_pb2.JobOverrides, field_mask_pb2.FieldMask]:
    """A job's overrides from the options that are named. Raises ValueError or TypeError with a sentence."""
    overrides = job_pb2.JobOverrides()
    set_timing(overrides.timing, "update_job", options)
    set_policies(overrides.policies, "update_job", options)
    if "config" in options:
        overrides.config.CopyFrom(to_struct(options["config"], "config"))
    return overrides, _mask("update_job", options)


def schedule_and_mask(
    timing: TimingOptions,
    enabled: bool | None,
    config: Mapping[str, object] | None,
    given_labels: Mapping[str, str] | None,
) -> tuple[schedule_pb2.Schedule, field_mask_pb2.FieldMask]:
    """A schedule without its name from what is given. Raises ValueError or TypeError with a sentence."""
    schedule = schedule_pb2.Schedule()
    set_timing(schedule.timing, "put_schedule", timing)
    mask = _mask("put_schedule", timing)
    if enabled is not None:
        schedule.enabled = enabled
        mask.paths.append("enabled")
    if config is not None:
        schedule.config.CopyFrom(to_struct(config, "config"))
        mask.paths.append("config")
    if given_labels is not None:
        schedule.labels.update(labels("put_schedule", given_labels))
        mask.paths.append("labels")
    return schedule, mask


def proposed_timing(timing: TimingOptions) -> job_pb2.Timing:
    """A timing from the options that are named. Raises ValueError or TypeError with a sentence."""
    _mask("preview_occurrences", timing)
    proposed = job_pb2.Timing()
    set_timing(proposed, "preview_occurrences", timing)
    return proposed


def _mask(what: str, options: Mapping[str, object]) -> field_mask_pb2.FieldMask:
    for option in options:
        if option not in _PATHS:
            raise TypeError(f"{what} has no option {option!r}; there are {', '.join(_PATHS)}")
    return field_mask_pb2.FieldMask(paths=[_PATHS[option] for option in options])
