"""Schedules: each due time is one instance, whoever runs, dies or sleeps meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pytest

from perdure import Cron, Engine, FlowCancelled, NotRegistered, State, capture, flow
from perdure.api import schedule
from perdure.api.schedule import SCHEDULE, Plan
from perdure.model.records import Instance
from perdure.model.writes import Batch
from tests.support.world import World, eventually

COPENHAGEN = ZoneInfo("Europe/Copenhagen")
NIGHTLY = Cron("0 2 * * *")

ran: list[str] = []
"""What the reports' steps were called with, each time."""


@pytest.fixture(autouse=True)
def _nothing_ran() -> Iterator[None]:
    ran.clear()
    yield
    ran.clear()


@flow(name="report")
async def report(what: str = "all") -> None:
    await capture(ran.append, what)


def at(text: str) -> datetime:
    """The instant in UTC; without a year it is in 2025."""
    return datetime.fromisoformat(text if text[4] == "-" else f"2025-{text}").replace(tzinfo=UTC)


def go_to(world: World, text: str) -> None:
    """It is this time (a moment later, so that no rounding of floats can tell)."""
    world.clock.advance(at(text).timestamp() + 0.001 - world.clock.wall())


async def waits_for(world: World, engine: Engine, text: str, id: str = "s") -> Instance:
    """The schedule has nothing else to do than to wait for this time."""
    expected = at(text).timestamp()
    return await eventually(
        lambda: world.row(engine.handle(SCHEDULE, id)),
        lambda row: (
            row.due_at is not None
            and abs(row.due_at - expected) < 0.01
            and (row.waiting or row.state is State.SUSPENDED)
        ),
    )


async def come_and_go(world: World, engine: Engine, *texts: str, id: str = "s") -> None:
    """These are the next due times, one by one, and they have come."""
    for text in texts:
        await waits_for(world, engine, text, id)
        go_to(world, text)


async def started(engine: Engine) -> list[str]:
    """The ids of all instances that schedules have started, when those have ended."""
    infos = [info async for info in engine.find() if info.flow != SCHEDULE]
    for info in infos:
        await engine.handle(info.flow, info.id).result(timeout=10)
    return sorted(info.id for info in infos)


# ---------------------------------------------------------------- each due time once


@pytest.mark.fault(53)
@pytest.mark.peer(7)
@pytest.mark.parametrize("unload", [False, True])
async def test_each_due_time_is_one_instance_however_many_engines_there_are(world: World, unload: bool) -> None:
    options = {"max_resident": 0} if unload else {}
    engines = [await world.engine(report, **options) for _ in range(3)]
    go_to(world, "06-20 12:00:00")
    await asyncio.gather(*(engine.schedule(report, NIGHTLY, "x", id="s") for engine in engines))
    days = ["06-21 02:00:00", "06-22 02:00:00", "06-23 02:00:00", "06-24 02:00:00"]
    await come_and_go(world, engines[1], *days)
    await waits_for(world, engines[2], "06-25 02:00:00")
    assert await started(engines[0]) == [f"s@2025-06-{day}T02:00:00Z" for day in (21, 22, 23, 24)]
    assert ran == ["x"] * 4


@pytest.mark.parametrize("end", ["closed", "killed"])
async def test_after_a_week_without_engines_the_latest_due_time_is_made_up_for(world: World, end: str) -> None:
    engine = await world.engine(report)
    go_to(world, "06-20 12:00:00")
    await engine.schedule(report, NIGHTLY, id="s")
    await come_and_go(world, engine, "06-21 02:00:00")
    await waits_for(world, engine, "06-22 02:00:00")
    assert await started(engine) == ["s@2025-06-21T02:00:00Z"]
    await (world.close(engine) if end == "closed" else world.crash(engine))
    go_to(world, "06-28 12:00:00")
    engine = await world.engine(report)
    await waits_for(world, engine, "06-29 02:00:00")
    assert await started(engine) == ["s@2025-06-21T02:00:00Z", "s@2025-06-28T02:00:00Z"]
    assert len(ran) == 2


@pytest.mark.fault(34)
@pytest.mark.peer(21)
async def test_after_a_year_of_every_second_it_goes_on_at_once(world: World) -> None:
    engine = await world.engine(report)
    go_to(world, "06-20 12:00:00")
    await engine.schedule(report, Cron("*/2 * * * * *", tz=COPENHAGEN), id="s")
    await engine.schedule(report, 3, id="i")
    await waits_for(world, engine, "06-20 12:00:02")
    await waits_for(world, engine, "06-20 12:00:03", "i")
    await world.close(engine)
    go_to(world, "2026-06-20 12:00:01")
    engine = await world.engine(report)
    await waits_for(world, engine, "2026-06-20 12:00:02")
    await waits_for(world, engine, "2026-06-20 12:00:03", "i")
    assert await started(engine) == ["i@2026-06-20T12:00:00Z", "s@2026-06-20T12:00:00Z"]


class Stop:
    """The store's commits go on until the n-th, which is not made (before) or not answered (after)."""

    def __init__(self, engine: Engine, n: int, when: Literal["before", "after"]) -> None:
        self._store: Any = engine._store
        self._real = self._store.commit
        self._left = n
        self._when = when
        self._ended = False
        self.reached = asyncio.Event()
        self._store.commit = self._commit

    async def _commit(self, batch: Batch) -> Any:
        self._left -= 1
        stops = self._left <= 0
        answers = None if stops and self._when == "before" else await self._real(batch)
        if stops and not self._ended:
            self.reached.set()
            await asyncio.Event().wait()
        return answers

    def end(self) -> None:
        """Commits are made as before."""
        self._ended = True
        self._store.commit = self._real


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_kill_at_any_commit_after_a_due_time_loses_and_repeats_nothing(
    world: World, when: Literal["before", "after"]
) -> None:
    engine = await world.engine(report)
    go_to(world, "07-01 12:00:00")
    await engine.schedule(report, NIGHTLY, id="s")

    async def passed(day: int) -> None:
        await waits_for(world, engine, f"07-{day + 1:02d} 02:00:00")
        assert len(await started(engine)) == day - 1

    for day in range(2, 31):
        await waits_for(world, engine, f"07-{day:02d} 02:00:00")
        stop = Stop(engine, day - 1, when)
        go_to(world, f"07-{day:02d} 02:00:00")
        over = asyncio.ensure_future(passed(day))
        reached = asyncio.ensure_future(stop.reached.wait())
        await asyncio.wait({over, reached}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.reached.is_set():
            break
        over.cancel()
        await asyncio.wait({over})
        await world.crash(engine)
        stop.end()
        engine = await world.engine(report)
        await passed(day)
    reached.cancel()
    stop.end()
    await over  # the last day needed fewer commits: all were tried
    assert day > 4
    assert await started(engine) == [f"s@2025-07-{day:02d}T02:00:00Z" for day in range(2, day + 1)]


# ---------------------------------------------------------------- times


@pytest.mark.fault(33)
@pytest.mark.peer(33)
async def test_a_time_that_the_clocks_leave_out_or_repeat_comes_once(world: World) -> None:
    engine = await world.engine(report)
    go_to(world, "10-24 12:00:00")
    await engine.schedule(report, Cron("30 2 * * *", tz=COPENHAGEN), id="s")
    await come_and_go(world, engine, "10-25 00:30:00", "10-26 00:30:00", "10-27 01:30:00")
    await waits_for(world, engine, "10-28 01:30:00")
    go_to(world, "2026-03-28 12:00:00")
    await come_and_go(world, engine, "2026-03-29 01:00:00", "2026-03-30 00:30:00")
    await waits_for(world, engine, "2026-03-31 00:30:00")
    assert await started(engine) == [
        "s@2025-10-25T00:30:00Z",
        "s@2025-10-26T00:30:00Z",
        "s@2025-10-27T01:30:00Z",
        "s@2026-03-28T01:30:00Z",  # made up for
        "s@2026-03-29T01:00:00Z",
        "s@2026-03-30T00:30:00Z",
    ]


@pytest.mark.fault(33)
@pytest.mark.peer(33)
async def test_every_half_hour_is_every_half_hour_when_the_clocks_change(world: World) -> None:
    engine = await world.engine(report)
    go_to(world, "10-25 23:45:00")
    await engine.schedule(report, Cron("*/30 * * * *", tz=COPENHAGEN), id="s")
    hours = [f"10-26 {hour:02d}:{minute}:00" for hour in range(4) for minute in ("00", "30")]
    await come_and_go(world, engine, *hours)
    await waits_for(world, engine, "10-26 04:00:00")
    assert len(await started(engine)) == len(hours)
    go_to(world, "2026-03-28 23:45:00")
    await come_and_go(
        world, engine, *(f"2026-03-29 {hour:02d}:{minute}:00" for hour in range(3) for minute in ("00", "30"))
    )
    await waits_for(world, engine, "2026-03-29 03:00:00")


async def test_an_interval_is_counted_from_the_first_start_across_lateness_and_runs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "TURNS", 3)
    engine = await world.engine(report)
    go_to(world, "06-20 12:00:10")
    await engine.schedule(report, timedelta(minutes=90), id="s")
    await come_and_go(world, engine, "06-20 13:30:10", "06-20 15:00:10")
    await waits_for(world, engine, "06-20 16:30:10")
    engine = await world.restart(engine)
    go_to(world, "06-20 20:00:00")  # late: two have passed
    await come_and_go(world, engine, "06-20 21:00:10", "06-20 22:30:10", "06-21 00:00:10")
    await waits_for(world, engine, "06-21 01:30:10")
    assert await started(engine) == [
        f"s@2025-06-{time}:10Z" for time in ("20T13:30", "20T15:00", "20T19:30", "20T21:00", "20T22:30", "21T00:00")
    ]
    assert (await world.row(engine.handle(SCHEDULE, "s"))).run >= 2


async def test_the_journal_stays_short(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "TURNS", 4)
    engine = await world.engine(report)
    go_to(world, "06-01 12:00:00")
    await engine.schedule(report, NIGHTLY, id="s")
    handle = engine.handle(SCHEDULE, "s")
    longest = 0
    for day in range(2, 22):
        await come_and_go(world, engine, f"06-{day:02d} 02:00:00")
        longest = max(longest, len(await world.journal(handle)))
    row = await waits_for(world, engine, "06-22 02:00:00")
    assert row.run == 5
    assert longest <= 4 * 4
    assert len(await started(engine)) == 20


# ---------------------------------------------------------------- changes


async def test_the_same_schedule_again_changes_nothing(world: World) -> None:
    engine = await world.engine(report)
    other = await world.engine(report)
    go_to(world, "06-20 12:00:00")
    for _ in range(3):
        await engine.schedule(report, 3600, "x", id="s")
        await waits_for(world, engine, "06-20 13:00:00")
    go_to(world, "06-20 12:30:00")
    await other.schedule("report", timedelta(hours=1), "x", id="s")
    await come_and_go(world, engine, "06-20 13:00:00", "06-20 14:00:00")
    await other.schedule(report, 3600, "x", id="s")
    await come_and_go(world, engine, "06-20 15:00:00")
    await waits_for(world, engine, "06-20 16:00:00")
    assert ran == ["x"] * len(await started(engine)) == ["x"] * 3


async def test_another_time_replaces_the_one_before(world: World) -> None:
    engine = await world.engine(report)
    go_to(world, "06-20 12:00:00")
    await engine.schedule(report, NIGHTLY, id="s")
    await waits_for(world, engine, "06-21 02:00:00")
    await engine.schedule(report, Cron("0 3 * * *", tz=COPENHAGEN), id="s")
    await waits_for(world, engine, "06-21 01:00:00")
    go_to(world, "06-20 12:20:00")
    await engine.schedule(report, 3600, id="s")
    await waits_for(world, engine, "06-20 13:20:00")
    await engine.schedule(report, NIGHTLY, id="s")  # the first one again
    await come_and_go(world, engine, "06-21 02:00:00")
    await waits_for(world, engine, "06-22 02:00:00")
    assert await started(engine) == ["s@2025-06-21T02:00:00Z"]


async def test_other_arguments_hold_from_the_next_start_on_and_times_stay(world: World) -> None:
    @flow(name="other")
    async def other(n: int) -> None:
        await capture(ran.append, f"other {n}")

    engine = await world.engine(report, other)
    go_to(world, "06-20 12:00:00")
    await engine.schedule(report, 3600, "one", id="s")
    await come_and_go(world, engine, "06-20 13:00:00")
    await waits_for(world, engine, "06-20 14:00:00")
    go_to(world, "06-20 13:30:00")
    await engine.schedule(report, 3600, "two", id="s")
    await come_and_go(world, engine, "06-20 14:00:00")
    await waits_for(world, engine, "06-20 15:00:00")
    await engine.schedule(other, 3600, 3, id="s")
    await come_and_go(world, engine, "06-20 15:00:00")
    await waits_for(world, engine, "06-20 16:00:00")
    await started(engine)
    assert ran == ["one", "two", "other 3"]


async def test_a_change_while_nobody_runs_is_heard(world: World) -> None:
    engine = await world.engine(report)
    client = await world.engine(execute=False)
    go_to(world, "06-20 12:00:00")
    await client.schedule("report", NIGHTLY, "x", id="s")
    await waits_for(world, client, "06-21 02:00:00")
    await world.close(engine)
    await client.schedule("report", Cron("0 4 * * *"), "y", id="s")
    engine = await world.engine(report)
    await come_and_go(world, client, "06-21 04:00:00")
    await waits_for(world, client, "06-22 04:00:00")
    assert await started(client) == ["s@2025-06-21T04:00:00Z"]
    assert ran == ["y"]


async def test_a_change_survives_the_next_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "TURNS", 3)
    engine = await world.engine(report)
    go_to(world, "06-20 12:00:00")
    await engine.schedule(report, 3600, "one", id="s")
    await waits_for(world, engine, "06-20 13:00:00")
    await engine.schedule(report, 1800, "two", id="s")
    hours = [f"06-20 {hour:02d}:{minute}:00" for hour in range(13, 17) for minute in ("00", "30")]
    await come_and_go(world, engine, "06-20 12:30:00", *hours)
    row = await waits_for(world, engine, "06-20 17:00:00")
    assert row.run >= 2
    assert len(await started(engine)) == 9
    assert set(ran) == {"two"}


async def test_a_removed_schedule_starts_nothing_and_may_be_set_again(world: World) -> None:
    engine = await world.engine(report)
    client = await world.engine(execute=False)
    go_to(world, "06-20 12:00:00")
    await engine.schedule(report, NIGHTLY, id="s")
    await engine.schedule(report, NIGHTLY, id="stays")
    await come_and_go(world, engine, "06-21 02:00:00")
    await waits_for(world, engine, "06-22 02:00:00")
    await waits_for(world, engine, "06-22 02:00:00", "stays")
    await client.unschedule("s")
    await client.unschedule("s")  # nothing happens
    assert [info.id async for info in engine.find(SCHEDULE)] == ["stays"]
    go_to(world, "06-22 02:00:00")
    await waits_for(world, engine, "06-23 02:00:00", "stays")
    await engine.schedule(report, NIGHTLY, id="s")
    await come_and_go(world, engine, "06-23 02:00:00")
    await waits_for(world, engine, "06-24 02:00:00")
    await waits_for(world, engine, "06-24 02:00:00", "stays")
    assert [id for id in await started(engine) if id.startswith("s@")] == [
        "s@2025-06-21T02:00:00Z",
        "s@2025-06-23T02:00:00Z",
    ]


async def test_a_schedule_that_somebody_cancelled_is_set_again(world: World) -> None:
    engine = await world.engine(report)
    go_to(world, "06-20 12:00:00")
    await engine.schedule(report, NIGHTLY, id="s")
    await waits_for(world, engine, "06-21 02:00:00")
    await engine.cancel(SCHEDULE, "s")
    with pytest.raises(FlowCancelled):
        await engine.handle(SCHEDULE, "s").result(timeout=10)
    await engine.schedule(report, NIGHTLY, "again", id="s")
    await come_and_go(world, engine, "06-21 02:00:00")
    await waits_for(world, engine, "06-22 02:00:00")
    await started(engine)
    assert ran == ["again"]


async def test_a_cancelled_schedule_is_set_again_when_retention_has_removed_it(world: World) -> None:
    engine = await world.engine(report, retention=60)
    go_to(world, "06-20 12:00:00")
    await engine.schedule(report, NIGHTLY, id="s")
    await engine.cancel(SCHEDULE, "s")
    with pytest.raises(FlowCancelled):
        await engine.handle(SCHEDULE, "s").result(timeout=10)

    async def left() -> list[str]:
        world.clock.advance(100)
        return [info.id async for info in engine.find(SCHEDULE)]

    await eventually(left, lambda ids: not ids)
    await engine.schedule(report, NIGHTLY, id="s")
    await waits_for(world, engine, "06-21 02:00:00")


async def test_what_was_started_goes_on_when_its_schedule_is_removed(world: World) -> None:
    @flow(name="waits")
    async def waits() -> str:
        await asyncio.sleep(3600)
        return "done"

    engine = await world.engine(waits)
    go_to(world, "06-20 12:00:00")
    await engine.schedule(waits, 60, id="s")
    await come_and_go(world, engine, "06-20 12:01:00")
    await waits_for(world, engine, "06-20 12:02:00")
    handle = engine.handle(waits, "s@2025-06-20T12:01:00Z")
    await world.parked(handle)
    await engine.unschedule("s")
    go_to(world, "06-20 14:00:00")
    assert await handle.result(timeout=10) == "done"


# ---------------------------------------------------------------- what does not fit


async def test_a_plan_that_cannot_be_read_is_tried_again_and_may_be_replaced(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await world.engine(report)
    go_to(world, "06-20 12:00:00")
    await engine.start(
        SCHEDULE, Plan("report", (), ("0 2 * * *", "No/Where"), datetime(2026, 1, 1, tzinfo=UTC)), id="s"
    )
    await come_and_go(world, engine, "06-20 12:01:00", "06-20 12:02:00")
    await waits_for(world, engine, "06-20 12:03:00")
    assert "cannot be read here" in caplog.text
    assert "No/Where" in caplog.text
    await engine.schedule(report, NIGHTLY, id="s")
    await waits_for(world, engine, "06-21 02:00:00")


async def test_what_does_not_fit_is_refused_and_nothing_is_scheduled(world: World) -> None:
    engine = await world.engine(report)
    for interval in (0, 0.5, -1, float("nan"), float("inf"), timedelta(days=40_000)):
        with pytest.raises(ValueError, match="at least a second"):
            await engine.schedule(report, interval, id="s")
    with pytest.raises(ValueError, match="at most 234 bytes"):
        await engine.schedule(report, NIGHTLY, id="é" * 118)
    with pytest.raises(TypeError, match="argument"):
        await engine.schedule(report, NIGHTLY, 1, 2, id="s")
    with pytest.raises(TypeError, match="not a flow"):
        await engine.schedule(print, NIGHTLY, id="s")
    assert [info async for info in engine.find()] == []


async def test_a_name_that_this_executing_engine_does_not_know_is_refused(world: World) -> None:
    engine = await world.engine(report)
    with pytest.raises(NotRegistered, match="reprot"):
        await engine.schedule("reprot", NIGHTLY, id="s")


async def test_the_longest_id_is_not_too_long_for_what_it_starts(world: World) -> None:
    engine = await world.engine(report)
    id = "é" * 117
    go_to(world, "06-20 12:00:00")
    await engine.schedule(report, NIGHTLY, id=id)
    await come_and_go(world, engine, "06-21 02:00:00", id=id)
    await waits_for(world, engine, "06-22 02:00:00", id)
    assert await started(engine) == [f"{id}@2025-06-21T02:00:00Z"]
