"""Queues: what was started on one runs where it is served, for life, and nowhere else."""
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

import perdure
from perdure import Engine, FlowCancelled, Handle, State, flow, step
from perdure.clock import to_datetime
from tests.support.world import World, eventually

GPU = "gpu"
ran: list[tuple[str, str]] = []
"""What ran, and in whose engine."""


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


def on(place: str) -> Callable[..., Any]:
    """Step middleware that says where steps run."""

    async def note(info: Any, args: tuple[Any, ...], inner: Any) -> Any:
        ran.append((f"{info.flow} {info.id}", place))
        return await inner(*args)

    return note


async def engines(world: World, *flows: Any, **options: Any) -> tuple[Engine, Engine]:
    """One that serves what names no queue, and one that serves gpu."""
    plain = await world.engine(*flows, step_middleware=[on("plain")], **options)
    gpu = await world.engine(*flows, queues=[GPU], step_middleware=[on(GPU)], **options)
    return plain, gpu


@step
async def work() -> str:
    return "done"


@flow
async def works() -> str:
    return await work()


@flow
async def hears() -> str:
    return await perdure.receive(str) + await work()


# ---------------------------------------------------------------- who runs what


async def test_what_was_started_on_a_queue_runs_where_it_is_served(world: World) -> None:
    plain, gpu = await engines(world, works)
    for engine in (plain, gpu):
        for queue in (None, "", GPU):
            assert await engine.run(works, id=f"{queue!r} by {id(engine)}", queue=queue) == "done"
    assert {(name.split()[1], place) for name, place in ran} == {("None", "plain"), ("''", "plain"), ("'gpu'", GPU)}


async def test_an_engine_that_serves_both_runs_both(world: World) -> None:
    both = await world.engine(works, queues=["", GPU])
    assert await both.run(works, id="1") == "done"
    assert await both.run(works, id="2", queue=GPU) == "done"


async def test_what_nobody_serves_waits_and_runs_as_soon_as_somebody_does(world: World) -> None:
    plain = await world.engine(works)
    handles = await plain.start_many(works, [("1",), ("2",)], queue=GPU)
    assert await plain.run(works, id="3") == "done"
    assert [await handle.state() for handle in handles] == [State.SCHEDULED] * 2
    await world.engine(works, queues=[GPU])
    assert [await handle.result() for handle in handles] == ["done"] * 2


async def test_what_waits_in_a_queue_that_nobody_serves_holds_up_nothing(world: World) -> None:
    plain = await world.engine(works, max_running=5)
    await plain.start_many(works, [(f"gpu {n}",) for n in range(700)], queue=GPU)
    handles = await plain.start_many(works, [(f"plain {n}",) for n in range(20)])
    assert [await handle.result() for handle in handles] == ["done"] * 20


async def test_a_client_names_any_queue(world: World) -> None:
    client = await world.engine(execute=False)
    await world.engine(works, queues=[GPU])
    assert await client.run("works", id="1", queue=GPU) == "done"


async def test_starting_again_with_another_queue_changes_nothing(world: World) -> None:
    plain = await world.engine(works)
    await plain.start(works, id="1", queue=GPU)
    await plain.start(works, id="1")
    assert await infos(plain) == {"works 1": GPU}


async def infos(engine: Engine) -> dict[str, str]:
    """The queue of each instance, as `find` tells it."""
    return {f"{info.flow} {info.id}": info.queue async for info in engine.find()}


async def test_who_is_on_no_queue_has_one_text_in_memory_for_flow_and_lane(world: World) -> None:
    engine = await world.engine(works)
    handle = await engine.start(works, id="1", at=engine_time(engine) + timedelta(days=1))
    row = await world.row(handle)
    assert row.lane is row.flow


def engine_time(engine: Engine) -> datetime:
    assert engine._member is not None
    return to_datetime(engine._member.now())


# ---------------------------------------------------------------- for life


@flow
async def counts(n: int) -> str:
    await work()
    if n:
        await perdure.continue_as_new(n - 1)
    return "counted"


async def test_the_next_run_is_on_the_same_queue(world: World) -> None:
    plain, gpu = await engines(world, counts)
    handle = await plain.start(counts, 3, id="1", queue=GPU)
    assert await handle.result() == "counted"
    assert ran == [("counts 1", GPU)] * 4
    assert (await gpu.panel(counts, "1")).queue == GPU


async def test_what_was_unloaded_goes_on_where_its_queue_is_served(world: World) -> None:
    plain, _ = await engines(world, hears, max_resident=0)
    handle = await plain.start(hears, id="1", queue=GPU)
    await world.unloaded(handle)
    await handle.send("it is ")
    assert await handle.result() == "it is done"
    assert ran == [("hears 1", GPU)]


async def test_a_message_that_came_early_is_got_where_the_queue_is_served(world: World) -> None:
    plain, _ = await engines(world, hears)
    await plain.send(hears, "1", "it was ")
    assert await plain.run(hears, id="1", queue=GPU) == "it was done"
    assert ran == [("hears 1", GPU)]


async def test_after_a_takeover_it_waits_for_the_next_one_who_serves_the_queue(world: World) -> None:
    plain, gpu = await engines(world, hears)
    handle = await plain.start(hears, id="1", queue=GPU)
    await world.parked(handle)
    await world.restart(gpu)
    await handle.send("it is ")
    assert await handle.result() == "it is done"
    assert ran == [("hears 1", GPU)]


async def test_a_restart_is_on_the_same_queue(world: World) -> None:
    plain, _ = await engines(world, works)
    handle = await plain.start(works, id="1", queue=GPU)
    await handle.result()
    panel = await plain.panel(works, "1")
    panel.entries.remove("0")
    assert await (await panel.restart()).result() == "done"
    assert ran == [("works 1", GPU)] * 2


async def test_who_was_deleted_may_begin_anew_on_another_queue(world: World) -> None:
    plain, _ = await engines(world, works)
    await plain.run(works, id="1", queue=GPU)
    await plain.delete(works, "1")
    await plain.run(works, id="1")
    assert ran == [("works 1", GPU), ("works 1", "plain")]


# ---------------------------------------------------------------- cancelling


tidied: list[str] = []


@step
async def tidy() -> None:
    tidied.append("tidied")


@flow
async def tidies() -> None:
    try:
        await perdure.receive(str)
    finally:
        await tidy()


async def test_who_is_cancelled_tidies_up_where_its_queue_is_served(world: World) -> None:
    tidied.clear()
    plain, _ = await engines(world, tidies, max_resident=0)
    for n in range(10):
        handle = await plain.start(tidies, id=str(n), queue=GPU)
        await world.unloaded(handle)
        await handle.cancel()
        with pytest.raises(FlowCancelled):
            await handle.result()
    assert ran == [(f"tidies {n}", GPU) for n in range(10)]
    assert len(tidied) == 10


async def test_who_is_cancelled_ends_although_nobody_serves_its_queue(world: World) -> None:
    plain, gpu = await engines(world, tidies)
    begun = await plain.start(tidies, id="1", queue=GPU)
    await world.parked(begun)
    await world.close(gpu)
    scheduled = await plain.start(tidies, id="2", queue="nobody")
    for handle in (begun, scheduled):
        await handle.cancel("enough")
        with pytest.raises(FlowCancelled):
            await handle.result()
    assert ran == []


# ---------------------------------------------------------------- children


@flow
async def parent(queue: str | None) -> list[str]:
    first = await works()
    second = await perdure.run(works, id="run", queue=queue)
    handle = await perdure.start(works, id="start", queue=queue)
    (many,) = await perdure.start_many(works, [("many",)], queue=queue)
    return [first, second, await handle.result(), await many.result()]


@pytest.mark.parametrize(
    ("own", "asked", "found"),
    [(GPU, None, GPU), (GPU, "", ""), (GPU, "other", "other"), (None, None, ""), (None, GPU, GPU)],
)
async def test_a_child_is_on_its_parents_queue_unless_another_is_named(
    world: World, own: str | None, asked: str | None, found: str
) -> None:
    engine = await world.engine(parent, works, queues=["", GPU, "other"])
    assert await engine.run(parent, asked, id="1", queue=own) == ["done"] * 4
    queues = await infos(engine)
    assert queues.pop("parent 1") == (own or "")
    asked_for = {queues.pop(f"works {id}") for id in ("run", "start", "many")}
    assert asked_for == {found}
    assert list(queues.values()) == [own or ""]  # the one that was called


async def test_a_cluster_that_serves_one_queue_is_whole(world: World) -> None:
    gpu = await world.engine(parent, works, queues=[GPU])
    assert await gpu.run(parent, None, id="1", queue=GPU) == ["done"] * 4


asked_for = GPU


@flow
async def starts() -> str:
    handle = await perdure.start(works, id="child", queue=asked_for)
    await perdure.receive(str)
    return await handle.result()


async def test_another_queue_in_the_code_changes_nothing_for_who_was_started(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await world.engine(starts, works, queues=["", GPU])
    handle = await engine.start(starts, id="1")
    await world.parked(handle)
    monkeypatch.setitem(globals(), "asked_for", "")
    engine = await world.restart(engine)
    await handle_of(engine).send("go on")
    assert await handle_of(engine).result() == "done"
    assert (await infos(engine))["works child"] == GPU


def handle_of(engine: Engine) -> Handle[str]:
    return engine.handle(starts, "1")


# ---------------------------------------------------------------- schedules


async def test_a_schedule_and_what_it_starts_are_on_its_queue(world: World) -> None:
    plain, _ = await engines(world, works)
    await plain.schedule(works, 60, id="s", queue=GPU)
    world.clock.advance(60)
    await eventually(lambda: asyncio.sleep(0, ran))
    assert {place for _, place in ran} == {GPU}
    assert set((await infos(plain)).values()) == {GPU}


async def test_a_schedule_moves_to_another_queue(world: World) -> None:
    plain = await world.engine(works)
    await plain.schedule(works, 60, id="s", queue="nobody")
    await plain.schedule(works, 60, id="s")
    await plain.schedule(works, 60, id="s")
    assert await infos(plain) == {"perdure.schedule s": ""}
    world.clock.advance(60)
    await eventually(lambda: infos(plain), lambda found: len(found) == 2)
    assert set((await infos(plain)).values()) == {""}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("queue", ["\x1f", "a\nb", "\x7f", "\0", "x" * 256, "\ud800", "\x85"])
async def test_a_name_that_no_queue_may_have_is_refused(world: World, queue: str) -> None:
    engine = await world.engine(works, parent)
    with pytest.raises(ValueError, match="queue"):
        Engine("memory://", queues=[queue])
    with pytest.raises(ValueError, match="queue"):
        await engine.start(works, id="1", queue=queue)
    with pytest.raises(ValueError, match="queue"):
        await engine.schedule(works, 60, id="1", queue=queue)
    assert await infos(engine) == {}


def test_one_text_is_no_sequence_of_queues() -> None:
    with pytest.raises(TypeError, match=r"\['gpu'\]"):
        Engine("memory://", queues="gpu")


async def test_a_flow_whose_name_could_be_taken_for_a_lane_is_refused(world: World) -> None:
    @flow(name="\x1fgpu\x1fworks")
    async def bad() -> None: ...

    @flow
    async def calls_bad() -> None:
        with pytest.raises(ValueError, match="name"):
            await perdure.start("\x1fgpu\x1fworks")

    with pytest.raises(ValueError, match="name"):
        Engine("memory://", flows=[bad])
    client = await world.engine(execute=False)
    with pytest.raises(ValueError, match="name"):
        await client.start("\x1fgpu\x1fworks", id="1")
    engine = await world.engine(calls_bad)
    await engine.run(calls_bad, id="1")
