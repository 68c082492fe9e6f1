"""How instances go: deleted, their id may begin a new life; retired, it is remembered that there was one."""

import asyncio
from typing import Any

import pytest

from perdure import (
    AlreadyStarted,
    Engine,
    FlowCancelled,
    Handle,
    InstanceNotFound,
    Outgoing,
    State,
    expose,
    flow,
    handle,
    receive,
    run,
    send,
    start,
    step,
)
from tests.support.clock import until
from tests.support.world import World, eventually

ran: list[str] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@step(name="work")
async def work(what: str) -> str:
    ran.append(what)
    return f"{what} {ran.count(what)}"


@flow(name="takes")
async def takes(who: str = "ann") -> list[str]:
    expose("who", who)
    return [await work(who), await receive(str)]


@flow(name="small")
async def small(who: str) -> str:
    return await work(who)


@flow(name="forgets")
async def forgets() -> None:
    await asyncio.Event().wait()


async def ids(engine: Engine) -> list[str]:
    return [info.id async for info in engine.find()]


# ---------------------------------------------------------------- deleted


@pytest.mark.parametrize("place", ["here", "elsewhere", "unloaded", "later", "ended"])
async def test_a_deleted_instance_is_gone_and_its_id_begins_anew(world: World, place: str) -> None:
    engine = await world.engine(takes, max_resident=0 if place == "unloaded" else 10)
    editor = await world.engine(execute=False) if place == "elsewhere" else engine
    old = await engine.start(takes, "old", id="1", after=3600 if place == "later" else None)
    if place == "ended":
        await old.send("end")
        await old.result(timeout=10)
    elif place != "later":
        await (world.unloaded if place == "unloaded" else world.parked)(old)
    await editor.delete("takes", "1")
    assert await ids(engine) == []
    for gone in (old.state, old.exposed, old.result, engine.handle(takes, "1").state):
        with pytest.raises(InstanceNotFound):
            await gone()
    with pytest.raises(InstanceNotFound):
        await engine.panel(takes, "1")
    with pytest.raises(InstanceNotFound):
        await engine.delete(takes, "1")
    world.clock.advance(1)
    new = await engine.start(takes, "new", id="1")
    await new.send("hello")
    assert await new.result(timeout=10) == ["new 1", "hello"]
    assert await new.exposed() == {"who": "new"}
    with pytest.raises(InstanceNotFound):
        await old.result()
    with pytest.raises(InstanceNotFound):
        await old.state()


async def test_messages_of_the_old_life_do_not_reach_the_new_one(world: World) -> None:
    engine = await world.engine(takes)
    old = await engine.start(takes, "old", id="1", after=3600)
    await old.send("untaken", key="k")
    await engine.delete(takes, "1")
    world.clock.advance(1)
    await engine.send(takes, "1", "for the next", key="k")
    new = await engine.start(takes, "new", id="1")
    assert await new.result(timeout=10) == ["new 1", "for the next"]
    assert await world.inbox(new) == []


async def test_a_message_that_was_under_way_when_it_was_deleted_does_not_reach_the_new_life(world: World) -> None:
    engine = await world.engine(takes)
    await engine.start(takes, "old", id="1")
    await engine.delete(takes, "1")
    await engine.send(takes, "1", "of the moment of the deletion")
    world.clock.advance(1)
    new = await engine.start(takes, "new", id="1")
    await world.parked(new)
    assert await world.inbox(new) == []


async def test_answers_of_the_old_life_do_not_reach_the_new_one(world: World) -> None:
    """Both lives wait under the same key, for different instances."""

    @flow(name="child")
    async def child() -> str:
        return await receive(str)

    @flow(name="parent")
    async def parent(of: str) -> str:
        return await (await start(child, id=of, detached=True)).result()

    engine = await world.engine(parent, child, max_resident=0)
    old = await engine.start(parent, "a", id="1")
    await world.unloaded(old)
    old_keys = [e.key for e in await world.journal(old)]
    await engine.delete(parent, "1")
    world.clock.advance(1)
    new = await engine.start(parent, "b", id="1")
    await world.unloaded(new)
    assert [e.key for e in await world.journal(new)] == old_keys
    await engine.send(child, "a", "for the old life")
    await engine.handle(child, "a").result(timeout=10)
    await engine.send(child, "b", "for the new life")
    assert await new.result(timeout=10) == "for the new life"


async def test_a_running_step_of_a_deleted_instance_records_nothing(world: World) -> None:
    busy = asyncio.Event()

    @step(name="slow")
    async def slow() -> str:
        ran.append("slow")
        await busy.wait()
        return "slow"

    @flow(name="runs")
    async def runs(_: int) -> str:
        return await slow() + await work("after")

    engine = await world.engine(runs, drain=0.1)
    old = await engine.start(runs, 1, id="1")
    await until(lambda: ran)
    waiting = asyncio.create_task(old.result())
    await engine.delete(runs, "1")
    with pytest.raises(InstanceNotFound):
        await waiting
    busy.set()
    world.clock.advance(1)
    assert await engine.run(runs, 2, id="1", timeout=10) == "slowafter 1"
    assert ran == ["slow", "slow", "after"]


async def test_unfinished_children_of_a_deleted_instance_are_cancelled_and_theirs_too(world: World) -> None:
    @flow(name="leaf")
    async def leaf() -> str:
        return await receive(str)

    @flow(name="middle")
    async def middle() -> str:
        return await run(leaf, id="leaf")

    @flow(name="top")
    async def top() -> str:
        return await run(middle, id="middle")

    engine = await world.engine(top, middle, leaf)
    await engine.start(top, id="top")
    await eventually(lambda: ids(engine), lambda found: len(found) == 3)
    await eventually(lambda: ids_in(engine, State.SUSPENDED), lambda found: len(found) == 3)
    await engine.delete(top, "top")
    for name in ("middle", "leaf"):
        with pytest.raises(FlowCancelled):
            await engine.handle(name, name).result(timeout=10)


async def ids_in(engine: Engine, state: State) -> list[str]:
    return [info.id async for info in engine.find(state=state)]


async def test_flows_that_ask_for_a_deleted_instance_are_told(world: World) -> None:
    @flow(name="asks")
    async def asks() -> list[str]:
        found: list[str] = []
        for ask in (lambda: handle(takes, "1").result(), lambda: handle(takes, "1").state()):
            try:
                found.append(str(await ask()))
            except InstanceNotFound as error:
                found.append(error.id)
            await receive(bool)
        await send(takes, "1", "waits for a new life")
        return found

    engine = await world.engine(takes, asks)
    await world.parked(await engine.start(takes, id="1"))
    asker = await engine.start(asks, id="a")
    await world.parked(asker)
    await engine.delete(takes, "1")
    world.clock.advance(1)
    await asker.send(True)
    await asker.send(True)
    assert await asker.result(timeout=10) == ["1", "1"]
    assert await engine.run(takes, id="1", timeout=10) == ["ann 2", "waits for a new life"]


# ---------------------------------------------------------------- retired


async def retired(world: World, engine: Engine, *left: str, after: float = 61) -> None:
    """Time passes, and these are left."""
    world.clock.advance(after)
    await eventually(lambda: ids(engine), lambda found: found == list(left))


async def test_what_ended_long_ago_is_removed_and_nothing_else(world: World) -> None:
    engine = await world.engine(takes, small, forgets, retention=60)
    assert await engine.run(small, "a", id="well", timeout=10) == "a 1"
    waits = await engine.start(takes, id="waits")
    later = await engine.start(takes, id="later", after=1000)
    ill = await engine.start(forgets, id="ill")
    await world.blocked(ill)
    cancelled = await engine.start(takes, id="cancelled", after=1000)
    await cancelled.cancel()
    with pytest.raises(FlowCancelled):
        await cancelled.result(timeout=10)
    await world.parked(waits)
    world.clock.advance(30)
    recent = await engine.start(small, "c", id="recent")
    await recent.result(timeout=10)
    await retired(world, engine, "waits", "later", "ill", "recent", after=45)
    await waits.send("end")
    assert await waits.result(timeout=10) == ["ann 1", "end"]
    await later.cancel()
    with pytest.raises(FlowCancelled):
        await later.result(timeout=10)
    await retired(world, engine, "ill")


@pytest.mark.fault(55)
async def test_a_start_that_comes_again_does_not_start_it_again(world: World) -> None:
    engine = await world.engine(small, takes, retention=60)
    first = await engine.start(small, "a", id="1")
    assert await first.result(timeout=10) == "a 1"
    await retired(world, engine)
    engine = await world.restart(engine)
    client = await world.engine(execute=False)
    for starter in (engine, client):
        again = await starter.start(small, "a", id="1")
        with pytest.raises(InstanceNotFound):
            await again.result(timeout=10)
        with pytest.raises(InstanceNotFound):
            await again.state()
        with pytest.raises(AlreadyStarted):
            await starter.start(small, "b", id="1")
        with pytest.raises(InstanceNotFound):
            await starter.run(small, "a", id="1", timeout=10)
    handles = await engine.start_many(small, [("1", "a"), ("2", "b")])
    assert await handles[1].result(timeout=10) == "b 1"
    assert ran == ["a", "b"]
    assert await ids(engine) == ["2"]


async def test_a_tombstone_compares_with_what_it_was_first_started_with(world: World) -> None:
    engine = await world.engine(small, retention=60)
    await engine.run(small, "a", id="1", timeout=10)
    panel = await engine.panel(small, "1")
    panel.args = ("b",)
    panel.entries.remove("work")
    await panel.restart()
    assert await engine.handle(small, "1").result(timeout=10) == "b 1"
    await retired(world, engine)
    assert await engine.start(small, "a", id="1") is not None
    with pytest.raises(AlreadyStarted):
        await engine.start(small, "b", id="1")


async def test_messages_for_what_was_retired_are_dropped(world: World) -> None:
    engine = await world.engine(takes, retention=60)
    old = await engine.start(takes, id="1")
    await old.send("end")
    await old.result(timeout=10)
    await retired(world, engine)
    await engine.send(takes, "1", "nobody's")
    await engine.send_many(takes, [Outgoing("1", "nobody's")])
    with pytest.raises(InstanceNotFound):
        await engine.cancel(takes, "1")
    for verb in (engine.restart, engine.panel):
        with pytest.raises(InstanceNotFound):
            await verb(takes, "1")


async def test_deleting_what_is_left_after_retention_frees_the_id(world: World) -> None:
    engine = await world.engine(takes, retention=60)
    old = await engine.start(takes, id="1")
    await old.send("end")
    await old.result(timeout=10)
    await retired(world, engine)
    await engine.delete(takes, "1")
    with pytest.raises(InstanceNotFound):
        await engine.delete(takes, "1")
    new = await engine.start(takes, id="1")
    await new.send("end")
    await new.result(timeout=10)


@pytest.mark.fault(55)
async def test_a_finished_child_stays_as_long_as_its_parent_has_not_ended(world: World) -> None:
    @flow(name="parent")
    async def parent() -> list[str]:
        child = await start(small, "child", id="child")
        await start(small, "free", id="free", detached=True)
        await receive(str)
        return [await child.result()]

    engine = await world.engine(parent, small, retention=60, max_resident=0)
    handle = await engine.start(parent, id="1")
    await world.unloaded(handle)
    for id in ("child", "free"):
        await engine.handle(small, id).result(timeout=10)
    for _ in range(3):
        await retired(world, engine, "1", "child")
    await handle.send("go on")
    assert await handle.result(timeout=10) == ["child 1"]
    assert ran.count("child") == 1
    await retired(world, engine)


@pytest.mark.fault(55)
async def test_the_child_of_a_parent_that_was_blocked_for_a_month_does_not_run_again(world: World) -> None:
    @flow(name="parent")
    async def parent() -> str:
        child = await start(small, "child", id="child")
        await receive(str)
        return await child.result()

    @flow(name="parent")
    async def other_code() -> str:
        return await work("something else")

    engine = await world.engine(parent, small, retention=60)
    await world.parked(await engine.start(parent, id="1"))
    await engine.handle(small, "child").result(timeout=10)
    engine = await world.restart(engine, other_code, small)
    await engine.send("parent", "1", "go on")
    await world.blocked(engine.handle("parent", "1"))
    await retired(world, engine, "1", "child", after=30 * 86400)
    engine = await world.restart(engine, parent, small)
    assert await (await engine.restart("parent", "1")).result(timeout=10) == "child 1"
    assert ran == ["child"]


async def test_a_flow_that_starts_what_was_retired_is_told(world: World) -> None:
    @flow(name="asks")
    async def asks() -> list[str]:
        found: list[str] = []
        for who in ("a", "b"):
            try:
                found.append(await run(small, who, id="1"))
            except InstanceNotFound as error:
                found.append(f"{error.id} is not there")
        return found

    engine = await world.engine(asks, small, retention=60)
    await engine.run(small, "a", id="1", timeout=10)
    await retired(world, engine)
    assert await engine.run(asks, id="x", timeout=10) == ["1 is not there"] * 2
    assert ran == ["a"]


async def test_a_deleted_instance_leaves_no_tombstone(world: World) -> None:
    engine = await world.engine(small, retention=60)
    await engine.run(small, "a", id="1", timeout=10)
    await engine.delete(small, "1")
    world.clock.advance(100)
    assert await engine.run(small, "b", id="1", timeout=10) == "b 1"
    await retired(world, engine)
    with pytest.raises(AlreadyStarted):
        await engine.start(small, "c", id="1")


async def test_a_restarted_instance_is_not_removed(world: World) -> None:
    engine = await world.engine(takes, retention=60)
    old = await engine.start(takes, id="1")
    await old.send("one")
    await old.result(timeout=10)
    panel = await engine.panel(takes, "1")
    panel.entries.set("1", "two")
    await panel.postpone(100)
    world.clock.advance(80)
    other: Handle[Any] = await engine.start(takes, id="2")
    await world.parked(other)
    assert await ids(engine) == ["1", "2"]
    world.clock.advance(20)
    assert await old.result(timeout=10) == ["ann 1", "two"]


async def test_retention_0_removes_at_the_next_look(world: World) -> None:
    engine = await world.engine(small, retention=0)
    await engine.run(small, "a", id="1", timeout=10)
    await retired(world, engine)


async def test_many_go_a_part_at_a_time(world: World) -> None:
    engine = await world.engine(small, retention=60)
    handles = await engine.start_many(small, [(f"{n}", "a") for n in range(450)])
    for one in handles:
        await one.result(timeout=20)
    await retired(world, engine)
    assert len(ran) == 450


async def test_without_retention_and_by_a_client_nothing_goes(world: World) -> None:
    engine = await world.engine(small)
    client = await world.engine(execute=False, retention=1)
    await engine.run(small, "a", id="1", timeout=10)
    world.clock.advance(10_000)
    await engine.run(small, "b", id="2", timeout=10)
    assert await ids(client) == ["1", "2"]
