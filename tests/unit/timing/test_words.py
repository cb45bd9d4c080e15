"""Sentences for people."""

from __future__ import annotations

from datetime import timedelta

import pytest

from scheduler_service.domain.timing import Timing, describe, words

SENTENCES = [
    ("0 9 * * 1", "At 09:00 on Monday"),
    ("30 2 * * *", "At 02:30 every day"),
    ("0 9 * * *", "At 09:00 every day"),
    ("0 9-9 * * *", "At 09:00 every day"),
    ("45 23-23/24 * * *", "At 23:45 every day"),
    ("0 9,17 * * *", "At 09:00 and 17:00 every day"),
    ("0,30 9 * * *", "At 09:00 and 09:30 every day"),
    ("5/15 2 * * *", "At 02:05, 02:20, 02:35, and 02:50 every day"),
    ("0 0/12 * * *", "At 00:00 and 12:00 every day"),
    ("7 */40 * * *", "At 00:07 every day"),
    ("0 9,12-14 * * *", "At 09:00, 12:00, 13:00, and 14:00 every day"),
    ("0 22-23,0 * * *", "At 00:00, 22:00, and 23:00 every day"),
    ("30 9-17/2 * * *", "At 09:30, 11:30, 13:30, 15:30, and 17:30 every day"),
    ("* * * * *", "Every minute"),
    ("*/20 * * * *", "Every 20 minutes"),
    ("0/20 * * * *", "Every 20 minutes"),
    ("5/15 * * * *", "At 5, 20, 35, and 50 minutes past the hour"),
    ("*/25 * * * *", "At 0, 25, and 50 minutes past the hour"),
    ("1-59/2 * * * *", "Every 2 minutes from 1 minute past the hour"),
    ("0-10 * * * *", "At minutes 0 to 10 past the hour"),
    ("*/90 * * * *", "Every hour"),
    ("30 * * * *", "At 30 minutes past the hour"),
    ("1 * * * *", "At 1 minute past the hour"),
    ("0 */2 * * *", "Every 2 hours"),
    ("0 1-23/2 * * *", "Every 2 hours from 01:00"),
    ("30 */4 * * *", "Every 4 hours from 00:30"),
    ("0 */3 * * 1-5", "Every 3 hours on Monday through Friday"),
    ("* 2 * * *", "Every minute from 02:00 to 02:59 every day"),
    ("0-5 2 * * *", "Every minute from 02:00 to 02:05 every day"),
    ("0-5 2-3 * * *", "At minutes 0 to 5 past the hour from 02:00 to 03:05 every day"),
    ("0 8-18 * * *", "Every hour from 08:00 to 18:00 every day"),
    ("*/10 9-17 * * 1-5", "Every 10 minutes from 09:00 to 17:50 on Monday through Friday"),
    ("7,22,37,52 1,2,3 * * *", "Every 15 minutes from 01:07 to 03:52 every day"),
    ("5,26 9-17 * * *", "At 5 and 26 minutes past the hour from 09:05 to 17:26 every day"),
    ("5,26 */3 * * *", "At 5 and 26 minutes past the hour in every 3rd hour from 00:00"),
    ("*/10 2,14 * * *", "Every 10 minutes in the hours of 02:00 and 14:00"),
    ("0 9 * * mon-fri", "At 09:00 on Monday through Friday"),
    ("0 0 * * 0-6", "At 00:00 every day"),
    ("0 9 * * 6,0", "At 09:00 on Saturday and Sunday"),
    ("0 9 * * 5-7", "At 09:00 on Friday through Sunday"),
    ("0 9 * * 0-2", "At 09:00 on Sunday through Tuesday"),
    ("0 9 * * */2", "At 09:00 on Tuesday, Thursday, Saturday, and Sunday"),
    ("0 9 * * 1#2", "At 09:00 on the second Monday of the month"),
    ("0 9 * * 1#1,1#3", "At 09:00 on the first Monday and the third Monday of the month"),
    ("0 9 * * 5L", "At 09:00 on the last Friday of the month"),
    ("0 9 * * 1,5#2,3L", "At 09:00 on Monday, the second Friday, and the last Wednesday of the month"),
    ("0 0 1,15 * *", "At 00:00 on days 1 and 15 of the month"),
    ("0 0 1-7 * *", "At 00:00 on days 1 to 7 of the month"),
    ("0 0 */2 * *", "At 00:00 on every 2nd day of the month from day 1"),
    ("0 0 2/3 * *", "At 00:00 on every 3rd day of the month from day 2"),
    ("0 0 */7,L * *", "At 00:00 on days 1, 8, 15, 22, and 29 and the last day of the month"),
    ("0 0 */15 * *", "At 00:00 on days 1, 16, and 31 of the month"),
    ("0 12 L * *", "At 12:00 on the last day of the month"),
    ("0 12 15,L * *", "At 12:00 on day 15 and the last day of the month"),
    ("0 0 13 * 5", "At 00:00 on day 13 of the month or on Friday"),
    ("0 0 */10 * 1", "At 00:00 on Monday, but only on days 1, 11, 21, and 31 of the month"),
    ("0 0 1-7 * */7", "At 00:00 on Sunday, but only on days 1 to 7 of the month"),
    ("0 9 L * 5L", "At 09:00 on the last day of the month or on the last Friday of the month"),
    ("0 0 1-31 * 5", "At 00:00 every day"),
    ("0 0 29 2 *", "At 00:00 on day 29 in February"),
    ("0 9 * */4 *", "At 09:00 every day in January, May, and September"),
    ("0 9 * 6-8 1-5", "At 09:00 on Monday through Friday in June through August"),
    ("0 9 * 3 0#2", "At 09:00 on the second Sunday in March"),
    ("0 9 15 6 1", "At 09:00 on day 15 or on Monday, in June"),
    ("0 */2 * 6 *", "Every 2 hours every day in June"),
    ("@hourly", "Every hour"),
    ("@daily", "At 00:00 every day"),
    ("@weekly", "At 00:00 on Sunday"),
    ("@monthly", "At 00:00 on day 1 of the month"),
    ("@yearly", "At 00:00 on day 1 in January"),
]


@pytest.mark.parametrize(("expression", "sentence"), SENTENCES)
def test_a_cron_reads_as_what_it_does(expression: str, sentence: str) -> None:
    assert describe(Timing.of(expression, "America/New_York")) == f"{sentence}, New York time"


@pytest.mark.parametrize(
    ("time_zone", "place"),
    [
        ("UTC", "UTC"),
        ("Etc/UTC", "UTC"),
        ("Etc/GMT", "UTC"),
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
        ("@every 36h", 3600, "Every 36 hours, shifted by 1 hour"),
        ("@every 90s", 15, "Every 90 seconds, shifted by 15 seconds"),
    ],
)
def test_an_interval_reads_in_its_largest_unit(expression: str, phase: int, sentence: str) -> None:
    assert describe(Timing.of(expression, "Asia/Tokyo", phase=timedelta(seconds=phase))) == sentence


def test_without_words_the_expression_speaks_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(words, "ExpressionDescriptor", fail)
    assert describe(Timing.of("59 4 3 * *", "Asia/Tokyo")) == "On the schedule 59 4 3 * *, Tokyo time"
