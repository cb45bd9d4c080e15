"""Sentences for people."""

from __future__ import annotations

from datetime import timedelta

import pytest

from scheduler_service.domain.timing import Timing, describe, words

SENTENCES = [
    ("0 9 * * 1", "At 09:00 on Monday"),
    ("30 2 * * *", "At 02:30 every day"),
    ("0 9-9 * * *", "At 09:00 every day"),
    ("45 23-23/24 * * *", "At 23:45 every day"),
    ("0 9 * * mon-fri", "At 09:00 on Monday through Friday"),
    ("0 0 * * 0-6", "At 00:00 every day"),
    ("0 9 * * 1#2", "At 09:00 on the second Monday of the month"),
    ("0 9 * * 5L", "At 09:00 on the last Friday of the month"),
    ("0 9 * * 1,5#2", "At 09:00 on Monday and on the second Friday of the month"),
    ("0 12 L * *", "At 12:00 on the last day of the month"),
    ("0 12 15,L * *", "At 12:00 on day 15 of the month and on the last day of the month"),
    ("0 0 13 * 5", "At 00:00 on day 13 of the month or on Friday"),
    ("0 0 */10 * 1", "At 00:00 on Monday, but only on day 1, 11, 21, and 31 of the month"),
    ("0 0 1-7 * */7", "At 00:00 on Sunday, but only from day 1 to 7 of the month"),
    ("0 0 29 2 *", "At 00:00 on day 29 of the month in February"),
    ("0 9 * */4 *", "At 09:00 every day in January, May, and September"),
    ("* * * * *", "Every minute"),
    ("*/20 * * * *", "Every 20 minutes"),
    ("0/20 * * * *", "Every 20 minutes"),
    ("5/15 * * * *", "Every 15 minutes, starting at 5 minutes past the hour"),
    ("*/25 * * * *", "At 0, 25, and 50 minutes past the hour"),
    ("*/90 * * * *", "Every hour"),
    ("0 0/12 * * *", "Every 12 hours every day"),
    ("7 */40 * * *", "At 00:07 every day"),
    ("0 22-23,0 * * *", "At 00:00, 22:00 and 23:00 every day"),
    ("*/10 9-17 * * 1-5", "Every 10 minutes, between 09:00 and 17:59 on Monday through Friday"),
    ("0 8-18 * * *", "Every hour on the hour, between 08:00 and 18:59 every day"),
    ("*/10 2,14 * * *", "Every 10 minutes, in the hours of 02:00 and 14:00 every day"),
    ("@hourly", "Every hour"),
    ("@weekly", "At 00:00 on Sunday"),
]


@pytest.mark.parametrize(("expression", "sentence"), SENTENCES)
def test_a_cron_reads_as_what_it_does(expression: str, sentence: str) -> None:
    assert describe(Timing.of(expression, "America/New_York")) == f"{sentence}, New York time"


@pytest.mark.parametrize(
    ("time_zone", "place"),
    [
        ("UTC", "UTC"),
        ("Etc/UTC", "UTC"),
        ("Etc/GMT+5", "UTC-05:00"),
        ("Etc/GMT-14", "UTC+14:00"),
        ("Asia/Kolkata", "Kolkata time"),
        ("America/Argentina/Buenos_Aires", "Buenos Aires time"),
        ("Japan", "Japan time"),
    ],
)
def test_the_zone_is_named_as_people_name_it(time_zone: str, place: str) -> None:
    assert describe(Timing.of("0 9 * * *", time_zone)) == f"At 09:00 every day, {place}"


@pytest.mark.parametrize(
    ("expression", "phase", "sentence"),
    [
        ("@every 90s", 0, "Every 90 seconds"),
        ("@every 1m", 0, "Every minute"),
        ("@every 1h30m", 0, "Every 90 minutes"),
        ("@every 24h", 0, "Every day"),
        ("@every 90s", 15, "Every 90 seconds, shifted by 15 s"),
    ],
)
def test_an_interval_reads_in_its_largest_unit(expression: str, phase: int, sentence: str) -> None:
    assert describe(Timing.of(expression, "Asia/Tokyo", phase=timedelta(seconds=phase))) == sentence


def test_without_words_the_expression_speaks_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(words, "ExpressionDescriptor", fail)
    assert describe(Timing.of("59 4 3 * *", "Asia/Tokyo")) == "On the schedule 59 4 3 * *, Tokyo time"
