"""What is read, what is refused, and with which words."""

# ruff: noqa: DTZ001 - local times are naive here

from __future__ import annotations

import re
from datetime import datetime, timedelta

import pytest

from scheduler_service.domain.timing import Cron, Every, TimingError, parse
from scheduler_service.domain.timing.stepping import LocalSteps

ALL = {
    "minutes": tuple(range(60)),
    "hours": tuple(range(24)),
    "days": tuple(range(1, 32)),
    "months": tuple(range(1, 13)),
    "weekdays": tuple(range(7)),
}


def cron(expression: str) -> Cron:
    rule = parse(expression)
    assert isinstance(rule, Cron)
    return rule


@pytest.mark.parametrize(
    ("expression", "field", "values"),
    [
        ("*/20 * * * *", "minutes", (0, 20, 40)),
        ("*/90 * * * *", "minutes", (0,)),
        ("5/15 * * * *", "minutes", (5, 20, 35, 50)),
        ("10-20/5,7 * * * *", "minutes", (7, 10, 15, 20)),
        ("05 * * * *", "minutes", (5,)),
        ("0 9-9 * * *", "hours", (9,)),
        ("0 0/12 * * *", "hours", (0, 12)),
        ("45 23-23/24 * * *", "hours", (23,)),
        ("0 22-23,0-2 * * *", "hours", (0, 1, 2, 22, 23)),
        ("0 0 5/10 * *", "days", (5, 15, 25)),
        ("0 0 * JAN,mar-may *", "months", (1, 3, 4, 5)),
        ("0 0 * 10/2 *", "months", (10, 12)),
        ("0 0 * * 7", "weekdays", (0,)),
        ("0 0 * * 5-7", "weekdays", (0, 5, 6)),
        ("0 0 * * mon-Fri", "weekdays", (1, 2, 3, 4, 5)),
        ("0 0 * * */2", "weekdays", (0, 2, 4, 6)),
        ("0 0 * * 1-5/2", "weekdays", (1, 3, 5)),
        ("\t0  0 * * sun ", "weekdays", (0,)),
    ],
)
def test_fields_are_read(expression: str, field: str, values: tuple[int, ...]) -> None:
    assert getattr(cron(expression), field) == values


@pytest.mark.parametrize("field", list(ALL))
def test_a_star_is_the_whole_field(field: str) -> None:
    assert getattr(cron("* * * * *"), field) == ALL[field]


def test_last_and_numbered_weekdays_are_read() -> None:
    rule = cron("0 0 15,L * 1#2,friL,sun#5,7l,3")
    assert (rule.days, rule.last_day) == ((15,), True)
    assert rule.nth_weekdays == ((0, 5), (1, 2))
    assert rule.last_weekdays == (0, 5)
    assert rule.weekdays == (3,)


def test_only_a_field_that_starts_with_a_star_is_a_star_field() -> None:
    rule = cron("*/5 0-23 *,1 * 1,*")
    assert (rule.minute_star, rule.hour_star, rule.day_star, rule.weekday_star) == (True, False, True, False)


@pytest.mark.parametrize(
    ("expression", "forms"),
    [
        ("0 9-9 * * *", ("0 9 * * *",)),
        ("0 0 13 * 5", ("0 0 13 * *", "0 0 * * 5")),
        ("0 0 */10 * 1", ("0 0 1,11,21,31 * 1",)),
        ("0 9 * * 1,5#2,3L", ("0 9 * * 1", "0 9 * * 5#2,l3")),
        ("0 9 15 * 1#2", ("0 9 15 * *", "0 9 * * 1#2")),
        ("0 9 30 2 1", ("0 9 * 2 1",)),
        ("0 12 L * *", ("0 12 l * *",)),
        ("0 0 1-31 * 5", ("0 0 * * *", "0 0 * * 5")),
    ],
)
def test_croniter_is_handed_plain_lists_in_which_all_fields_hold(expression: str, forms: tuple[str, ...]) -> None:
    assert cron(expression).forms == forms


@pytest.mark.parametrize(
    ("shortcut", "meaning"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@Midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
    ],
)
def test_shortcuts_mean_their_five_fields(shortcut: str, meaning: str) -> None:
    assert cron(shortcut).forms == cron(meaning).forms
    assert cron(shortcut).text == shortcut


@pytest.mark.parametrize(
    ("expression", "period"),
    [
        ("@every 90s", timedelta(seconds=90)),
        ("@every 1h30m", timedelta(minutes=90)),
        ("@EVERY 2D", timedelta(days=2)),
        ("@every 1d2h3m4s", timedelta(days=1, hours=2, minutes=3, seconds=4)),
        ("@every 366d", timedelta(days=366)),
        ("@every 1s", timedelta(seconds=1)),
    ],
)
def test_intervals_are_read(expression: str, period: timedelta) -> None:
    rule = parse(expression)
    assert isinstance(rule, Every)
    assert rule.period == period


REFUSED = [
    ("0 22-2 * * *", "hour: the range 22-2 wraps around; write 22-23,0-2 instead"),
    ("0 22-0 * * *", "hour: the range 22-0 wraps around; write 22-23,0 instead"),
    ("0 23-1 * * *", "hour: the range 23-1 wraps around; write 23,0-1 instead"),
    ("0 22-3/2 * * *", "hour: the range 22-3 wraps around; write 0,2,22 instead"),
    ("0 0 * * fri-mon", "day of week: the range fri-mon wraps around; write fri-sat,sun-mon instead"),
    ("0 0 * * fri-sun", "day of week: the range fri-sun wraps around; write 5-7 instead"),
    ("0 0 * * 7-2", "day of week: the range 7-2 wraps around; write 0-2 instead"),
    ("0 0 * nov-feb *", "month: the range nov-feb wraps around; write nov-dec,jan-feb instead"),
    ("60 * * * *", "minute: 60 is not between 0 and 59; write a number from 0 to 59 instead"),
    ("0 24 * * *", "hour: 24 is not between 0 and 23; write 0 for midnight instead"),
    ("0 0 0 * *", "day of month: 0 is not between 1 and 31; write a number from 1 to 31 instead"),
    ("0 0 * 13 *", "month: 13 is not between 1 and 12; write a number from 1 to 12 instead"),
    ("0 0 * * 8", "day of week: 8 is not between 0 and 7; write a number from 0 to 7 instead"),
    ("*/0 * * * *", "minute: the step of */0 is 0; write a step of at least 1 instead"),
    (
        "*/x * * * *",
        "minute: the step of */x is not a number; write one whole number after the /, as in */5",
    ),
    ("0 9 * * 1/2", "day of week: programs disagree on what 1/2 means; write the days themselves: 1,3,5"),
    ("0 9 ? * 1", "day of month: ? is not read; write * instead"),
    (
        "H 9 * * *",
        "minute: H (a hashed or random value) is not read; "
        "write a fixed value such as 1, and give the schedule a jitter to spread its load",
    ),
    (
        "0 R(0-5) * * *",
        "hour: R (a hashed or random value) is not read; "
        "write a fixed value such as 1, and give the schedule a jitter to spread its load",
    ),
    (
        "0 9 15W * *",
        "day of month: 15W (the nearest weekday) is not read; "
        "write the day itself (15), or a weekday of the month such as 1#1 or 5L, instead",
    ),
    (
        "0 9 LW * *",
        "day of month: LW (the nearest weekday) is not read; "
        "write the day itself (L), or a weekday of the month such as 1#1 or 5L, instead",
    ),
    (
        "0 9 L-3 * *",
        "day of month: L-3 is not read, only L alone; write L for the last day of the month instead",
    ),
    ("0 9 * * L5", "day of week: L5 is not read; write 5L instead"),
    ("0 9 * * friL/2", "day of week: friL/2 is not read; write friL instead"),
    ("*5 * * * *", "minute: *5 is not read; write */5 for a step, or 5 for one value, instead"),
    ("0 1/2/3 * * *", "hour: the step of 1/2/3 is not a number; write one whole number after the /, as in */5"),
    ("0 *-5 * * *", "hour: * is not a number; write a number from 0 to 23 instead"),
    (
        "0 9 * * L",
        "day of week: L does not say which weekday; write 6 for Saturday, or 5L for the last Friday",
    ),
    (
        "L 9 * * *",
        "minute: L is not read in this field; write L as a day of the month, or 5L as a day of week",
    ),
    (
        "0 9 * * 1#6",
        "day of week: 1#6 does not name the first to fifth weekday of a month; "
        "write 1#1 to 1#5, or 1L for the last, instead",
    ),
    (
        "0 9 * * 1-5#2",
        "day of week: 1-5#2 is not one weekday and its number in the month; "
        "write each weekday alone, as in 1#2,2#2, instead",
    ),
    (
        "0 9 1#2 * *",
        "day of month: # belongs to the day of week; write it in the fifth field, as in 1#2, instead",
    ),
    ("0 9 * * monday", "day of week: monday is not a name that is read; write mon instead"),
    ("0 9 * March *", "month: March is not a name that is read; write mar instead"),
    (
        "0 9 * * xyz",
        "day of week: xyz is not a number; write a number from 0 to 7, or one of sun mon tue wed thu fri sat, instead",
    ),
    ("a 9 * * *", "minute: a is not a number; write a number from 0 to 59 instead"),
    ("-5 9 * * *", "minute: a number is missing; write a range such as 1-3 instead"),
    (
        "1,,2 9 * * *",
        "minute: the list has an empty entry; remove the comma that has nothing beside it",
    ),
    (
        "0 0 9 * * *",
        "expression: it has 6 fields, and neither seconds nor years are read; "
        "write five fields (minute hour day-of-month month day-of-week), or @every 10s, instead",
    ),
    (
        "9",
        "expression: it has 1 field; write five fields (minute hour day-of-month month day-of-week), such as 0 9 * * 1",
    ),
    ("", "expression: it is empty; write five fields such as 0 9 * * 1, or @every 90s"),
    ("0 9 * * *\n", "expression: it contains '\\n'; write ASCII letters, digits and blanks only"),
    ("\uff10 9 * * *", "expression: it contains '\\uff10'; write ASCII letters, digits and blanks only"),
    (
        "@reboot",
        "expression: @reboot has no instant that could be owed; "
        "let the service trigger the job when it starts, or write @every with an interval, instead",
    ),
    ("TZ=Asia/Tokyo 0 9 * * *", "expression: TZ=Asia/Tokyo is not read; write the zone in time_zone instead"),
    ("@every1h", "expression: @every1h is not known; write @every 1h instead"),
    ("@dayly", "expression: @dayly is not known; write @daily, or five fields, instead"),
    ("@daily 5", "expression: @daily 5 is not known; write @daily, or five fields, instead"),
    (
        "@every 1.5h",
        "interval: 1.5h is not a length of time; "
        "write whole numbers with d, h, m or s, in that order, such as 90s or 1h30m",
    ),
    (
        "@every",
        "interval: nothing is not a length of time; "
        "write whole numbers with d, h, m or s, in that order, such as 90s or 1h30m",
    ),
    ("@every 0s", "interval: 0s is shorter than a second; write 1s or more instead"),
    ("@every 367d", "interval: 367d is longer than 366 days; write 366d or less instead"),
    (
        "0 0 30 2 *",
        "day of month: the date of 0 0 30 2 * never comes: none of these months has that day; "
        "for a job that runs only by hand, declare it without a schedule and trigger it",
    ),
    (
        "0 0 */29 2 1#5",
        "day of week: the date of 0 0 */29 2 1#5 never comes: no month has these days on these weekdays; "
        "for a job that runs only by hand, declare it without a schedule and trigger it",
    ),
]


@pytest.mark.parametrize(("expression", "sentence"), REFUSED)
def test_refusals_say_what_is_wrong_and_what_to_write_instead(expression: str, sentence: str) -> None:
    with pytest.raises(TimingError) as refused:
        parse(expression)
    error = refused.value
    assert str(error) == sentence == f"{error.part}: {error.problem}; {error.instead}"


@pytest.mark.parametrize(("place", "low", "high"), [(0, 0, 59), (1, 0, 23), (2, 1, 31), (3, 1, 12), (4, 0, 7)])
@pytest.mark.parametrize("step", [1, 3])
def test_a_wrapped_range_is_refused_with_the_list_that_means_the_same(
    place: int, low: int, high: int, step: int
) -> None:
    round_the_clock = [*range(low, 7 if place == 4 else high + 1)] * 2
    for first in range(low + 1, high + 1):
        for last in range(low, first):
            fields = ["0", "0", "*", "*", "*"]
            fields[place] = f"{first}-{last}/{step}"
            with pytest.raises(TimingError) as refused:
                parse(" ".join(fields))
            instead = re.fullmatch(r"write (\S+) instead", refused.value.instead)
            assert instead is not None
            start, size = (first % 7 if place == 4 else first) - low, len(round_the_clock) // 2
            meant = {round_the_clock[start + n] for n in range(0, (last - first) % size + 1, step)}
            fields[place] = instead[1]
            assert set(getattr(cron(" ".join(fields)), list(ALL)[place])) == meant, fields


@pytest.mark.parametrize("expression", ["0 0 31 2,4,6,9,11 *", "0 0 30-31 2 *", "0 0 */30 2 1#2"])
def test_dates_that_never_come_are_refused(expression: str) -> None:
    with pytest.raises(TimingError, match="never comes"):
        parse(expression)


@pytest.mark.parametrize("expression", ["0 0 30 2 1", "0 0 29 2 *", "0 0 29 2 */7", "0 0 */14 2 1#5"])
def test_dates_that_come_seldom_are_read(expression: str) -> None:
    assert LocalSteps(cron(expression).forms).first_from(datetime(2089, 1, 1)) is not None


def test_256_bytes_are_read_and_257_are_not() -> None:
    longest = "0 0 * * 1".ljust(256)
    assert cron(longest).weekdays == (1,)
    with pytest.raises(TimingError, match="longer than 256 bytes"):
        parse(longest + " ")
