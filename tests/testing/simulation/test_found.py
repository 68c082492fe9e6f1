"""Bugs that simulation found, each in the smallest cluster that shows it: one replica, one client, one call that is slow.

A store over a network answers in any order: what a process is told last may have happened first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from perdure import Engine, InstanceNotFound, Retry, State, continue_as_new, current, flow, receive, start, step
from perdure.errors import CommitUnknown, LeaseLost
from perdure.model.records import Entry
from perdure.model.writes import Continue, Create, Edited, Finish, PendingPut, Release, Send, Update
from perdure.testing.cluster import Calm, Cluster, Process
from perdure.testing.loops import apart

Work = Callable[[], Coroutine[Any, Any, Any]]


@step
async def doubled(n: int) -> int:
    await asyncio.sleep(0.5)
    return 2 * n


attempts: list[int] = []


@step(retry=Retry(initial=1))
async def second_time(n: int) -> int:
    attempts.append(current().attempt)
    await asyncio.sleep(0.5)
    if current().attempt == 1:
        raise LookupError("the first time")
    return n


@flow(name="tries")
async def tries() -> int:
    return await second_time(1) + await receive(int)


@flow(name="waits")
async def waits() -> int:
    return await receive(int)


@flow(name="works")
async def works(n: int) -> int:
    return await doubled(n)


@flow(name="starts several")
async def starts_several(count: int) -> list[int]:
    children = [await start(works, n, id=f"child {n}") for n in range(count)]
    return [await child.result() for child in children]


@flow(name="starts one")
async def starts_one() -> int:
    child = await start(waits, id="child")
    return await child.result()


@flow(name="adds")
async def adds(left: int, total: int) -> int:
    total += await receive(int)
    if left > 1:
        await continue_as_new(left - 1, total)
    return total


@flow(name="gives up")
async def gives_up() -> int:
    try:
        async with asyncio.timeout(0.2):
            await doubled(1)
    except TimeoutError:
        pass
    return await doubled(2)


FLOWS = [waits, works, tries, starts_several, starts_one, adds, gives_up]


Hold = Callable[[str, Any], float]
"""For how many seconds a call is held up."""


def never(method: str, args: Any) -> float:
    return 0.0


class Slow(Calm):
    """Some calls of the replica arrive late, and some are answered late."""

    def __init__(self, *, arrives: Hold = never, answered: Hold = never) -> None:
        self._arrives = arrives
        self._answered = answered

    async def call(self, process: Process, method: str, args: Any, work: Work) -> Any:
        if process.name != "replica":
            return await work()
        await asyncio.sleep(self._arrives(method, args))
        answer = await work()
        await asyncio.sleep(self._answered(method, args))
        return answer


def once(matches: Callable[[str, Any], bool], seconds: float) -> Hold:
    """The first call that matches is held up."""
    met = False

    def held(method: str, args: Any) -> float:
        nonlocal met
        if met or not matches(method, args):
            return 0.0
        met = True
        return seconds

    return held


def writes(of: type, /, **about: Any) -> Callable[[str, Any], bool]:
    """Whether the call commits such a write."""

    def matches(method: str, args: Any) -> bool:
        return method == "commit" and any(
            isinstance(w, of) and all(getattr(w, name) == value for name, value in about.items())
            for w in args[0].writes
        )

    return matches


async def played(
    outside: Callable[[Engine], Coroutine[Any, Any, Any]],
    weather: Calm,
    replicas: tuple[str, ...] = ("replica",),
    **options: Any,
) -> Any:
    """What the outside gives, within a minute (of virtual time); None: it has not ended by then."""
    cluster = Cluster(weather)
    found: list[Any] = []

    async def replica(process: Process) -> None:
        process.engine = Engine(process.store, flows=FLOWS, version="one", **options)
        async with process.engine:
            await asyncio.Event().wait()

    async def client(process: Process) -> None:
        process.engine = Engine(process.store, flows=FLOWS, execute=False)
        async with process.engine as engine:
            found.append(await outside(engine))

    def run() -> None:
        try:
            for name in replicas:
                cluster.start(replica, name)
            cluster.start(client, "client")
            while not found and cluster.time.now < 60:
                cluster.turn()
        finally:
            cluster.end()

    await apart(run)
    return found[0] if found else None


async def test_what_is_claimed_before_the_answer_to_its_release_comes_is_run() -> None:
    async def outside(engine: Engine) -> int:
        handle = await engine.start(waits, id="one")
        await asyncio.sleep(3)
        await handle.send(1)  # the instance was released, and the replica does not know it yet
        return await handle.result()

    weather = Slow(answered=once(writes(Release, state=State.SUSPENDED), 5))
    assert await played(outside, weather, unload_after=0.1) == 1


async def test_what_was_given_back_for_lack_of_room_is_not_dropped_when_it_is_claimed_at_once() -> None:
    async def outside(engine: Engine) -> list[int]:
        return await engine.run(starts_several, 4, id="one")

    weather = Slow(answered=once(writes(Release, state=State.SCHEDULED), 0.3))
    assert await played(outside, weather, max_running=2) == [0, 2, 4, 6]


async def test_a_message_that_is_read_late_is_not_taken_again_by_the_next_run() -> None:
    async def outside(engine: Engine) -> int:
        await engine.send(adds, "one", 1)
        await engine.send(adds, "one", 10)
        handle = await engine.start(adds, 4, 0, id="one")
        await asyncio.sleep(0.1)
        await handle.send(100)  # it is called, and its inbox is read, before its first run is over
        await asyncio.sleep(10)
        await handle.send(1000)
        return await handle.result()

    first_run_ends = once(writes(Continue), 0.5)
    weather = Slow(arrives=first_run_ends, answered=once(lambda method, args: method == "inbox", 3))
    assert await played(outside, weather) == 1111


async def test_a_message_for_what_was_created_just_now_is_not_overlooked() -> None:
    async def outside(engine: Engine) -> int:
        handle = await engine.start(starts_one, id="one")
        await asyncio.sleep(1)
        await engine.send(waits, "child", 1)  # it is there, and its replica does not know it yet
        return await handle.result()

    weather = Slow(answered=once(writes(Create, id="child"), 5))
    assert await played(outside, weather) == 1


class Late(Calm):
    """The first claim after a release is said to be lost, and arrives when something is sent to the instance."""

    released = False
    late: Work | None = None

    async def call(self, process: Process, method: str, args: Any, work: Work) -> Any:
        if method == "claim" and self.released and self.late is None:
            self.late = work
            raise CommitUnknown("the answer was lost")
        answer = await work()
        self.released = self.released or writes(Release)(method, args)
        if writes(Send)(method, args):
            assert self.late is not None
            with contextlib.suppress(LeaseLost):
                await self.late()
        return answer


async def test_a_claim_that_comes_late_takes_nothing_away() -> None:
    async def outside(engine: Engine) -> int:
        handle = await engine.start(waits, id="one")
        await asyncio.sleep(5)
        await handle.send(1)
        return await handle.result()

    assert await played(outside, Late(), unload_after=0.1) == 1


async def test_what_is_dropped_and_asked_for_while_an_engine_drains_does_not_stop_its_committer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = Cluster(Slow(arrives=once(writes(Create, id="two"), 3)))

    async def program(process: Process) -> None:
        process.engine = Engine(process.store, flows=FLOWS, version="one", drain=0)
        async with process.engine as engine:
            await engine.start(gives_up, id="one")
            await asyncio.sleep(0.1)
            starting = asyncio.ensure_future(engine.start(works, 1, id="two"))
            await asyncio.sleep(1)  # the flow has given one step up and asked for another; that is not on disk yet
        await starting

    def run() -> None:
        process = cluster.start(program, "replica")
        try:
            while not process.outcome.done():
                cluster.turn()
        finally:
            cluster.end()

    await apart(run)
    assert "the committer failed" not in caplog.text


async def test_what_is_restarted_before_the_answer_to_its_end_comes_is_run() -> None:
    async def outside(engine: Engine) -> bool:
        handle = await engine.start(works, 1, id="one")
        await asyncio.sleep(2)  # it has ended, and its replica does not know it yet
        await engine.restart(works, "one")
        await asyncio.sleep(20)
        return await handle.state() is State.SUCCEEDED

    assert await played(outside, Slow(answered=once(writes(Finish), 5))) is True


class LearnsLate(Slow):
    """The replica is told after five seconds that nobody knows whether it was written what became of a failed attempt."""

    met = False
    other_joins = 1.0  # the instance begins at the replica

    async def call(self, process: Process, method: str, args: Any, work: Work) -> Any:
        if process.name == "other" and method == "join":
            await asyncio.sleep(self.other_joins)
        answer = await super().call(process, method, args, work)
        if process.name == "replica" and not self.met and writes(PendingPut)(method, args):
            assert writes(Release)(method, args)
            self.met = True
            await asyncio.sleep(5)
            raise CommitUnknown("the answer was lost")
        return answer


async def test_what_is_sent_again_leaves_alone_who_is_somebody_else_s_by_now() -> None:
    async def outside(engine: Engine) -> int:
        handle = await engine.start(tries, id="one")
        await asyncio.sleep(0.3)
        await engine.start(works, 1, id="two")
        await asyncio.sleep(20)  # the other has done it meanwhile
        await handle.send(10)
        return await handle.result()

    weather = LearnsLate(arrives=once(writes(Entry, name="works"), 1))
    cheap = {"max_resident": 0}
    assert await played(outside, weather, ("replica", "other"), **cheap) == 11
    assert weather.met


async def test_what_is_sent_again_leaves_alone_what_was_claimed_here_once_more() -> None:
    async def outside(engine: Engine) -> int:
        handle = await engine.start(tries, id="one")
        await asyncio.sleep(0.3)
        await engine.start(works, 1, id="two")
        await asyncio.sleep(20)
        await handle.send(10)
        return await handle.result()

    def loads_late(method: str, args: Any) -> float:
        return 8.0 if method == "load" and weather.met else 0.0

    attempts.clear()
    weather = LearnsLate(arrives=once(writes(Entry, name="works"), 1), answered=loads_late)
    weather.other_joins = 3.0  # the replica has claimed it by then
    assert await played(outside, weather, ("replica", "other"), max_resident=0) == 11
    assert weather.met
    assert attempts == [1, 2]


class LateWakeups(Calm):
    """A call for wake-ups is said to be lost, and arrives when a message has come."""

    parked = False
    late: Work | None = None

    async def call(self, process: Process, method: str, args: Any, work: Work) -> Any:
        if method == "wakeups" and self.parked and self.late is None:
            self.late = work
            raise CommitUnknown("the answer was lost")
        answer = await work()
        self.parked = self.parked or writes(Update, waiting=True)(method, args)
        if writes(Send)(method, args):
            assert self.late is not None
            with pytest.raises(LeaseLost):
                await self.late()
        return answer


async def test_a_call_for_wakeups_that_comes_late_overlooks_no_message() -> None:
    async def outside(engine: Engine) -> int:
        handle = await engine.start(waits, id="one")
        await asyncio.sleep(5)
        await handle.send(1)
        return await handle.result()

    assert await played(outside, LateWakeups()) == 1


class LateStart(Calm):
    """The first start of the client is said to be lost, is made again, and arrives when the instance was deleted."""

    late: Work | None = None

    async def call(self, process: Process, method: str, args: Any, work: Work) -> Any:
        if process.name == "client" and writes(Create)(method, args) and self.late is None:
            self.late = work
            raise CommitUnknown("the answer was lost")
        answer = await work()
        if method == "edit" and isinstance(answer, Edited):
            assert self.late is not None
            await self.late()
        return answer


async def test_a_start_that_comes_late_does_not_bring_back_what_was_deleted() -> None:
    async def outside(engine: Engine) -> bool:
        await engine.start(waits, id="one")
        await engine.delete(waits, "one")
        try:
            await engine.handle(waits, "one").state()
        except InstanceNotFound:
            return True
        return False

    assert await played(outside, LateStart()) is True
