"""Cron: what an expression may be, and when it comes, also where the clocks change."""

from __future__ import annotations

import os
import zoneinfo
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from itertools import islice, pairwise, takewhile
from typing import Any

import pytest
from cronsim import CronSim
from hypothesis import example, given, settings
from hypothesis import strategies as st

from perdure import codec
from perdure.api.schedule import Cron

COPENHAGEN = zoneinfo.ZoneInfo("Europe/Copenhagen")
NEW_YORK = zoneinfo.ZoneInfo("America/New_York")
LORD_HOWE = zoneinfo.ZoneInfo("Australia/Lord_Howe")  # by half an hour
APIA = zoneinfo.ZoneInfo("Pacific/Apia")  # left out 30 December 2011
ZONES = [COPENHAGEN, NEW_YORK, LORD_HOWE, APIA]


def times(cron: Cron, after: datetime, n: int) -> list[datetime]:
    """The next `n` times, each asked for from the one before."""
    found: list[datetime] = []
    for _ in range(n):
        after = cron.next_after(after)
        found.append(after)
    return found


def shown(cron: Cron, *after: int, n: int) -> list[str]:
    """The next `n` times as the zone's wall clock shows them, with its offset."""
    began = datetime(*after, tzinfo=cron.tz)  # type: ignore[arg-type, misc]
    return [found.astimezone(cron.tz).strftime("%d %H:%M %z") for found in times(cron, began, n)]


# ---------------------------------------------------------------- where the clocks change


@pytest.mark.parametrize(
    ("expression", "tz", "after", "expected"),
    [
        # a fixed time that is left out comes right after the gap
        ("30 2 * * *", COPENHAGEN, (2025, 3, 29, 3), ["30 03:00 +0200", "31 02:30 +0200"]),
        ("30 2 * * *", NEW_YORK, (2025, 3, 8, 3), ["09 03:00 -0400", "10 02:30 -0400"]),
        ("15 2 * * *", LORD_HOWE, (2025, 10, 4, 3), ["05 02:30 +1100", "06 02:15 +1100"]),
        ("0 10 * * *", APIA, (2011, 12, 29, 9), ["29 10:00 -1000", "31 00:00 +1400", "31 10:00 +1400"]),
        # several that are left out come once
        ("0,15,30,45 2 * * *", COPENHAGEN, (2025, 3, 30, 1), ["30 03:00 +0200", "31 02:00 +0200"]),
        ("30 2,3 * * *", COPENHAGEN, (2025, 3, 29, 12), ["30 03:00 +0200", "30 03:30 +0200", "31 02:30 +0200"]),
        ("0 10,20 * * *", APIA, (2011, 12, 29, 21), ["31 00:00 +1400", "31 10:00 +1400"]),
        # a fixed time that is repeated comes once, the first time
        ("30 2 * * *", COPENHAGEN, (2025, 10, 25, 3), ["26 02:30 +0200", "27 02:30 +0100"]),
        ("30 1 * * *", NEW_YORK, (2025, 11, 1, 3), ["02 01:30 -0400", "03 01:30 -0500"]),
        ("45 1 * * *", LORD_HOWE, (2025, 4, 5, 3), ["06 01:45 +1100", "07 01:45 +1030"]),
        ("0 0-4 * * *", COPENHAGEN, (2025, 10, 26, 1), ["26 02:00 +0200", "26 03:00 +0100", "26 04:00 +0100"]),
        # with a star there is none in the gap, and all come twice in the fold
        ("*/30 * * * *", COPENHAGEN, (2025, 3, 30, 1), ["30 01:30 +0100", "30 03:00 +0200", "30 03:30 +0200"]),
        (
            "*/30 * * * *", COPENHAGEN, (2025, 10, 26, 1, 30),
            ["26 02:00 +0200", "26 02:30 +0200", "26 02:00 +0100", "26 02:30 +0100", "26 03:00 +0100"],
        ),
        ("0 * * * *", NEW_YORK, (2025, 11, 2, 0), ["02 01:00 -0400", "02 01:00 -0500", "02 02:00 -0500"]),
        ("*/30 2 * * *", COPENHAGEN, (2025, 3, 29, 2, 30), ["31 02:00 +0200", "31 02:30 +0200"]),
        (
            "*/15 * * * *", LORD_HOWE, (2025, 4, 6, 1, 15),
            ["06 01:30 +1100", "06 01:45 +1100", "06 01:30 +1030", "06 01:45 +1030", "06 02:00 +1030"],
        ),
        ("*/15 3 * * *", LORD_HOWE, (2025, 4, 6, 1, 45), ["06 03:00 +1030", "06 03:15 +1030"]),
        ("*/15 * * * *", LORD_HOWE, (2025, 10, 5, 1, 30), ["05 01:45 +1030", "05 02:30 +1100", "05 02:45 +1100"]),
        ("*/30 * * * *", APIA, (2011, 12, 29, 23), ["29 23:30 -1000", "31 00:00 +1400", "31 00:30 +1400"]),
        ("@hourly", COPENHAGEN, (2025, 10, 26, 1), ["26 02:00 +0200", "26 02:00 +0100", "26 03:00 +0100"]),
        ("@daily", APIA, (2011, 12, 29, 12), ["31 00:00 +1400", "01 00:00 +1400"]),
        # with seconds the rule is the same
        ("0 30 2 * * *", COPENHAGEN, (2025, 3, 29, 3), ["30 03:00 +0200", "31 02:30 +0200"]),
        ("0 30 2 * * *", COPENHAGEN, (2025, 10, 25, 3), ["26 02:30 +0200", "27 02:30 +0100"]),
        ("*/20 30 2 * * *", COPENHAGEN, (2025, 3, 30, 1), ["30 03:00 +0200", "31 02:30 +0200"]),
        ("* * * * * *", APIA, (2011, 12, 29, 23, 59, 59), ["31 00:00 +1400"]),
    ],
)  # fmt: skip
def test_where_the_clocks_change(expression: str, tz: tzinfo, after: tuple[int, ...], expected: list[str]) -> None:
    assert shown(Cron(expression, tz=tz), *after, n=len(expected)) == expected


@pytest.mark.parametrize("minute", [0, 30, 59])
def test_from_within_the_repeated_hour_a_fixed_time_is_past_the_second_time(minute: int) -> None:
    cron = Cron("30 2 * * *", tz=COPENHAGEN)
    second = datetime(2025, 10, 26, 2, minute, fold=1, tzinfo=COPENHAGEN)
    assert cron.next_after(second) == datetime(2025, 10, 27, 2, 30, tzinfo=COPENHAGEN).astimezone(UTC)


# ---------------------------------------------------------------- the rest of the calendar


def test_a_day_fits_by_either_field_but_by_both_where_one_has_a_star() -> None:
    friday_or_13th = Cron("0 0 13 * 5")
    assert shown(friday_or_13th, 2025, 6, 1, n=4) == [f"{day} 00:00 +0000" for day in ("06", "13", "20", "27")]
    assert shown(friday_or_13th, 2025, 7, 11, n=2) == ["13 00:00 +0000", "18 00:00 +0000"]
    friday_of_the_first_week = Cron("0 0 */1 * 5#1")
    assert shown(friday_of_the_first_week, 2025, 6, 1, n=2) == ["06 00:00 +0000", "04 00:00 +0000"]


def test_with_six_fields_seconds_come_first() -> None:
    first, second = times(Cron("15 0 12 * * *"), datetime(2025, 6, 1, tzinfo=UTC), 2)
    assert first == datetime(2025, 6, 1, 12, 0, 15, tzinfo=UTC)
    assert second - first == timedelta(days=1)


@pytest.mark.parametrize(
    ("alias", "fields"),
    [
        ("@hourly", "0 * * * *"), ("@daily", "0 0 * * *"), ("@midnight", "0 0 * * *"), ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"), ("@yearly", "0 0 1 1 *"), ("@annually", "0 0 1 1 *"), ("@Daily", "0 0 * * *"),
    ],
)  # fmt: skip
def test_aliases(alias: str, fields: str) -> None:
    assert Cron(alias) == Cron(fields)
    began = datetime(2025, 6, 15, 12, 30, tzinfo=UTC)
    assert times(Cron(alias), began, 5) == list(islice(CronSim(fields, began), 5))


def test_rare_days_come() -> None:
    assert shown(Cron("0 0 29 2 *"), 2025, 1, 1, n=1) == ["29 00:00 +0000"]
    leap_sunday = Cron("0 0 29 2 */7")
    assert times(leap_sunday, datetime(2089, 1, 1, tzinfo=UTC), 1) == [datetime(2128, 2, 29, tzinfo=UTC)]


def test_the_zone_is_utc_unless_given() -> None:
    began = datetime(2025, 6, 15, 23, tzinfo=UTC)
    assert Cron("0 2 * * *").next_after(began) == datetime(2025, 6, 16, 2, tzinfo=UTC)
    india = timezone(timedelta(hours=5, minutes=30))
    assert Cron("0 2 * * *", tz=india).next_after(began) == datetime(2025, 6, 16, 20, 30, tzinfo=UTC)
    assert Cron("0 2 * * *", tz=india).next_after(began).tzinfo is UTC


def test_it_is_strictly_later_also_by_less_than_a_second() -> None:
    due = datetime(2025, 6, 15, 2, tzinfo=UTC)
    cron = Cron("0 2 * * *")
    assert cron.next_after(due - timedelta.resolution) == due
    assert cron.next_after(due) == due + timedelta(days=1)
    assert cron.next_after(due + timedelta.resolution) == due + timedelta(days=1)


def test_the_instant_may_be_in_any_zone_but_needs_one() -> None:
    cron = Cron("0 2 * * *", tz=COPENHAGEN)
    instant = datetime(2025, 10, 26, 0, 59, tzinfo=UTC)
    assert {cron.next_after(instant.astimezone(zone)) for zone in [UTC, *ZONES]} == {cron.next_after(instant)}
    with pytest.raises(ValueError, match="no time zone"):
        cron.next_after(datetime(2025, 6, 15))  # noqa: DTZ001


@pytest.mark.parametrize("tz", [None, *ZONES])
def test_where_datetimes_end_there_is_none(tz: tzinfo | None) -> None:
    with pytest.raises(OverflowError, match="year 10000"):
        Cron("0 0 1 1 *", tz=tz).next_after(datetime.max.replace(tzinfo=UTC))
    with pytest.raises(OverflowError, match="year 10000"):
        Cron("0 0 29 2 *", tz=tz).next_after(datetime(9999, 1, 1, tzinfo=UTC))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "has 0 fields; it needs 5"),
        ("* * * *", "has 4 fields"),
        ("0 0 0 1 1 * 2025", "has 7 fields"),
        ("R", "has 1 fields"),
        ("@reboot", "there are @hourly, @daily"),
        ("@daily 5", "there is no such name"),
        ("60 * * * *", "'60' is no minute; possible are 0-59"),
        ("* 24 * * *", "'24' is no hour; possible are 0-23"),
        ("60 0 0 * * *", "'60' is no second"),
        ("0 0 0 * *", "'0' is no day-of-month"),
        ("0 0 32 * *", "'32' is no day-of-month"),
        ("0 0 * 13 *", "'13' is no month"),
        ("0 0 * * 8", "'8' is no day-of-week"),
        ("0 0 * * MON#6", "'MON#6' is no day-of-week"),
        ("*/0 * * * *", "'\\*/0' is no minute"),
        ("30-10 * * * *", "'30-10' is no minute"),
        ("1,,2 * * * *", "'1,,2' is no minute"),
        ("-1 * * * *", "'-1' is no minute"),
        ("²  * * * *", "'²' is no minute"),
        ("0 0 31 2 *", "never comes"),
        ("0 0 30,31 2 *", "never comes"),
        ("0 0 31 4,6,9,11 *", "never comes"),
        ("0 0 */20 * MON#5", "never comes"),
        (",".join(["0-59"] * 20_000) + " * * * *", "at most 200 characters, not 100,007"),
    ],
)
def test_what_is_no_expression_is_refused_and_says_why(expression: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Cron(expression)


def test_zones_that_cannot_be_stored_are_refused() -> None:
    with pytest.raises(TypeError, match=r"use zoneinfo\.ZoneInfo"):
        Cron("0 0 * * *", tz=_Other())
    for folder in zoneinfo.TZPATH:
        if os.path.exists(path := os.path.join(folder, "Europe", "Copenhagen")):
            with open(path, "rb") as file, pytest.raises(ValueError, match="has no key"):
                Cron("0 0 * * *", tz=zoneinfo.ZoneInfo.from_file(file))
            return
    pytest.skip("the zones are in no folder")


class _Other(tzinfo):
    """A zone of somebody's own."""


# ---------------------------------------------------------------- as a value


@pytest.mark.parametrize("tz", [None, UTC, zoneinfo.ZoneInfo("UTC"), timezone(timedelta(hours=-3.5)), *ZONES])
def test_it_comes_back_from_plain_data(tz: tzinfo | None) -> None:
    cron = Cron("*/5 2-4 * JAN-MAR sun", tz=tz)
    back = Cron.of(codec.decode(codec.encode(cron.plain())))
    assert back == cron
    assert hash(back) == hash(cron)
    assert back.plain() == cron.plain()
    began = datetime(2025, 1, 1, tzinfo=UTC)
    assert times(back, began, 20) == times(cron, began, 20)


def test_equal_are_those_that_come_at_the_same_times_by_the_same_clock() -> None:
    assert Cron("@daily", tz=COPENHAGEN) == Cron(" 0  0 * * * ", tz=zoneinfo.ZoneInfo.no_cache("Europe/Copenhagen"))
    assert Cron("0 0 * * mon") == Cron("0 0 * * MON", tz=timezone(timedelta(0)))
    assert len({Cron("@daily"), Cron("@midnight"), Cron("0 0 * * *", tz=UTC)}) == 1
    assert Cron("@daily") != Cron("@daily", tz=COPENHAGEN)
    assert Cron("@daily") != Cron("@hourly")
    other: Any = "0 0 * * *"
    assert Cron("0 0 * * *") != other


def test_repr_says_it_as_it_was_written() -> None:
    assert repr(Cron(" @daily")) == "Cron('@daily')"
    assert repr(Cron("0  2 * * mon", tz=COPENHAGEN)) == (
        "Cron('0 2 * * mon', tz=zoneinfo.ZoneInfo(key='Europe/Copenhagen'))"
    )


# ---------------------------------------------------------------- properties

MINUTES = ["0", "30", "59", "15,45", "10-50/20", "*", "*/15", "*/30", "7"]
HOURS = ["0", "1", "2", "3", "23", "1-3", "0,2,22", "*", "*/2", "*/3"]
DAYS = ["*", "*", "1", "L", "13", "*/9", "29-31"]
MONTHS = ["*", "*", "*", "3,10", "APR-DEC/3", "2"]
WEEKDAYS = ["*", "*", "*", "SUN", "MON-FRI", "5L", "0#2"]

clocks = st.tuples(st.sampled_from(MINUTES), st.sampled_from(HOURS)).map(" ".join)
fields = st.tuples(clocks, *map(st.sampled_from, (DAYS, MONTHS, WEEKDAYS))).map(" ".join)
with_seconds = st.tuples(st.sampled_from(["0", "30", "*/20", "59"]), fields).map(" ".join)
zones = st.sampled_from([UTC, *ZONES])

CHANGES = [
    (COPENHAGEN, datetime(2025, 3, 30, 1, tzinfo=UTC)),
    (COPENHAGEN, datetime(2025, 10, 26, 1, tzinfo=UTC)),
    (NEW_YORK, datetime(2025, 3, 9, 7, tzinfo=UTC)),
    (NEW_YORK, datetime(2025, 11, 2, 6, tzinfo=UTC)),
    (LORD_HOWE, datetime(2025, 4, 5, 15, tzinfo=UTC)),
    (LORD_HOWE, datetime(2025, 10, 4, 15, 30, tzinfo=UTC)),
    (APIA, datetime(2011, 12, 30, 10, tzinfo=UTC)),
    (APIA, datetime(2012, 3, 31, 14, tzinfo=UTC)),
]
MINUTE = timedelta(minutes=1)


def instants(around: datetime, days: float) -> st.SearchStrategy[datetime]:
    seconds = int(days * 86_400)
    return st.integers(-seconds, seconds).map(lambda s: around + timedelta(seconds=s))


@settings(deadline=None)
@given(st.one_of(fields, with_seconds), st.sampled_from(CHANGES), st.data())
def test_each_time_is_later_than_the_one_before_and_the_next_after_all_between(
    expression: str, change: tuple[tzinfo, datetime], data: st.DataObject
) -> None:
    tz, around = change
    cron = Cron(expression, tz=tz)
    began = data.draw(instants(around, 2))
    found = times(cron, began, 30)
    assert began < found[0]
    assert all(a < b for a, b in pairwise(found))
    for before, after in pairwise([began, *found]):
        between = data.draw(st.integers(0, int((after - before).total_seconds()) - 1))
        assert cron.next_after(before + timedelta(seconds=between)) == after


@settings(deadline=None)
@given(clocks, st.sampled_from(CHANGES), st.data())
@example("30 2", CHANGES[0], None)
@example("*/30 2", CHANGES[1], None)
def test_it_is_what_looking_at_the_clock_every_minute_finds(
    clock: str, change: tuple[tzinfo, datetime], data: st.DataObject | None
) -> None:
    """A star: whenever the clock shows what fits. Else: when it shows that, or more, for the first time."""
    tz, around = change
    begin = around - timedelta(days=2)
    looks = [begin + MINUTE * i for i in range(4 * 1440)]
    walls = [look.astimezone(tz).replace(tzinfo=None) for look in looks]
    first, last = min(walls), max(walls)
    fitting = set(takewhile(lambda wall: wall <= last, CronSim(f"{clock} * * *", first - MINUTE)))  # whatever clocks do
    if any(field.startswith("*") for field in clock.split()):
        expected = [look for look, wall in zip(looks, walls, strict=True) if wall in fitting]
    else:
        expected, highest = [], first
        for look, wall in zip(looks, walls, strict=True):
            if any(highest < due <= wall for due in fitting):
                expected.append(look)
            highest = max(highest, wall)
    expected = [look for look in expected if look > begin]
    cron = Cron(f"{clock} * * *", tz=tz)
    assert times(cron, begin, len(expected)) == expected
    if data is not None:
        after = data.draw(instants(around, 1))
        assert cron.next_after(after) == next(look for look in [*expected, None] if look is None or look > after)


@settings(deadline=None)
@given(fields, st.sampled_from([COPENHAGEN, NEW_YORK]), st.integers(0, 364))
def test_where_clocks_change_by_an_hour_it_is_cronsim_s_own_rule(expression: str, tz: tzinfo, day: int) -> None:
    began = datetime(2025, 1, 1, 12, tzinfo=tz) + timedelta(days=day)
    theirs = [found.astimezone(UTC) for found in islice(CronSim(expression, began), 40)]
    assert times(Cron(expression, tz=tz), began, 40) == theirs


@settings(deadline=None)
@given(st.text(max_size=30) | st.lists(st.text("0123456789*/-,#LWMONJAUE@", max_size=7), max_size=7).map(" ".join))
def test_any_text_is_an_expression_or_refused_with_its_reason(text: str) -> None:
    began = datetime(2025, 1, 1, tzinfo=UTC)
    try:
        cron = Cron(text)
    except ValueError as refused:
        reason = str(refused)
    else:
        assert cron.next_after(began) > began
        return
    assert "cron expression" in reason
