"""Schedules: when a flow is due (`Cron`, or an interval), and the flow that starts it then.

A schedule is one instance of `schedule_flow`, whose id is the schedule's. So what an engine has to do is little: every
engine that executes registers `schedule_flow`; `Engine.schedule` is `set_schedule`, `Engine.unschedule` is
`remove_schedule`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, Final, Protocol, Self, final
from zoneinfo import ZoneInfo

from perdure.api.current import current, logger
from perdure.api.flow import flow, name_of, unwrap
from perdure.api.handle import Handle
from perdure.api.messages import receive
from perdure.api.step import capture
from perdure.api.timing import now
from perdure.api.verbs import continue_as_new, start
from perdure.clock import Duration, seconds
from perdure.codec import type_name
from perdure.errors import AlreadyStarted, InstanceNotFound, Outdated
from perdure.model.retry import Retry

# ---------------------------------------------------------------- when

LONGEST_EXPRESSION: Final = 200

_ALIASES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS: Final = {
    "second": "0-59",
    "minute": "0-59",
    "hour": "0-23",
    "day-of-month": "1-31, L (the last) or LW (the last from Monday to Friday)",
    "month": "1-12 or JAN-DEC",
    "day-of-week": "0-7 (0 and 7 are Sunday) or SUN-SAT, MON#2 (the second Monday), 5L (the last Friday)",
}
_ANY_TIME: Final = datetime(2000, 1, 1)  # noqa: DTZ001  a wall clock's


@final
class Cron:
    """Times by the wall clock of a zone, as cron writes them: `Cron("30 2 * * MON-FRI", tz=ZoneInfo("Europe/Oslo"))`.

    Five fields: minute, hour, day of the month, month, day of the week; with six the first is the second. Or one of
    @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually. As in Debian's cron, a day fits if the day of
    the month *or* the day of the week does; only if one of these two fields begins with `*` must both fit.

    When the clocks change:

    - If neither the minute nor the hour begins with `*`, every time comes exactly once. One in the hour that is left
      out comes right after it (several of them together), one in the hour that is repeated comes the first time.
    - Else the times are those at which the clock shows what fits: none in the hour that is left out, and those in the
      hour that is repeated twice. So `*/30 * * * *` is every half hour, always.

    Args:
        expression: at most 200 characters.
        tz: whose wall clock: a `zoneinfo.ZoneInfo` made from a key, or a `datetime.timezone`; None is UTC.

    Raises:
        ValueError: the expression is none, or its time never comes; the message says what is wrong.
    """

    __slots__ = ("_at_fixed_times", "_text", "_zone", "expression", "tz")

    def __init__(self, expression: str, /, *, tz: tzinfo | None = None) -> None:
        if len(expression) > LONGEST_EXPRESSION:
            raise ValueError(
                f"a cron expression has at most {LONGEST_EXPRESSION} characters, not {len(expression):,}: {expression[:40]!r}…"
            )
        self.tz: Final[tzinfo] = UTC if tz is None else tz
        self.expression: Final = " ".join(expression.split())
        self._zone: Final = _plain_zone(self.tz)
        self._text: Final = _checked(self.expression)
        minute, hour = self._text.split()[-5:-3]
        self._at_fixed_times: Final = not minute.startswith("*") and not hour.startswith("*")

    def next_after(self, instant: datetime, /) -> datetime:
        """The first time strictly later than the (aware) instant, in UTC.

        Raises:
            ValueError: the instant has no time zone.
            OverflowError: there is none that a datetime can say.
        """
        if instant.tzinfo is None:
            raise ValueError(f"{instant!r} has no time zone; use an aware datetime, e.g. datetime.now(UTC)")
        try:
            after = instant.astimezone(UTC)
            local = after.astimezone(self.tz)
            found = self._next(local.replace(tzinfo=None), after)
            again = local.replace(fold=1).astimezone(UTC)
            if again > after and not self._at_fixed_times:  # this hour comes once more, from its beginning
                found = min(found, self._next(self._just_before(_change(self.tz, after, again)), after))
        except (OverflowError, ValueError):
            raise OverflowError(f"{self!r} does not come between {instant} and the year 10000") from None
        return found

    def _next(self, wall: datetime, after: datetime) -> datetime:
        """The first time later than `after`, of those that the wall clock shows later than `wall`."""
        from cronsim import CronSim  # a program without schedules does without

        for shown in CronSim(self._text, wall):  # without a zone: what fits, whatever the clocks do
            first = shown.replace(tzinfo=self.tz, fold=0).astimezone(UTC)
            second = shown.replace(tzinfo=self.tz, fold=1).astimezone(UTC)
            if first > second:  # the clock never shows it
                change = _change(self.tz, second, first)
                if not self._at_fixed_times:
                    return self._next(self._just_before(change), after)
                first = change
            if first > after:
                return first
            if second > after and not self._at_fixed_times:
                return second
        raise OverflowError

    def _just_before(self, instant: datetime) -> datetime:
        """What to look on from on the wall clock, so that the instant itself may be found."""
        return instant.astimezone(self.tz).replace(tzinfo=None) - timedelta(seconds=1)

    def plain(self) -> tuple[str, str | float]:
        """Itself as plain data: the five or six fields, and the zone's key or its offset in seconds."""
        return self._text, self._zone

    @classmethod
    def of(cls, plain: tuple[str, str | float], /) -> Self:
        """The equal of the one that gave this plain data.

        Raises:
            zoneinfo.ZoneInfoNotFoundError: this machine does not know the zone.
        """
        text, zone = plain
        return cls(text, tz=ZoneInfo(zone) if isinstance(zone, str) else timezone(timedelta(seconds=zone)))

    def __eq__(self, other: object) -> bool:
        return self.plain() == other.plain() if isinstance(other, Cron) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.plain())

    def __repr__(self) -> str:
        return f"Cron({self.expression!r})" if self._zone == 0.0 else f"Cron({self.expression!r}, tz={self.tz!r})"


def _plain_zone(tz: tzinfo) -> str | float:
    if isinstance(tz, timezone):
        return tz.utcoffset(None).total_seconds()
    if not isinstance(tz, ZoneInfo):
        raise TypeError(f"tz={tz!r} is no zone that can be stored; use zoneinfo.ZoneInfo(key) or datetime.timezone")
    if not tz.key:
        raise ValueError(f"tz={tz!r} has no key by which it could be found again; make it by zoneinfo.ZoneInfo(key)")
    return tz.key


def _checked(expression: str) -> str:
    """The expression as fields, when nothing is wrong with it."""
    from cronsim import CronSim, CronSimError

    text = _ALIASES.get(expression.lower(), expression).upper()
    fields = text.split()
    if text.startswith("@"):
        raise ValueError(f"cron expression {expression!r}: there is no such name; there are {', '.join(_ALIASES)}")
    if len(fields) not in (5, 6):
        raise ValueError(
            f"cron expression {expression!r} has {len(fields)} fields; it needs 5 ({', '.join([*_FIELDS][1:])}), "
            "or 6 with the second first"
        )
    for name, field in zip(reversed(_FIELDS), reversed(fields), strict=False):
        alone = " ".join(field if name == other else "*" for other in _FIELDS)
        try:
            CronSim(alone, _ANY_TIME)
        except CronSimError:
            raise ValueError(
                f"cron expression {expression!r}: {field!r} is no {name}; possible are {_FIELDS[name]}, "
                "and * (any), lists (1,2), ranges (1-5), steps (*/10) of these"
            ) from None
    try:
        next(CronSim(text, _ANY_TIME))
    except (CronSimError, StopIteration):
        raise ValueError(f"cron expression {expression!r} never comes: there is no such day") from None
    return text


def _change(tz: tzinfo, before: datetime, after: datetime) -> datetime:
    """The instant in (before, after] from which on the zone's clocks show another time, all in UTC."""
    offset = before.astimezone(tz).utcoffset()
    while after - before > timedelta.resolution:
        middle = before + (after - before) / 2
        if middle.astimezone(tz).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after


# ---------------------------------------------------------------- the flow

SCHEDULE: Final = "perdure.schedule"
"""The flow's registered name."""
TURNS: Final = 100
"""So many starts and changes make a run; then the next one begins, with an empty journal."""

LONGEST_INTERVAL: Final = 36525 * 86400.0
PAUSE: Final = timedelta(minutes=1)
"""After it a plan that cannot be read here is tried again: its zone may be known by then, or to another replica."""

When = tuple[str, str | float] | float
"""`Cron.plain()`, or an interval in seconds."""

_NO_RETRY: Final = Retry(attempts=1)
_MARK: Final = "@%Y-%m-%dT%H:%M:%SZ"
_LONGEST_ID: Final = 255 - len("@2000-01-01T00:00:00Z")


@type_name("perdure.Plan")
@dataclass(frozen=True)
class Plan:
    """What is started, and when."""

    flow: str
    args: tuple[Any, ...]
    when: When
    since: datetime
    """When it was set: times are counted from then."""


@flow(name=SCHEDULE)
async def schedule_flow(plan: Plan, due: datetime | None = None) -> None:
    """The plan's flow is started at each due time, until this instance is deleted. A `Plan` as a message replaces it.

    Each due time is an instance of its own, `<id of the schedule>@<the time in UTC>`: whatever dies meanwhile, there is
    one. Of the times that passed while nobody ran, the latest is made up for.
    """
    pause = timedelta(0)
    for _ in range(TURNS):
        wait = pause if due is None else max(pause, due - now())
        change = await receive(Plan, timeout=wait, default=None)
        pause = timedelta(0)
        if change is not None:
            if change.when == plan.when:  # said again, as at every start of a program
                change = replace(change, since=plan.since)
            else:
                due = None
            plan = change
            continue
        try:
            last, due = await _look(plan.when, plan.since, due)
        except Exception as error:  # a plan that replaces this one must be heard
            logger.warning("schedule %s: %r cannot be read here, tried again: %r", current().id, plan.when, error)
            pause = PAUSE
            continue
        if last is not None:
            await start(plan.flow, *plan.args, id=current().id + last.strftime(_MARK), detached=True)
    await continue_as_new(plan, due)


async def _look(when: When, since: datetime, due: datetime | None) -> tuple[datetime | None, datetime]:
    """See `_passed`; a step, as what is known of a zone changes."""
    return await capture(_passed, when, since, due, now(), name="due", retry=_NO_RETRY)


def _passed(when: When, since: datetime, due: datetime | None, until: datetime) -> tuple[datetime | None, datetime]:
    """The last due time up to `until` if `due` has come (None: there was none yet), and the first one after that.

    By halves, as there may be millions.
    """
    next_after = Cron.of(when).next_after if isinstance(when, tuple) else _every(timedelta(seconds=when), since)
    if due is None and (due := next_after(since)) > until:
        return None, due
    until = max(due, until)
    while (following := next_after(due)) <= until:
        middle = following + (until - following) / 2
        later = next_after(middle)
        if later <= until:
            due = later
        else:
            due, until = following, middle
    return due, following


def _every(interval: timedelta, since: datetime) -> Callable[[datetime], datetime]:
    """What `Cron.next_after` is, for times that are so far apart."""
    return lambda instant: since + ((instant - since) // interval + 1) * interval


# ---------------------------------------------------------------- for an engine


class Scheduling(Protocol):
    """What `set_schedule` and `remove_schedule` need of an engine."""

    async def start(self, flow: str, /, *args: object, id: str, queue: str | None = None) -> Handle[Any]: ...
    async def send(self, flow: str, id: str, message: object, /) -> None: ...
    async def delete(self, flow: str, id: str, /) -> None: ...
    async def goes_on(self, flow: str, id: str, queue: str) -> bool: ...


async def set_schedule(
    engine: Scheduling, flow: Any, when: Cron | Duration, args: tuple[Any, ...], id: str, queue: str | None, at: datetime
) -> None:  # fmt: skip
    """The flow is started at each due time, with these arguments, by whichever replica lives. On disk.

    The same schedule again changes nothing. Another one under the same id replaces it: times are counted anew if
    `when` is another, and what was started goes on.

    Args:
        when: a `Cron`, or an interval of at least a second: then the first start is one interval from `at`.
        id: of the schedule, at most 234 bytes; each instance that it starts is `<id>@<due time in UTC>`.
        queue: of the schedule and, as they are started in it, of its instances: one that nobody serves would keep both
            waiting alike. To move a schedule to another queue it is removed and set anew.

    Raises:
        ValueError, TypeError: the interval, id or arguments do not fit.
        NotEncodable, PayloadTooLarge: the arguments cannot be kept.
    """
    if len(id.encode(errors="replace")) > _LONGEST_ID:
        raise ValueError(
            f"the id of a schedule has at most {_LONGEST_ID} bytes in UTF-8, since each start adds its time: {id[:40]!r}…"
        )
    function, positional = unwrap(flow, args)
    plan = Plan(name_of(function), positional, _plain(when), at.replace(microsecond=0))
    while True:
        try:
            await engine.start(SCHEDULE, plan, id=id, queue=queue)
        except AlreadyStarted:
            pass
        # It may have been there, with these first arguments and another plan since: only a message says what holds now.
        await engine.send(SCHEDULE, id, plan)
        try:
            if await engine.goes_on(SCHEDULE, id, queue or ""):
                return
        except InstanceNotFound:
            pass  # its tombstone is there
        await remove_schedule(engine, id)  # somebody cancelled it, or it was on another queue


async def remove_schedule(engine: Scheduling, id: str) -> None:
    """There is no schedule of this id (any more), and nothing is started by it; what was started goes on."""
    while True:
        try:
            return await engine.delete(SCHEDULE, id)
        except InstanceNotFound:
            return None
        except Outdated:  # its next run began just then
            continue


def _plain(when: Cron | Duration) -> When:
    if isinstance(when, Cron):
        return when.plain()
    interval = seconds(when)
    if not 1 <= interval <= LONGEST_INTERVAL:  # nor is it "not a number"
        raise ValueError(f"a schedule's interval is at least a second and at most a century, not {when!r}")
    return interval
