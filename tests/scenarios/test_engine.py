"""The engine from outside: starting is idempotent, what is acknowledged is kept, and it ends well or hard."""

import asyncio
import signal
import sys
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    AlreadyStarted,
    DoesNotFit,
    Engine,
    EngineClosed,
    FlowCancelled,
    FlowFailed,
    InstanceNotFound,
    NotInFlow,
    NotRegistered,
    Outgoing,
    State,
    capture,
    delay,
    expose,
    exposed,
    flow,
    handle,
    receive,
    step,
)
from perdure.clock import to_datetime
from tests.support.clock import until
from tests.support.world import World, eventually


@flow(name="adds")
async def adds(a: int, b: int = 10) -> int:
    return await capture(lambda: a + b)


@flow(name="waits")
async def waits() -> str:
    return await receive(str)


# ---------------------------------------------------------------- starting


async def test_start_run_and_result(world: World) -> None:
    engine = await world.engine(adds)
    handle = await engine.start(adds, 1, 2, id="1")
    assert (handle.flow, handle.id) == ("adds", "1")
    assert await handle.result(timeout=10) == 3
    assert await engine.run(adds, 5, id="2", timeout=10) == 15
    assert await engine.run("adds", 5, 6, id="3", timeout=10) == 11
    assert await handle.state() is State.SUCCEEDED


async def test_starting_again_changes_nothing(world: World) -> None:
    ran: list[int] = []

    @flow
    async def counts(x: int) -> int:
        return await capture(lambda: ran.append(x) or len(ran))

    engine = await world.engine(counts)
    assert await engine.run(counts, 1, id="1", timeout=10) == 1
    assert await engine.run(counts, 1, id="1", timeout=10) == 1
    both = await asyncio.gather(*(engine.start(counts, 7, id="2") for _ in range(5)))
    assert [await h.result(timeout=10) for h in both] == [2] * 5
    engine = await world.restart(engine)
    assert await engine.run(counts, 1, id="1", timeout=10) == 1
    assert ran == [1, 7]


async def test_the_second_run_waits_for_the_first_and_gets_its_outcome(world: World) -> None:
    @flow
    async def fails() -> None:
        await receive(str)
        raise ValueError("mine", 1)

    engine = await world.engine(fails, waits)
    first = asyncio.create_task(engine.run(waits, id="1", timeout=10))
    second = asyncio.create_task(engine.run(waits, id="1", timeout=10))
    await eventually(lambda: found(engine, waits))
    await engine.send(waits, "1", "it")
    assert await asyncio.gather(first, second) == ["it", "it"]

    failing = [asyncio.create_task(engine.run(fails, id="f", timeout=10)) for _ in range(2)]
    await engine.send(fails, "f", "go")
    for outcome in await asyncio.gather(*failing, return_exceptions=True):
        assert isinstance(outcome, FlowFailed)
        assert isinstance(outcome.__cause__, ValueError)
        assert outcome.__cause__.args == ("mine", 1)
    with pytest.raises(FlowFailed, match="mine"):
        await engine.run(fails, id="f", timeout=10)


async def found(engine: Engine, *args: Any, **kwargs: Any) -> list[Any]:
    return [info async for info in engine.find(*args, **kwargs)]


async def test_other_arguments_are_refused_and_the_first_life_goes_on(world: World) -> None:
    engine = await world.engine(adds)
    assert await engine.run(adds, 1, id="1", timeout=10) == 11
    with pytest.raises(AlreadyStarted) as refused:
        await engine.start(adds, 2, id="1")
    assert (refused.value.flow, refused.value.id) == ("adds", "1")
    assert await engine.handle(adds, "1").result(timeout=10) == 11


async def test_start_many(world: World) -> None:
    engine = await world.engine(adds)
    handles = await engine.start_many(adds, [(str(n), n, n) for n in range(100)])
    assert [await h.result(timeout=10) for h in handles] == [2 * n for n in range(100)]
    assert await engine.start_many(adds, []) == []
    with pytest.raises(AlreadyStarted):
        await engine.start_many(adds, [("100", 1, 1), ("7", 8, 8), ("101", 2, 2)])
    assert await engine.handle(adds, "101").result(timeout=10) == 4  # the others are started


async def test_at_and_after(world: World) -> None:
    engine = await world.engine(adds)
    instant = to_datetime(world.clock.wall()) + timedelta(hours=1)
    at = await engine.start(adds, 1, id="at", at=instant)
    after = await engine.start(adds, 2, id="after", after=timedelta(hours=2))
    assert {await at.state(), await after.state()} == {State.SCHEDULED}
    (info,) = await found(engine, adds, state=State.SCHEDULED, since=None) and [
        i for i in await found(engine, adds) if i.id == "at"
    ]
    assert info.due_at == instant
    with pytest.raises(TypeError):
        await engine.start(adds, 1, id="x", at=instant, after=1)
    with pytest.raises(ValueError, match="no time zone"):
        await engine.start(adds, 1, id="x", at=datetime(2030, 1, 1))  # noqa: DTZ001
    engine = await world.restart(engine)
    world.clock.advance(3600)
    assert await engine.handle(adds, "at").result(timeout=10) == 11
    assert await after.__class__("adds", "after", outside=engine).state() is State.SCHEDULED
    world.clock.advance(3600)
    assert await engine.handle(adds, "after").result(timeout=10) == 12


async def test_arguments_by_keyword_come_in_a_partial(world: World) -> None:
    import functools

    engine = await world.engine(adds)
    assert await engine.run(functools.partial(adds, b=1), 2, id="1", timeout=10) == 3
    with pytest.raises(TypeError):
        await engine.start(adds, id="2")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        await engine.start(adds, 1, 2, 3, id="2")  # type: ignore[call-arg]


async def test_flows_may_come_as_a_module(world: World) -> None:
    module = types.ModuleType("orders")
    module.adds, module.waits, module.other = adds, waits, 3  # type: ignore[attr-defined]
    engine = await world.engine(module)
    assert await engine.run("adds", 1, 2, id="1", timeout=10) == 3
    with pytest.raises(ValueError, match="no flow in it"):
        Engine(world.store(), flows=[types.ModuleType("empty")])
    with pytest.raises(TypeError, match="not a flow"):
        Engine(world.store(), flows=[test_start_run_and_result])  # type: ignore[list-item]

    @flow(name="adds")
    async def another() -> None: ...

    with pytest.raises(ValueError, match="'adds'"):
        Engine(world.store(), flows=[adds, another])


# ---------------------------------------------------------------- looking


async def test_find(world: World) -> None:
    engine = await world.engine(adds, waits)
    await engine.run(adds, 1, id="done", timeout=10)
    parked = await engine.start(waits, id="parked")
    await world.parked(parked)
    world.clock.advance(100)
    later = to_datetime(world.clock.wall())
    await engine.start(adds, 1, id="later", after=100)
    assert [(i.flow, i.id, i.state) for i in await found(engine)] == [
        ("adds", "done", State.SUCCEEDED), ("waits", "parked", State.SUSPENDED), ("adds", "later", State.SCHEDULED),
    ]  # fmt: skip
    assert [i.id for i in await found(engine, adds)] == ["done", "later"]
    assert [i.id for i in await found(engine, "waits")] == ["parked"]
    assert [i.id for i in await found(engine, state=State.SUSPENDED)] == ["parked"]
    assert [i.id for i in await found(engine, state=[State.SCHEDULED, State.SUCCEEDED])] == ["done", "later"]
    assert [i.id for i in await found(engine, since=later)] == ["later"]
    assert await found(engine, state=State.FAILED) == []


async def test_find_pages_through_many(world: World) -> None:
    engine = await world.engine(adds)
    await engine.start_many(adds, [(str(n), n) for n in range(1203)])
    assert [i.id for i in await found(engine)] == [str(n) for n in range(1203)]


async def test_a_result_that_takes_longer_than_one_waits(world: World) -> None:
    engine = await world.engine(waits)
    handle = await engine.start(waits, id="1")
    with pytest.raises(TimeoutError, match="it goes on"):
        await handle.result(timeout=0.01)
    await handle.send("late")
    assert await handle.result(timeout=10) == "late"


async def test_an_instance_that_is_not_there(world: World) -> None:
    engine = await world.engine(waits)
    nobody = engine.handle(waits, "nobody")
    for ask in (nobody.result, nobody.state, nobody.exposed):
        with pytest.raises(InstanceNotFound):
            await ask()


async def test_exposed_state_is_read_from_outside_when_it_is_durable(world: World) -> None:
    @flow
    async def shows() -> list[Any]:
        expose("n", 1)
        expose("items", ["a"])
        await receive(str)
        expose("n", 2)
        mine = [exposed("n"), exposed("n", returns=int), exposed("nothing")]
        await receive(str)
        return mine

    @flow
    async def looks() -> list[Any]:
        other = handle(shows, "1")
        return [await other.exposed("n", returns=int), await other.exposed()]

    engine = await world.engine(shows, looks)
    h = await engine.start(shows, id="1")
    await world.parked(h)
    assert await h.exposed() == {"n": 1, "items": ["a"]}
    assert await h.exposed("n", returns=int) == 1
    assert await h.exposed("none", returns=int) is None
    with pytest.raises(DoesNotFit):
        await h.exposed("n", returns=str)
    engine = await world.restart(engine)
    h = engine.handle(shows, "1")
    assert await h.exposed("n", returns=int) == 1
    await h.send("go")
    await eventually(lambda: h.exposed("n", returns=int), lambda n: n == 2)
    assert await engine.run(looks, id="l", timeout=10) == [2, {"n": 2, "items": ["a"]}]
    await h.send("end")
    assert await h.result(timeout=10) == [2, 2, None]
    assert await h.exposed("n", returns=int) == 2  # still there when it has ended


async def test_health(world: World) -> None:
    engine = await world.engine(waits, adds, drain=0)
    await world.parked(await engine.start(waits, id="1"))
    await eventually(engine.health, lambda health: health.parked == 1)
    health = await engine.health()
    assert (health.running, health.parked, health.blocked, health.paused, list(health.hung)) == (0, 1, 0, None, [])
    assert timedelta(0) < health.lease_left <= timedelta(seconds=10)
    assert health.loop_lag < timedelta(seconds=1)
    assert "parked=1" in repr(health)
    assert (await (await world.engine(execute=False)).health()).replica == "client"


# ---------------------------------------------------------------- clients and several engines


async def test_a_client_starts_sends_waits_and_runs_nothing(world: World) -> None:
    client = await world.engine(execute=False)
    handle = await client.start("waits", id="1")
    await client.send("waits", "1", "early", key="k")
    many = await client.start_many(adds, [("a", 1, 2), ("b", 3, 4)])
    await client.send_many(waits, [Outgoing("1", "second")])
    await asyncio.sleep(0.01)
    assert {i.state for i in await found(client)} == {State.SCHEDULED}
    await world.engine(waits, adds)
    assert await handle.result(timeout=10) == "early"
    assert [await h.result(timeout=10) for h in many] == [3, 7]
    with pytest.raises(AlreadyStarted):
        await client.start(adds, 9, 9, id="a")
    other = await client.start(waits, id="2")
    await other.cancel("by the client")
    with pytest.raises(FlowCancelled, match="by the client"):
        await other.result(timeout=10)


async def test_two_engines_share_the_work_and_each_flow_has_one_owner(world: World) -> None:
    ran: list[str] = []

    @flow
    async def both(n: int) -> int:
        first = await capture(lambda: ran.append(f"{n} a") or n)
        got = await receive(int)
        return first + got + await capture(lambda: ran.append(f"{n} b") or 1)

    one, two = await world.engine(both), await world.engine(both)
    handles = [await (one, two)[n % 2].start(both, n, id=str(n)) for n in range(20)]
    await (await world.engine(execute=False)).send_many(both, [Outgoing(str(n), 100) for n in range(20)])
    assert [await h.result(timeout=10) for h in handles] == [n + 101 for n in range(20)]
    assert sorted(ran) == sorted([f"{n} {x}" for n in range(20) for x in "ab"])


async def test_a_result_of_another_engine(world: World) -> None:
    here, there = await world.engine(waits), await world.engine(waits)
    await here.start(waits, id="1")
    waiting = asyncio.create_task(there.handle(waits, "1").result(timeout=10))
    await there.send(waits, "1", "across")
    assert await waiting == "across"


async def test_the_other_engine_takes_over_when_one_dies(world: World) -> None:
    one, two = await world.engine(waits, adds), await world.engine(waits, adds)
    handles = [await one.start(waits, id=str(n)) for n in range(5)]
    for h in handles:
        await world.parked(h)
    await world.crash(one)
    for h in handles:
        await two.send(waits, h.id, h.id)
        assert await two.handle(waits, h.id).result(timeout=10) == h.id


# ---------------------------------------------------------------- the end


@pytest.mark.fault(4)
async def test_drain_lets_running_steps_end_and_starts_none(world: World) -> None:
    ran: list[str] = []
    begun, end = asyncio.Event(), asyncio.Event()

    @step
    async def long(name: str) -> str:
        ran.append(name)
        begun.set()
        await end.wait()
        return name

    @flow
    async def two() -> list[str]:
        return [await long("first"), await long("second")]

    engine = await world.engine(two)
    await engine.start(two, id="1")
    await begun.wait()
    closing = asyncio.create_task(world.close(engine))
    await asyncio.sleep(0.01)
    assert not closing.done()
    end.set()
    await closing
    assert ran == ["first"]
    engine = await world.engine(two)
    assert await engine.handle(two, "1").result(timeout=10) == ["first", "second"]
    assert ran == ["first", "second"]


async def test_a_flow_that_waits_is_given_back_at_once(world: World) -> None:
    @flow
    async def sleeps() -> str:
        await delay(3600)
        return "slept"

    engine = await world.engine(sleeps, waits)
    handles = [await engine.start(sleeps, id="s"), await engine.start(waits, id="w")]
    for h in handles:
        await world.parked(h)
    async with asyncio.timeout(5):
        await world.close(engine)
    await world.engine(execute=False)
    rows = [await world.row(h) for h in handles]
    assert [(r.state, r.owner) for r in rows] == [(State.SUSPENDED, None)] * 2


async def test_after_the_end_every_call_says_so(world: World) -> None:
    unopened = Engine(world.store(), flows=[waits])
    with pytest.raises(EngineClosed):
        await unopened.start(waits, id="1")
    engine = await world.engine(waits)
    handle = await engine.start(waits, id="1")
    waiting = asyncio.create_task(handle.result())
    await asyncio.sleep(0.005)
    await world.close(engine)
    with pytest.raises(EngineClosed):
        await waiting
    for call in (handle.result, handle.state, lambda: engine.send(waits, "1", "x"), engine.health):
        with pytest.raises(EngineClosed):
            await call()
    with pytest.raises(EngineClosed, match="entered once"):
        await engine.__aenter__()


async def test_an_engines_own_methods_in_a_flow_name_the_right_call(world: World) -> None:
    @flow
    async def wrong() -> list[str]:
        said: list[str] = []
        for call in (lambda: engine.start(waits, id="x"), lambda: engine.send(waits, "x", 1), engine.health):
            try:
                await call()
            except NotInFlow as error:
                said.append(str(error))
        return said

    engine = await world.engine(wrong, waits)
    said = await engine.run(wrong, id="1", timeout=10)
    assert len(said) == 3
    assert all("perdure.start()" in text for text in said)
    assert await found(engine, waits) == []


async def test_a_flow_of_another_name_than_known_here(world: World) -> None:
    engine = await world.engine(waits)
    with pytest.raises(NotRegistered, match="registered are: waits"):
        await engine.start("unknown", id="1")

    @flow(name="waits")
    async def impostor() -> None: ...

    with pytest.raises(NotRegistered, match="another flow"):
        await engine.start(impostor, id="1")


# ---------------------------------------------------------------- signals, in a process of its own


@asynccontextmanager
async def serving(db: Path, *args: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.serving", str(db), *args,
        stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def said(process: asyncio.subprocess.Process, *wanted: str) -> None:
    """The process has printed all of these lines, in whatever order."""
    assert process.stdout is not None
    missing = set(wanted)
    async with asyncio.timeout(20):
        while missing:
            line = (await process.stdout.readline()).decode().strip()
            assert line, f"the process ended without saying {missing!r}"
            missing.discard(line)


@pytest.mark.fault(4)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_drains_at_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    db = tmp_path / "served.db"
    async with serving(db, "10", "brief", "waits") as process:
        await said(process, "ready")
        process.send_signal(number)
        await said(process, "ended")
        assert await process.wait() == 0
    async with Engine(f"sqlite:///{db}", execute=False) as client:
        assert await client.handle("served", "brief").state() in {State.SUCCEEDED, State.SCHEDULED}
        assert await client.handle("served", "waits").state() is State.SUSPENDED


@pytest.mark.fault(4)
async def test_a_second_signal_stops_hard(tmp_path: Path) -> None:
    db = tmp_path / "served.db"
    async with serving(db, "60", "slow") as process:
        await said(process, "ready", "step")
        process.send_signal(signal.SIGTERM)
        ended = asyncio.create_task(said(process, "ended"))
        await asyncio.sleep(0.1)
        while not ended.done():  # signals that are sent at once count as one
            process.send_signal(signal.SIGTERM)
            await asyncio.wait({ended}, timeout=3)
        await ended
        assert await process.wait() == 0
    async with Engine(f"sqlite:///{db}", execute=False) as client:
        assert await client.handle("served", "slow").state() is State.SCHEDULED


async def test_urls(tmp_path: Path) -> None:
    async with Engine("memory://", flows=[adds]) as engine:
        assert await engine.run(adds, 1, id="1", timeout=10) == 11
    async with Engine(f"sqlite:///{tmp_path}/a.db", flows=[adds]) as engine:
        assert await engine.run(adds, 1, id="1", timeout=10) == 11
    with pytest.raises(ValueError, match="sqlite"):
        Engine("oracle://x")


async def test_a_codec_hook_sees_all_payloads(tmp_path: Path) -> None:
    class Reverse:
        def encode(self, data: bytes, /) -> bytes:
            return b"r" + data[::-1]

        def decode(self, data: bytes, /) -> bytes:
            assert data[:1] == b"r"
            return data[:0:-1]

    @flow
    async def secret(word: str) -> str:
        expose("word", word)
        again = await capture(lambda: word * 2)
        return again + await receive(str)

    world = World("sqlite", tmp_path)
    engine = await world.engine(secret, codec=Reverse())
    handle = await engine.start(secret, "classified", id="1")
    await world.parked(handle)
    engine = await world.restart(engine)
    await engine.send(secret, "1", "classified")
    assert await engine.handle(secret, "1").result(timeout=10) == "classified" * 3
    assert await engine.handle(secret, "1").exposed("word", returns=str) == "classified"
    await world.end()
    await until(lambda: not Path(f"{world.path}-wal").exists() or not Path(f"{world.path}-wal").stat().st_size)
    assert b"classified" not in world.path.read_bytes()
