"""What single fields of requests may hold, and the list of what was found wrong with them.

Each check adds to `Violations` and goes on, so that a refusal names every wrong field at once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from scheduler_service.domain.errors import InvalidInput, Violation

MAX_JSON_BYTES = 256 * 1024
MAX_JSON_DEPTH = 32
MAX_LABELS = 32
MAX_LABEL_LENGTH = 256
MAX_URL_LENGTH = 2048
MAX_ADDRESS_LENGTH = 255
_LABEL_KEY = re.compile(r"[A-Za-z0-9._/-]{1,63}")
_NOT_IN_A_URL = re.compile(r"[\s\\\x00-\x1f\x7f]")
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_UNITS = ((timedelta(days=1), "day"), (timedelta(hours=1), "hour"), (timedelta(minutes=1), "minute"))


class Violations:
    """What was found wrong so far."""

    def __init__(self, found: Iterable[Violation] = ()) -> None:
        self._found = list(found)

    def add(self, field: str, problem: str) -> None:
        self._found.append(Violation(field, problem))

    def __iter__(self) -> Iterator[Violation]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def refuse_if_any(self) -> None:
        """Raises one InvalidInput that lists them all."""
        if self._found:
            raise InvalidInput(*self._found)


def check_text(text: str, field: str, wrong: Violations, *, at_most: int) -> None:
    """Text for people: at most so many characters, and no NUL."""
    if len(text) > at_most:
        wrong.add(field, f"it has {len(text):,} characters; at most {at_most:,} are allowed")
    if "\0" in text:
        wrong.add(field, "it has a NUL character, which cannot be stored; leave it out")


def is_storable(text: str) -> bool:
    """Whether the database can hold a text: none with a NUL, or with half of a surrogate pair, which JSON can spell."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def check_duration(
    duration: timedelta | None, field: str, wrong: Violations, *, least: timedelta, most: timedelta
) -> None:
    """A duration within bounds, both inclusive. None, a field that is not set, is right."""
    if duration is not None and not least <= duration <= most:
        wrong.add(field, f"{in_words(duration)} is not from {in_words(least)} to {in_words(most)}")


def check_labels(labels: Mapping[str, str], field: str, wrong: Violations) -> None:
    """At most 32 labels, with keys and values as JobSpec.labels says."""
    if len(labels) > MAX_LABELS:
        wrong.add(field, f"there are {len(labels)} labels; at most {MAX_LABELS} are allowed")
        return
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            wrong.add(
                f"{field}[{quoted(key)}]",
                "a label's key has 1 to 63 characters of a-z, A-Z, 0-9, '-', '_', '.' and '/'",
            )
        check_text(value, f"{field}[{quoted(key)}]", wrong, at_most=MAX_LABEL_LENGTH)


def check_json(value: Any, field: str, wrong: Violations) -> None:
    """A JSON value that can be stored and passed on: no NaN, Infinity or NUL, at most 32 levels deep and 256 KiB as
    `check_json_size` counts. Each wrong place is named by its path."""
    found_before = len(wrong)
    _check_json_value(value, field, wrong, depth=0)
    if len(wrong) == found_before:
        check_json_size(value, field, wrong)


def check_json_size(value: Any, field: str, wrong: Violations) -> None:
    """At most 256 KiB, as `json_size` counts. The value must be sound otherwise."""
    size = json_size(value)
    if size > MAX_JSON_BYTES:
        wrong.add(
            field,
            f"it has {size:,} bytes as compact JSON (1e+20 counts as 21 digits, as it is stored);"
            f" at most {MAX_JSON_BYTES:,} (256 KiB) are allowed",
        )


def json_size(value: Any) -> int:
    """The bytes of a sound JSON value as compact UTF-8, with its numbers written out."""
    return len(compact_json(value).encode("utf-8", "surrogatepass")) + _left_out_of(value)


def left_out(number: str) -> int:
    """How many characters shorter a JSON number is than as the database gives it back: that keeps numbers as decimals
    and writes no exponents, so that 1e+308 has 309 digits."""
    return len(format(Decimal(number), "f")) - len(number) if "e" in number or "E" in number else 0


def compact_json(value: Any) -> str:
    """The one text of a JSON value: keys sorted, no white space. Equal texts mean equal values, which Python's `==`
    does not say (`True == 1`)."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


def check_url(url: str, field: str, wrong: Violations) -> None:
    """An absolute `http://` or `https://` URL without user, password or fragment, of at most 2,048 characters."""
    if (problem := _url_problem(url)) is not None:
        wrong.add(field, problem)


def check_endpoint(endpoint: str, field: str, wrong: Violations) -> None:
    """As `check_url`, or a path beginning with one `/`."""
    if not endpoint:
        wrong.add(field, "it is missing; write an absolute http(s) URL, or a path such as /jobs/digest")
    elif is_relative(endpoint):
        if endpoint.startswith("//") or "#" in endpoint or _NOT_IN_A_URL.search(endpoint):
            wrong.add(field, f"{quoted(endpoint)} is no path; write one such as /jobs/digest, without spaces or #")
        elif len(endpoint) > MAX_URL_LENGTH:
            wrong.add(field, f"it has {len(endpoint):,} characters; at most {MAX_URL_LENGTH:,} are allowed")
    else:
        check_url(endpoint, field, wrong)


def check_address(address: str, field: str, wrong: Violations) -> None:
    """`host:port` of at most 255 characters; the host is a name, an IPv4 address, or an IPv6 address in brackets."""
    found = _ADDRESS.fullmatch(address)
    if not address:
        wrong.add(field, "it is missing; write host:port, such as email-service:50051")
    elif len(address) > MAX_ADDRESS_LENGTH:
        wrong.add(field, f"it has {len(address):,} characters; at most {MAX_ADDRESS_LENGTH} are allowed")
    elif found is None or not 0 < int(found[1]) < 65536:
        wrong.add(field, f"{quoted(address)} is not host:port; write one such as email-service:50051")


def is_relative(endpoint: str) -> bool:
    """Whether an endpoint is a path below the service's base URL."""
    return endpoint.startswith("/")


def in_words(duration: timedelta) -> str:
    """A duration as a sentence says it: `7 days`, `90 s`."""
    for unit, name in _UNITS:
        if duration and duration % unit == timedelta():
            number = duration // unit
            return f"{number} {name}{'' if number == 1 else 's'}"
    return f"{duration.total_seconds():g} s"


def quoted(text: str) -> str:
    """Text of a caller's inside a sentence: cut to 80 characters, with anything odd escaped."""
    return ascii(text if len(text) <= 80 else f"{text[:77]}...")


def _left_out_of(value: Any) -> int:
    """The same of all numbers inside a value, against its compact JSON."""
    if isinstance(value, float):
        return left_out(repr(value))
    if isinstance(value, Mapping):
        return sum(map(_left_out_of, value.values()))
    return sum(map(_left_out_of, value)) if isinstance(value, list) else 0


def _check_json_value(value: Any, path: str, wrong: Violations, depth: int) -> None:
    if depth > MAX_JSON_DEPTH:
        wrong.add(path, f"it is nested deeper than {MAX_JSON_DEPTH} levels")
    elif isinstance(value, str):
        if "\0" in value:
            wrong.add(path, "it has a NUL character, which cannot be stored; leave it out")
    elif isinstance(value, float):
        if not math.isfinite(value):
            wrong.add(path, f"{value} is no JSON number; send null or leave it out")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if "\0" in key:
                wrong.add(f"{path}.{ascii(key)[1:-1]}", "its name has a NUL character, which cannot be stored")
            _check_json_value(inner, f"{path}.{key}", wrong, depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_json_value(inner, f"{path}[{index}]", wrong, depth + 1)


def _url_problem(url: str) -> str | None:
    write = "write one such as http://email-service:8080/jobs/digest"
    if len(url) > MAX_URL_LENGTH:
        return f"it has {len(url):,} characters; at most {MAX_URL_LENGTH:,} are allowed"
    if _NOT_IN_A_URL.search(url):
        return f"{quoted(url)} has a space, a backslash or a control character; percent-encode it"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"{quoted(url)} is no URL ({error}); {write}"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return f"{quoted(url)} is no absolute http:// or https:// URL; {write}"
    if parts.username is not None or parts.password is not None:
        return "a URL with a user or password would be stored and shown; give the service a token of its own instead"
    if parts.fragment or url.endswith("#"):
        return f"{quoted(url)} has a fragment (#), which is never sent; leave it out"
    return None
