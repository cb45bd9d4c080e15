"""What a job's declaration and its overrides may hold: every limit that job.proto states.

The checks add to `Violations` and go on, so that one refusal lists every wrong field of a whole manifest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta

from scheduler_service.domain import fields
from scheduler_service.domain.fields import Violations
from scheduler_service.domain.job import JobOverrides, JobSpec, Manifest, Policies, RetryPolicy, Target, TimingSpec
from scheduler_service.domain.names import check_id
from scheduler_service.domain.retry import LONGEST_DELAY, MAX_ATTEMPTS
from scheduler_service.domain.timing import Cron, TimingError, parse, zone

MAX_JOBS = 1000
MAX_DISPLAY_NAME = 200
MAX_DESCRIPTION = 2000
MAX_MULTIPLIER = 100
MAX_CODES = 50
MAX_CODE = 63
_NONE = timedelta()
_SECOND = timedelta(seconds=1)
_HOUR = timedelta(hours=1)
_WEEK = timedelta(days=7)
_MONTH = timedelta(days=30)
_CODES = re.compile(r"[A-Z][A-Z0-9_]*\*?")
# Above a time in nanoseconds (until 2096), and below what a slip such as the largest int64 would register for good.
MAX_GENERATION = 4 * 10**18


def check_manifest(manifest: Manifest, wrong: Violations) -> None:
    """A whole manifest; paths are those of RegisterJobsRequest, such as `jobs[3].timing.cron`."""
    check_id(manifest.service, "service", wrong, what="a service")
    if not 0 <= manifest.generation <= MAX_GENERATION:
        wrong.add(
            "generation",
            f"{manifest.generation:,} is not from 0 to {MAX_GENERATION:,}; send a number that grows with each deploy",
        )
    if manifest.base_url:
        fields.check_url(manifest.base_url, "base_url", wrong)
        if "?" in manifest.base_url:
            wrong.add("base_url", "it has a query, which a path cannot be put after; leave it out")
    if len(manifest.jobs) > MAX_JOBS:
        wrong.add("jobs", f"there are {len(manifest.jobs):,} jobs; at most {MAX_JOBS:,} are allowed")
        return
    for index, spec in enumerate(manifest.jobs):
        check_job(spec, f"jobs[{index}]", wrong)
    _check_names_differ(manifest, wrong)
    _check_base_url_is_there(manifest, wrong)


def check_job(spec: JobSpec, path: str, wrong: Violations) -> None:
    check_id(spec.job, f"{path}.job", wrong, what="a job")
    fields.check_text(spec.display_name, f"{path}.display_name", wrong, at_most=MAX_DISPLAY_NAME)
    fields.check_text(spec.description, f"{path}.description", wrong, at_most=MAX_DESCRIPTION)
    fields.check_labels(spec.labels, f"{path}.labels", wrong)
    _check_target(spec.target, f"{path}.target", wrong)
    check_timing(spec.timing, f"{path}.timing", wrong)
    check_policies(spec.policies, f"{path}.policies", wrong)
    fields.check_json(spec.config, f"{path}.config", wrong)


def check_overrides(overrides: JobOverrides, declared: JobSpec, wrong: Violations) -> None:
    """Overrides of a job, alone and put over its declaration."""
    check_timing(overrides.timing, "overrides.timing", wrong, base=declared.timing)
    check_policies(overrides.policies, "overrides.policies", wrong)
    fields.check_json(overrides.config, "overrides.config", wrong)
    if not wrong:
        fields.check_json_size({**declared.config, **overrides.config}, "overrides.config", wrong)


def check_timing(timing: TimingSpec, path: str, wrong: Violations, *, base: TimingSpec | None = None) -> None:
    """A timing alone; its phase against its own expression, or else against that of the timing it is put over."""
    cron = timing.cron if timing.cron is not None or base is None else base.cron
    if timing.cron:
        _check_sentence(parse, timing.cron, f"{path}.cron", wrong)
    if timing.time_zone is not None:
        _check_sentence(zone, timing.time_zone, f"{path}.time_zone", wrong)
    fields.check_duration(timing.jitter, f"{path}.jitter", wrong, least=_NONE, most=_HOUR)
    if timing.phase is not None:
        _check_phase(timing.phase, cron, f"{path}.phase", wrong)


def check_policies(policies: Policies, path: str, wrong: Violations) -> None:
    fields.check_duration(policies.attempt_timeout, f"{path}.attempt_timeout", wrong, least=_SECOND, most=_WEEK)
    fields.check_duration(policies.run_timeout, f"{path}.run_timeout", wrong, least=_SECOND, most=_MONTH)
    fields.check_duration(policies.cancel_grace, f"{path}.cancel_grace", wrong, least=_NONE, most=_HOUR)
    fields.check_duration(policies.catch_up_window, f"{path}.catch_up_window", wrong, least=_NONE, most=_MONTH)
    _check_retry(policies.retry, f"{path}.retry", wrong)


def _check_retry(retry: RetryPolicy, path: str, wrong: Violations) -> None:
    fields.check_duration(retry.delay, f"{path}.delay", wrong, least=_NONE, most=LONGEST_DELAY)
    fields.check_duration(retry.max_delay, f"{path}.max_delay", wrong, least=_NONE, most=LONGEST_DELAY)
    if retry.max_attempts is not None and not 1 <= retry.max_attempts <= MAX_ATTEMPTS:
        wrong.add(f"{path}.max_attempts", f"{retry.max_attempts} is not from 1 to {MAX_ATTEMPTS}; 1 means no retry")
    # NaN is within no bounds.
    if retry.multiplier is not None and not 1 <= retry.multiplier <= MAX_MULTIPLIER:
        wrong.add(
            f"{path}.multiplier",
            f"{retry.multiplier:g} is not from 1 to {MAX_MULTIPLIER}; 2 doubles each delay, 1 leaves them alike",
        )
    if retry.jitter is not None and not 0 <= retry.jitter <= 1:
        wrong.add(
            f"{path}.jitter", f"{retry.jitter:g} is not from 0 to 1; 0.5 takes up to half of a delay off it, 0 nothing"
        )
    _check_codes(retry.never_retry or (), f"{path}.never_retry", wrong)


def _check_codes(codes: Sequence[str], path: str, wrong: Violations) -> None:
    if len(codes) > MAX_CODES:
        wrong.add(path, f"there are {len(codes):,} codes; at most {MAX_CODES} are allowed, and HTTP_4* names many")
        return
    first: dict[str, int] = {}
    for index, code in enumerate(codes):
        if code == "*":
            wrong.add(f"{path}.codes[{index}]", "'*' alone would end every run; say that with max_attempts, 1")
        elif not _CODES.fullmatch(code):
            wrong.add(
                f"{path}.codes[{index}]",
                f"{fields.quoted(code)} is no code; write capitals, digits and underscores, such as HTTP_404, or the"
                " beginning of codes and a *, such as HTTP_4*",
            )
        elif len(code) > MAX_CODE:
            wrong.add(f"{path}.codes[{index}]", f"it has {len(code):,} characters; at most {MAX_CODE} are allowed")
        elif first.setdefault(code, index) != index:
            wrong.add(f"{path}.codes[{index}]", f"{code} stands at codes[{first[code]}] already; leave one of them out")


def _check_target(target: Target, path: str, wrong: Violations) -> None:
    if target.http is not None:
        fields.check_endpoint(target.http.endpoint, f"{path}.http.endpoint", wrong)
    elif target.grpc is not None:
        fields.check_address(target.grpc.address, f"{path}.grpc.address", wrong)
    elif target.handler is None:
        wrong.add(
            path,
            "it is missing; set `http` with an endpoint, `grpc` with an address, or `handler` for a worker's function",
        )


def _check_phase(phase: timedelta, cron: str | None, path: str, wrong: Violations) -> None:
    try:
        rule = parse(cron) if cron else None
    except TimingError:
        return  # the expression is refused by itself
    if phase < _NONE:
        wrong.add(path, f"{fields.in_words(phase)} is negative; write from 0 s to less than the interval")
    elif rule is None or isinstance(rule, Cron):
        if phase:
            wrong.add(path, "only @every has a phase; leave it out, or write @every in `cron`")
    elif phase >= rule.period:
        wrong.add(path, f"{fields.in_words(phase)} is not shorter than the interval of {fields.in_words(rule.period)}")


def _check_sentence(read: Callable[[str], object], text: str, path: str, wrong: Violations) -> None:
    try:
        read(text)
    except TimingError as error:
        wrong.add(path, str(error))


def _check_names_differ(manifest: Manifest, wrong: Violations) -> None:
    counts = Counter(spec.job for spec in manifest.jobs if spec.job)
    first: dict[str, int] = {}
    for index, spec in enumerate(manifest.jobs):
        if counts[spec.job] > 1 and first.setdefault(spec.job, index) != index:
            wrong.add(
                f"jobs[{index}].job",
                f"{fields.quoted(spec.job)} is declared already by jobs[{first[spec.job]}]; a job has one declaration",
            )


def _check_base_url_is_there(manifest: Manifest, wrong: Violations) -> None:
    if manifest.base_url:
        return
    for index, spec in enumerate(manifest.jobs):
        if spec.target.http is not None and fields.is_relative(spec.target.http.endpoint):
            wrong.add("base_url", f"it is missing, and the endpoint of jobs[{index}] is a path below it")
            return
