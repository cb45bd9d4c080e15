"""What a person reads of a refusal."""

from __future__ import annotations

import carillon

MINUTE = carillon.Violation("jobs[0].timing.cron", "minute: 61 is not between 0 and 59")
ZONE = carillon.Violation("jobs[1].timing.time_zone", "'Mars' is not an IANA time zone")


def test_each_wrong_field_is_said_once() -> None:
    error = carillon.InvalidRequest(
        f"{MINUTE}; and 1 more wrong fields", code="INVALID_ARGUMENT", violations=[MINUTE, ZONE]
    )
    assert str(error).count(str(MINUTE)) == 1
    assert str(error).splitlines()[1:] == [f"  - {ZONE}"]
