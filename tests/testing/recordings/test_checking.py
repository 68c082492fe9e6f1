"""What a check says of the instances of a store, in one process: which it looks at, and what it counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest
from msgspec.structs import replace

from perdure import Engine, State, Store, SyncEngine, continue_as_new, flow, receive, step
from perdure.model.records import Loaded
from perdure.testing import checking
from perdure.testing.checking import Checked, Finding, check
from perdure.testing.record_source import opened_to_read, parts_of
from tests.deploys.lives import Pages
from tests.support.stores import Through, as_store
from tests.support.world import World, eventually
from tests.testing.recordings.test_recording import Zlib

begun: list[str] = []


@step
async def work(what: str) -> str:
    begun.append(what)
    return what


def order_of(what: str) -> Any:
    """A flow that does this, and waits."""

    @flow(name="order")
    async def order(n: int) -> str:
        await work(what)
        return await receive(str)

    return order


OLD, NEW = order_of("old"), order_of("new")


@flow(name="other")
async def other() -> str:
    return await receive(str)


async def findings(
    world: World, *flows: Any, store: Store | None = None, only: str | None = None
) -> tuple[list[Finding], Checked]:
    parts, checked = parts_of(Engine(f"sqlite:///{world.path}", flows=flows)), Checked()
    if store is not None:
        return [one async for one in check(parts, store, only, checked=checked)], checked
    async with opened_to_read(parts.store) as opened:
        return [one async for one in check(parts, opened, only, checked=checked)], checked


async def started(world: World, engine: Engine, body: Any, *args: Any, id: str) -> Any:
    handle = await engine.start(body, *args, id=id)
    await world.parked(handle)
    return handle


async def test_what_fits_is_not_mentioned(world: World) -> None:
    engine = await world.engine(OLD)
    for n in range(3):
        await started(world, engine, OLD, n, id=str(n))
    begun.clear()
    found, checked = await findings(world, OLD)
    assert (found, checked.fit, checked.blocks, checked.replayed) == ([], 3, 0, 3)
    assert begun == []


async def test_what_would_be_blocked_is_told_with_both_sides_and_the_line(world: World) -> None:
    engine = await world.engine(OLD)
    await started(world, engine, OLD, 1, id="1")
    (found,), checked = await findings(world, NEW)
    assert (checked.fit, checked.blocks) == (0, 1)
    assert (found.verdict, found.flow, found.id, found.state) == ("blocks", "order", "1", State.SUSPENDED)
    assert (found.error, found.recorded, found.asked) == ("NonDeterminismError", "step work", "step work")
    assert found.message.startswith("operation 0: the journal holds step work (entry 1), and the code asks for")
    assert (found.path, found.line) == (__file__, NEW.fn.__code__.co_firstlineno + 2)


async def test_an_error_without_a_line_is_told_with_that_of_the_flow(world: World) -> None:
    @flow(name="order")
    async def changed() -> None: ...

    engine = await world.engine(OLD)
    await started(world, engine, OLD, 1, id="1")
    (found,), _ = await findings(world, changed)
    assert found.error == "TypeError"
    assert (found.path, found.line) == (__file__, changed.fn.__code__.co_firstlineno)


async def test_a_blocked_one_is_told_when_it_fits_again(world: World) -> None:
    old = await world.engine(OLD, version="old")
    await started(world, old, OLD, 1, id="1")
    await world.crash(old)
    new = await world.engine(NEW, version="new")
    await new.send(OLD, "1", "go")
    await world.blocked(new.handle("order", "1"))
    found, checked = await findings(world, OLD)
    assert [(one.verdict, one.id, one.state) for one in found] == [("fits again", "1", State.BLOCKED)]
    assert (checked.fit, checked.fits_again, checked.blocks) == (1, 1, 0)
    (found,), _ = await findings(world, NEW)
    assert (found.verdict, found.state) == ("blocks", State.BLOCKED)


async def test_types_that_nobody_serves_are_counted(world: World) -> None:
    engine = await world.engine(OLD, other)
    await started(world, engine, OLD, 1, id="1")
    for n in range(2):
        await started(world, engine, other, id=str(n))
    found, checked = await findings(world, OLD)
    assert found == [Finding(verdict="not served", flow="other", instances=2)]
    assert (checked.replayed, dict(checked.not_served)) == (1, {"other": 2})


async def test_one_flow_alone(world: World) -> None:
    engine = await world.engine(OLD, other)
    await started(world, engine, OLD, 1, id="1")
    await started(world, engine, other, id="1")
    found, checked = await findings(world, NEW, only="order")
    assert ([one.verdict for one in found], checked.replayed, dict(checked.not_served)) == (["blocks"], 1, {})


async def test_what_has_ended_is_left_out_and_what_has_not_begun_begins(world: World) -> None:
    engine = await world.engine(OLD)
    handle = await started(world, engine, OLD, 1, id="ended")
    await handle.send("go")
    await handle.result()
    await engine.start(OLD, 1, id="later", after=60)
    found, checked = await findings(world, NEW)
    assert (found, checked.replayed) == ([], 1)


async def test_what_is_cancelled_before_it_begins_will_run_no_code(world: World) -> None:
    @flow(name="order")
    async def changed(n: int, more: int) -> None: ...

    client = await world.engine(OLD, execute=False)
    handle = await client.start(OLD, 1, id="1", after=60)
    assert len((await findings(world, changed))[0]) == 1
    await handle.cancel()
    assert await findings(world, changed) == ([], Checked(fit=1))


async def test_long_journals_and_many_instances_come_in_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "PAGE", 2)
    engine = await world.engine(OLD)
    for n in range(5):
        await started(world, engine, OLD, n, id=str(n))
    store = Pages(world.path, world.system)
    await store.open()
    pages: list[int] = []
    for flow_now, blocks in ((OLD, 0), (NEW, 5)):
        parts, checked = parts_of(Engine(store, flows=[flow_now])), Checked()
        found = [one async for one in check(parts, store, checked=checked, progress=lambda c: pages.append(c.replayed))]
        assert (len(found), checked.blocks, checked.replayed) == (blocks, blocks, 5)
    assert pages == [2, 4, 5, 2, 4, 5]
    await store.close()


async def test_children_and_runs(world: World) -> None:
    @flow(name="child")
    async def child(n: int) -> int:
        if n < 2:
            await work(str(n))
            await continue_as_new(n + 1)
        return await receive(int)

    @flow(name="order")
    async def order() -> int:
        return await child(0)

    engine = await world.engine(order, child)
    await engine.start(order, id="1")
    (row,) = await eventually(lambda: engine._store.find(flow="child", states=None, since=None, after=None, limit=5))
    handle = engine.handle("child", row.id)
    await eventually(lambda: world.row(handle), lambda row: row.run == 2)
    await world.parked(handle)
    assert await findings(world, order, child) == ([], Checked(fit=2))


async def test_payloads_that_a_codec_has_sealed(world: World) -> None:
    engine = await world.engine(OLD, codec=Zlib())
    await started(world, engine, OLD, 1, id="1")
    parts, checked = parts_of(Engine(f"sqlite:///{world.path}", flows=[OLD], codec=Zlib())), Checked()
    async with opened_to_read(parts.store) as store:
        assert [one async for one in check(parts, store, checked=checked)] == []
    assert checked.fit == 1
    (found,), _ = await findings(world, OLD)
    assert found.error == "DoesNotFit"


def test_the_parts_of_an_engine_for_programs_without_a_loop(world: World) -> None:
    parts = parts_of(SyncEngine(f"sqlite:///{world.path}", flows=[OLD]))
    assert parts.flows["order"] is OLD


# ---------------------------------------------------------------- a database that is used meanwhile


class Moving(Through):
    """Journals look otherwise at the first reading, or for so many readings."""

    def __init__(self, real: Store, stale: int, gone: bool = False) -> None:
        super().__init__(real)
        self.stale = stale
        self.gone = gone
        self.loads = 0

    async def load(self, uids: Sequence[bytes], **how: Any) -> list[Loaded]:
        self.loads += 1
        found = await cast("Any", self.real).load(uids, **how)
        if self.loads > self.stale:
            return [] if self.gone else found
        return [
            replace(one, entries=[*one.entries[:1], *(replace(e, name=f"{self.loads}") for e in one.entries[1:])])
            for one in found
        ]


async def moving(world: World, stale: int, **how: Any) -> tuple[list[Finding], Checked, int]:
    engine = await world.engine(OLD)
    await started(world, engine, OLD, 1, id="1")
    store = Moving(engine._store, stale, **how)
    found, checked = await findings(world, OLD, store=as_store(store))
    return found, checked, store.loads


async def test_one_that_went_on_meanwhile_is_read_again(world: World) -> None:
    assert await moving(world, 1) == ([], Checked(fit=1), 2)


async def test_one_that_is_gone_meanwhile_is_not_told_of(world: World) -> None:
    assert await moving(world, 1, gone=True) == ([], Checked(), 2)


async def test_one_that_never_stands_still_is_told_of_at_last(world: World) -> None:
    found, checked, loads = await moving(world, 100)
    assert ([one.verdict for one in found], checked.blocks) == (["blocks"], 1)
    assert loads == 1 + checking.TRIES


async def test_replicas_work_on_meanwhile(world: World) -> None:
    engine = await world.engine(OLD)

    async def busy() -> None:
        for n in range(40):
            handle = await engine.start(OLD, n, id=str(n))
            await handle.send("go")
            await handle.result()

    work = asyncio.create_task(busy())
    total = 0
    while not work.done():
        found, checked = await findings(world, OLD)
        assert found == []
        total += checked.replayed
        await asyncio.sleep(0)
    await work
    assert total
