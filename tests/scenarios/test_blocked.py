"""An instance that today's code cannot continue is set aside with the first difference, and goes on with code that can."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from perdure import Engine, FlowCancelled, FlowFunction, Handle, State, capture, flow, receive, start, step
from perdure.engine import claiming
from perdure.system import System
from tests.support.stores import Counted, as_store
from tests.support.world import World, eventually

Code = FlowFunction[..., Any]


@step(name="pay")
async def pay(amount: int = 1) -> int:
    return amount


@step(name="ship")
async def ship() -> str:
    return "shipped"


def order(body: Callable[..., Awaitable[Any]], *, version: str | None = None) -> Code:
    """Some code of the flow "order"."""
    return flow(name="order", version=version)(body)  # type: ignore[arg-type]


@order
async def pays() -> str:
    return f"paid {await pay()}, {await receive(str)}"


@order
async def ships() -> str:
    return f"{await ship()}, {await receive(str)}"


async def counted(world: World, *flows: Any, system: System | None = None, **options: Any) -> tuple[Engine, Counted]:
    """An engine, and a count of what it claims. With a system of its own it is like one in another process."""
    store = world.store()
    if system is not None:
        store = another(world, system)
    found = Counted(store)
    before = world.store
    world.store = lambda: as_store(found)  # type: ignore[method-assign]
    try:
        return await world.engine(*flows, **options), found
    finally:
        world.store = before  # type: ignore[method-assign]


def another(world: World, system: System) -> Any:
    """The store as a process with this system opens it."""
    if world.kind == "sqlite":
        store: Any = world.store()
        store.system = system
        return store
    shared: Any = world.store()

    class Shared:
        """The one memory store, seen with another system."""

        def __getattr__(self, name: str) -> Any:
            return system if name == "system" else getattr(shared, name)

    return Shared()


def process(world: World) -> System:
    """The system of another process: the same clock."""
    return System(world.clock)


async def looked_again(world: World, store: Counted) -> None:
    """The engine has looked at all blocked instances once more."""
    before = store.asked
    world.clock.advance(0.1)
    async with asyncio.timeout(10):
        while store.asked < before + 2:
            world.clock.advance(1)
            await asyncio.sleep(0.01)


async def set_aside(world: World, engine: Engine, id: str = "1") -> Handle[Any]:
    """An instance of the flow that `pays`, which the engine's other code cannot continue."""
    before = await world.engine(pays, version="before")
    handle = await before.start("order", id=id)
    await world.parked(handle)
    await world.close(before)
    await engine.send("order", id, "go")
    handle = engine.handle("order", id)
    await world.blocked(handle)
    return handle


async def resumed(handle: Handle[Any], result: str = "paid 1, go") -> None:
    assert await handle.result(timeout=10) == result


# ---------------------------------------------------------------- seen from outside


async def test_it_is_visible_with_the_first_difference_and_its_line(world: World) -> None:
    engine = await world.engine(ships, version="other")
    handle = await set_aside(world, engine)
    line = f"test_blocked.py:{ships.fn.__code__.co_firstlineno + 2}"
    (info,) = [info async for info in engine.find(state=State.BLOCKED)]
    assert (info.flow, info.id, info.state) == ("order", "1", State.BLOCKED)
    assert info.reason is not None
    for part in ("the journal holds step pay (entry 1)", "the code asks for step ship", line):
        assert part in info.reason
    panel = await engine.panel("order", "1")
    assert panel.state is State.BLOCKED
    assert panel.reason == info.reason
    assert [e.name for e in await world.journal(handle)][1:] == ["pay"]
    assert len(await world.inbox(handle)) == 1


# ---------------------------------------------------------------- code that fits


async def test_it_goes_on_when_code_that_fits_comes_while_the_other_lives(world: World) -> None:
    engine = await world.engine(ships, version="other")
    handle = await set_aside(world, engine)
    await world.engine(pays, version="mended")
    await resumed(handle)


async def test_it_goes_on_when_code_that_fits_comes_instead(world: World) -> None:
    engine = await world.engine(ships, version="other")
    await set_aside(world, engine)
    engine = await world.restart(engine, pays, version="mended")
    await resumed(engine.handle("order", "1"))
    assert (await engine.health()).blocked == 0


async def test_it_goes_on_with_the_code_from_before(world: World) -> None:
    engine = await world.engine(ships, version="other")
    await set_aside(world, engine)
    engine = await world.restart(engine, pays, version="before")
    await resumed(engine.handle("order", "1"))


async def test_all_that_were_blocked_go_on_and_nothing_of_them_is_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "BLOCKED", 7)
    before = await world.engine(pays, version="before")
    handles = await before.start_many(pays, [(f"{n}",) for n in range(40)])
    for handle in handles:
        await world.parked(handle)
    await world.close(before)
    engine = await world.engine(ships, version="other")
    for n in range(40):
        await engine.send("order", f"{n}", f"go {n}")
    handles = [engine.handle("order", f"{n}") for n in range(40)]
    for handle in handles:
        await world.blocked(handle)
    for n in range(40):
        await engine.send("order", f"{n}", "too late")
    mended, store = await counted(world, pays, version="mended")
    for _ in range(20):
        world.clock.advance(1)
        await asyncio.sleep(0.01)
    for n, handle in enumerate(handles):
        await resumed(mended.handle("order", handle.id), f"paid 1, go {n}")
    assert set(store.claimed.values()) == {1}


async def test_what_blocks_anew_further_on_says_so(world: World) -> None:
    @order
    async def goes_further() -> str:
        await pay()
        await receive(str)
        await ship()
        return await receive(str, name="more")

    @order
    async def pays_again() -> str:
        await pay()
        await receive(str)
        return f"{await pay(2)}"

    engine = await world.engine(ships, version="first")
    await set_aside(world, engine)
    engine = await world.restart(engine, goes_further, version="second")
    await world.parked(engine.handle("order", "1"))
    engine = await world.restart(engine, pays_again, version="third")
    await engine.send("order", "1", "", name="more")
    assert "the journal holds step ship (entry 3)" in await world.blocked(engine.handle("order", "1"))
    engine = await world.restart(engine, pays, version="fourth")
    handle = engine.handle("order", "1")
    row = await eventually(
        lambda: world.row(handle), lambda row: row.version == "fourth" and row.state is State.BLOCKED
    )
    assert "the journal goes on with step ship (entry 3" in row.reason
    engine = await world.restart(engine, goes_further, version="fifth")
    await resumed(engine.handle("order", "1"), "")


# ---------------------------------------------------------------- how often it is tried


async def test_the_same_code_tries_it_once(world: World) -> None:
    before = await world.engine(pays, version="before")
    handle = await before.start("order", id="1")
    await world.parked(handle)
    await world.close(before)
    engine, store = await counted(world, ships, version="other")
    await engine.send("order", "1", "go")
    await world.blocked(engine.handle("order", "1"))
    for _ in range(3):
        await looked_again(world, store)
        await engine.send("order", "1", "more")
    assert sum(store.claimed.values()) == 1
    assert (await engine.health()).blocked == 1


async def test_another_engine_of_the_same_code_and_process_tries_it_no_more(world: World) -> None:
    engine = await world.engine(ships, version="other")
    await set_aside(world, engine)
    second, store = await counted(world, ships, version="other")
    await looked_again(world, store)
    assert store.claimed.total() == 0
    assert (await second.health()).blocked == 0


async def test_the_same_code_tries_it_once_more_in_another_process(world: World) -> None:
    engine = await world.engine(ships, version="other")
    handle = await set_aside(world, engine)
    engines: list[Engine] = []
    stores: list[Counted] = []
    for _ in range(3):
        engine, store = await counted(world, ships, system=process(world), version="other")
        engines.append(engine)
        stores.append(store)
        await looked_again(world, store)
        await world.blocked(handle)
    for store in stores:
        await looked_again(world, store)
    assert [store.claimed.total() for store in stores] == [1, 0, 0]


async def test_an_engine_that_starts_again_in_circles_tries_it_twice_in_all(world: World) -> None:
    """As a service does whose manager restarts it whenever it likes."""
    engine = await world.engine(ships, version="other")
    await set_aside(world, engine)
    tried = 0
    for _ in range(5):
        engine, store = await counted(world, ships, system=process(world), version="other")
        await looked_again(world, store)
        tried += store.claimed.total()
        await world.crash(engine)
    assert tried == 1


async def test_code_without_a_version_is_known_by_its_hash(world: World) -> None:
    engine = await world.engine(ships)
    await set_aside(world, engine)
    second, store = await counted(world, ships)
    await looked_again(world, store)
    assert store.claimed.total() == 0
    assert (await second.health()).blocked == 0


async def test_a_version_of_the_flow_counts_for_it(world: World) -> None:
    """Other code of another flow is no reason to try this one again."""
    engine = await world.engine(order(ships.fn, version="1"), version="a")
    handle = await set_aside(world, engine)
    _, same = await counted(world, order(ships.fn, version="1"), version="b")
    await looked_again(world, same)
    assert same.claimed.total() == 0
    _, other = await counted(world, order(ships.fn, version="2"), version="b")
    await looked_again(world, other)
    assert other.claimed.total() == 1
    await world.engine(order(pays.fn, version="3"), version="b")
    await resumed(handle)


@pytest.mark.fault(47)
async def test_an_engine_without_its_flow_leaves_it_alone(world: World) -> None:
    @flow(name="another")
    async def another_flow() -> None: ...

    engine = await world.engine(ships, version="other")
    await set_aside(world, engine)
    _, store = await counted(world, another_flow, version="mended")
    await looked_again(world, store)
    assert store.claimed.total() == 0


async def test_what_blocks_for_another_reason_is_tried_by_the_same_rule(world: World) -> None:
    """A flow that waits for nothing writes nothing, wherever it is tried."""

    @order
    async def stuck() -> None:
        await pay()
        await asyncio.Event().wait()

    @order
    async def mended() -> int:
        return await pay()

    engine, store = await counted(world, stuck, version="stuck")
    handle = await engine.start("order", id="1")
    assert (await world.blocked(handle)).startswith("WaitsForNothing")
    await looked_again(world, store)
    assert store.claimed.total() == 0  # it was never claimed: it began here
    _, again = await counted(world, stuck, system=process(world), version="stuck")
    await looked_again(world, again)
    assert again.claimed.total() == 1
    await world.engine(mended, version="mended")
    assert await handle.result(timeout=10) == 1


# ---------------------------------------------------------------- restart and cancel


async def test_restart_has_it_tried_in_any_case(world: World) -> None:
    allowed = False

    @order
    async def by_environment() -> str:
        """Code that fits or not by something that no version tells."""
        return await (pays.fn() if allowed else ships.fn())

    engine, store = await counted(world, by_environment, version="other")
    handle = await set_aside(world, engine)
    tried = store.claimed.total()
    await engine.restart("order", "1")
    await eventually(lambda: asyncio.sleep(0, store.claimed.total() == tried + 1))
    await world.blocked(handle)
    allowed = True
    await looked_again(world, store)
    assert store.claimed.total() == tried + 1
    await engine.restart("order", "1")
    await resumed(handle)


async def test_a_cancelled_one_ends_without_its_code_and_its_children_with_it(world: World) -> None:
    cleaned: list[str] = []

    @flow(name="child")
    async def child() -> None:
        try:
            await receive(str)
        except asyncio.CancelledError:
            await capture(cleaned.append, "child")
            raise

    @order
    async def parent() -> None:
        try:
            await start(child, id="c")
            await pay()
            await receive(str)
        finally:
            await capture(cleaned.append, "parent")

    engine = await world.engine(parent, child, version="before")
    await world.parked(await engine.start("order", id="1"))
    await world.parked(engine.handle(child, "c"))
    engine = await world.restart(engine, ships, child, version="other")
    await engine.send("order", "1", "go")
    handle = engine.handle("order", "1")
    await world.blocked(handle)
    await handle.cancel("enough")
    with pytest.raises(FlowCancelled, match="enough"):
        await handle.result(timeout=10)
    with pytest.raises(FlowCancelled):
        await engine.handle(child, "c").result(timeout=10)
    assert cleaned == ["child"]


async def test_it_can_be_cancelled_by_whoever_runs(world: World) -> None:
    """No engine needs to know its flow."""
    engine = await world.engine(ships, version="other")
    await set_aside(world, engine)
    engine = await world.restart(engine, flow(name="another")(pays.fn), version="other")
    handle = engine.handle("order", "1")
    await handle.cancel()
    with pytest.raises(FlowCancelled):
        await handle.result(timeout=10)


async def test_a_request_that_came_before_it_was_blocked_ends_it_too(world: World) -> None:
    engine = await world.engine(pays, version="before", max_resident=0)
    handle = await engine.start("order", id="1")
    await world.unloaded(handle)
    await world.close(engine)
    engine = await world.engine(ships, version="other")
    await engine.cancel("order", "1", "enough")
    with pytest.raises(FlowCancelled, match="enough"):
        await engine.handle("order", "1").result(timeout=10)


# ---------------------------------------------------------------- old and new side by side


class Deploys:
    """Two versions of one flow, which go on alike until a message, and which runs it is noted."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def version(self, name: str) -> Code:
        async def body(rounds: int) -> list[str]:
            done: list[str] = []
            for number in range(rounds):
                done.append(await capture(self._note, name, number, name=f"round of {name}"))
                await receive(str)
            return done

        return order(body)

    def _note(self, name: str, number: int) -> str:
        self.ran.append(name)
        return name


async def test_instances_stay_with_their_code_while_it_lives_and_go_over_when_it_has_left(world: World) -> None:
    deploys = Deploys()
    old, old_store = await counted(world, deploys.version("old"), version="old", max_resident=0)
    handles = [await old.start("order", 3, id=f"{n}") for n in range(5)]
    for handle in handles:
        await world.unloaded(handle)
    new, new_store = await counted(world, deploys.version("new"), version="new", max_resident=0)
    for _ in range(2):
        old_store.may_claim.clear()
        for handle in handles:
            await new.send("order", handle.id, "on")
        await looked_again(world, new_store)
        old_store.may_claim.set()
        for handle in handles:
            await eventually(lambda handle=handle: world.inbox(handle), lambda inbox: not inbox)
            await world.unloaded(handle)
    assert new_store.claimed.total() == 0
    assert set(deploys.ran) == {"old"}
    fresh = await new.start("order", 1, id="fresh")
    await fresh.send("on")
    assert await fresh.result(timeout=10) == ["new"]
    await world.close(old)
    for handle in handles:
        await new.send("order", handle.id, "on")
    handles = [new.handle("order", handle.id) for handle in handles]
    for handle in handles:
        await world.blocked(handle)
    assert {new_store.claimed[(await world.row(handle)).uid] for handle in handles} == {1}
    assert deploys.ran.count("new") == 1
    assert old_store.claimed.total() == 10


async def test_a_deploy_that_is_taken_back_bounces_nothing(world: World) -> None:
    """New code could not go on; the old comes back beside it, runs it to the end, and the new one never gets it again."""
    deploys = Deploys()
    old = await world.engine(deploys.version("old"), version="old")
    handle = await old.start("order", 4, id="1")
    await world.parked(handle)
    await world.close(old)
    new, new_store = await counted(world, deploys.version("new"), version="new", max_resident=0)
    await new.send("order", "1", "on")
    handle = new.handle("order", "1")
    await world.blocked(handle)
    old, old_store = await counted(world, deploys.version("old"), version="old", max_resident=0)
    for number in range(3):
        await eventually(lambda: world.inbox(handle), lambda inbox: not inbox)
        await world.unloaded(handle)
        await looked_again(world, new_store)
        await new.send("order", "1", f"on {number}")
    assert await handle.result(timeout=10) == ["old"] * 4
    assert new_store.claimed.total() == 1
    assert old_store.claimed.total() == 4
    assert (await new.health()).blocked == 1


async def test_deploys_back_and_forth_try_it_once_each(world: World) -> None:
    deploys = Deploys()
    engine = await world.engine(deploys.version("old"), version="old")
    handle = await engine.start("order", 6, id="1")
    await world.parked(handle)
    for number in range(3):
        await world.close(engine)
        engine, store = await counted(world, deploys.version("new"), version="new")
        await engine.send("order", "1", f"on {number}")
        handle = engine.handle("order", "1")
        await world.blocked(handle)
        await looked_again(world, store)
        assert store.claimed.total() == 1
        await world.close(engine)
        engine, store = await counted(world, deploys.version("old"), version="old")
        handle = engine.handle("order", "1")
        await eventually(lambda handle=handle: world.inbox(handle), lambda inbox: not inbox)
        await world.parked(handle)
        assert store.claimed.total() == 1
    assert deploys.ran == ["old"] * 4


async def test_an_instance_that_new_code_ran_last_is_the_new_codes(world: World) -> None:
    """Both versions fit: what the new one has run does not go back to the old one while the new lives."""

    async def body(rounds: int) -> int:
        for _ in range(rounds):
            await receive(str)
        return rounds

    old, old_store = await counted(world, order(body), version="old", max_resident=0)
    handle = await old.start("order", 3, id="1")
    await world.unloaded(handle)
    await world.close(old)
    new = await world.engine(order(body), version="new", max_resident=0)
    handle = new.handle("order", "1")
    await handle.send("on")
    await eventually(lambda: world.inbox(handle), lambda inbox: not inbox)
    await world.unloaded(handle)
    _, old_store = await counted(world, order(body), version="old", max_resident=0)
    for _ in range(2):
        await handle.send("on")
    assert await handle.result(timeout=10) == 3
    assert old_store.claimed.total() == 0


async def test_an_instance_whose_engine_died_goes_to_the_code_that_ran_it_last(world: World) -> None:
    """The new code took it over and died before it ever gave it back."""
    deploys = Deploys()
    old = await world.engine(deploys.version("old"), version="old", max_resident=0)
    handle = await old.start("order", 1, id="1")
    await world.unloaded(handle)
    await world.close(old)

    @order
    async def longer(rounds: int) -> str:
        done = await capture(deploys._note, "old", 0, name="round of old")
        await receive(str)
        more = await capture(deploys._note, "new", 1, name="round of new")
        return f"{done} {more} {await receive(str)}"

    first = await world.engine(longer, version="new")
    await first.send("order", "1", "on")
    handle = first.handle("order", "1")
    await eventually(lambda: world.journal(handle), lambda journal: len(journal) == 4)
    await world.parked(handle)
    _, old_store = await counted(world, deploys.version("old"), version="old")
    second = await world.engine(longer, version="new")
    await world.crash(first)
    handle = second.handle("order", "1")
    await handle.send("end")
    await eventually(lambda: world.row(handle), lambda row: row.state.ended or row.state is State.BLOCKED)
    assert old_store.claimed.total() == 0
    assert await handle.result(timeout=10) == "old new end"


async def test_an_instance_stays_with_its_flows_own_version_while_that_lives(world: World) -> None:
    deploys = Deploys()
    old, old_store = await counted(world, order(deploys.version("old").fn, version="1"), version="a", max_resident=0)
    handle = await old.start("order", 1, id="1")
    await world.unloaded(handle)
    _, new_store = await counted(world, order(deploys.version("new").fn, version="2"), version="b", max_resident=0)
    old_store.may_claim.clear()
    await handle.send("on")
    await looked_again(world, new_store)
    assert new_store.claimed.total() == 0
    old_store.may_claim.set()
    assert await handle.result(timeout=10) == ["old"]


# ---------------------------------------------------------------- a flow that nobody has


@pytest.mark.fault(47)
@pytest.mark.peer(4)
async def test_a_flow_that_nobody_has_waits_visibly(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    client = await world.engine(execute=False)
    engine, store = await counted(world, flow(name="another")(pays.fn), version="v1")
    begun = await client.start("order", id="1")
    await client.send("order", "1", "go")
    for _ in range(3):
        await looked_again(world, store)
    assert await begun.state() is State.SCHEDULED
    assert [info.id async for info in engine.find(state=State.SCHEDULED)] == ["1"]
    assert store.claimed.total() == 0
    assert not [record for record in caplog.records if "order" in record.getMessage()]
    await world.engine(pays, version="v2")
    await resumed(begun)


async def test_a_flow_that_was_taken_out_waits_where_it_stood(world: World) -> None:
    engine = await world.engine(pays)
    handle = await engine.start("order", id="1")
    await world.parked(handle)
    await world.close(engine)
    engine, store = await counted(world, flow(name="another")(pays.fn), version="v1")
    handle = engine.handle("order", "1")
    await handle.send("go")
    await looked_again(world, store)
    assert await handle.state() is State.SUSPENDED
    assert store.claimed.total() == 0
    await world.engine(pays, version="v2")
    await resumed(handle)
