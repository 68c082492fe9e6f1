"""What a flow's body or a process cannot do gets an error of its own class, or a state with a reason; others go on."""

import asyncio
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from perdure import (
    Engine,
    EngineClosed,
    FlowFailed,
    ForkedEngine,
    NotDurable,
    PerdureError,
    State,
    capture,
    flow,
    receive,
    step,
)
from tests.support.clock import until
from tests.support.world import World, eventually


@flow(name="takes")
async def takes(value: Any = None) -> Any:
    return await receive(object)


async def why(engine: Engine, body: Any, *args: Any) -> BaseException:
    """The flow's own error."""
    with pytest.raises(FlowFailed) as failed:
        await engine.run(body, *args, id="why", timeout=10)
    assert failed.value.__cause__ is not None
    return failed.value.__cause__


# ---------------------------------------------------------------- what a flow's body cannot do


@pytest.mark.parametrize(
    "work",
    [
        lambda: asyncio.to_thread(int),
        lambda: asyncio.get_running_loop().run_in_executor(None, int),
        lambda: asyncio.open_connection("127.0.0.1", 1),
        lambda: asyncio.create_subprocess_exec("true"),
        lambda: asyncio.start_server(lambda r, w: None, "127.0.0.1", 0),
        lambda: asyncio.get_running_loop().getaddrinfo("localhost", 1),
        lambda: asyncio.get_running_loop().sock_recv(None, 1),  # type: ignore[arg-type]
    ],
)
async def test_input_and_output_in_a_flows_own_body(world: World, work: Callable[[], Any]) -> None:
    @flow
    async def tries() -> str:
        await capture(lambda: None)
        try:
            await work()
        except NotDurable as error:
            return str(error)
        return "no error"

    engine = await world.engine(tries)
    said = await engine.run(tries, id="1", timeout=10)
    assert "capture()" in said


@pytest.mark.parametrize("kind", ["event", "lock", "queue", "future"])
async def test_a_primitive_shared_between_flows(world: World, kind: str) -> None:
    """Who wakes another flow gets the error, and the one that waits is not woken behind the journal's back."""
    shared: dict[str, Any] = {}

    @flow(name="waiter")
    async def waiter() -> str:
        if kind == "future":
            shared[kind] = asyncio.get_running_loop().create_future()
            waiting = asyncio.ensure_future(asyncio.wait([shared[kind]]))
        elif kind == "lock":
            shared[kind] = asyncio.Lock()
            await shared[kind].acquire()
            waiting = asyncio.ensure_future(shared[kind].acquire())
        else:
            shared[kind] = asyncio.Event() if kind == "event" else asyncio.Queue[int]()
            waiting = asyncio.ensure_future(shared[kind].wait() if kind == "event" else shared[kind].get())
        got = await receive(str)
        waiting.cancel()
        return f"{got} {waiting.done()}"

    def wake() -> None:
        {
            "event": lambda: shared[kind].set(), "lock": lambda: shared[kind].release(),
            "queue": lambda: shared[kind].put_nowait(1), "future": lambda: shared[kind].set_result(1),
        }[kind]()  # fmt: skip

    @flow(name="waker")
    async def waker(how: str) -> str:
        try:
            if how == "flow":
                wake()
            else:
                await capture(wake, name="wakes")
        except NotDurable as error:
            return str(error)
        return "no error"

    engine = await world.engine(waiter, waker)
    waiting = await engine.start(waiter, id="w")
    await world.parked(waiting)
    said = await engine.run(waker, "flow", id="1", timeout=10)
    assert "send it a message" in said
    await waiting.send("by message")
    assert await waiting.result(timeout=10) == "by message False"


async def test_a_step_that_wakes_a_flow_by_a_primitive(world: World) -> None:
    events: list[asyncio.Event] = []

    @step
    async def sets() -> None:
        events[0].set()

    @flow
    async def waits_for_step() -> str:
        events.append(asyncio.Event())
        task = asyncio.create_task(events[0].wait())
        await asyncio.sleep(0)
        try:
            await sets()
        except NotDurable as error:
            return str(error)
        finally:
            task.cancel()
        return "no error"

    engine = await world.engine(waits_for_step)
    assert "a step" in await engine.run(waits_for_step, id="1", timeout=10)


@pytest.mark.peer(21, 24)
async def test_a_flow_that_waits_for_nothing(world: World) -> None:
    @flow
    async def hangs() -> None:
        await capture(lambda: None)

        async def branch() -> None:
            await asyncio.Event().wait()

        await asyncio.gather(branch(), asyncio.Queue[int]().get())

    engine = await world.engine(hangs, takes)
    handle = await engine.start(hangs, id="1")
    reason = await world.blocked(handle)
    assert reason.startswith("WaitsForNothing")
    assert f"test_bad_flows.py:{hangs.fn.__code__.co_firstlineno + 7}" in reason
    assert f"test_bad_flows.py:{hangs.fn.__code__.co_firstlineno + 5}" in reason
    assert "asyncio/queues.py" in reason
    assert len(await world.journal(handle)) == 2
    assert (await engine.health()).blocked == 1
    (info,) = [i async for i in engine.find(state=State.BLOCKED)]
    assert info.reason == reason
    other = await engine.start(takes, id="2")
    await other.send("others go on")
    assert await other.result(timeout=10) == "others go on"


async def test_a_blocked_flow_can_be_cancelled(world: World) -> None:
    @flow
    async def hangs() -> None:
        await asyncio.Event().wait()

    engine = await world.engine(hangs)
    handle = await engine.start(hangs, id="1")
    await world.blocked(handle)
    await handle.cancel()
    await eventually(handle.state, lambda state: state is State.CANCELLED)


async def test_a_flow_that_spins(world: World) -> None:
    @flow
    async def spins() -> None:
        await capture(lambda: None)
        while True:
            await asyncio.sleep(0)

    engine = await world.engine(spins, takes)
    handle = await engine.start(spins, id="1")
    other = await engine.start(takes, id="2")
    await other.send("others go on")
    assert await other.result(timeout=10) == "others go on"
    reason = await world.blocked(handle)
    assert reason.startswith("Spins")
    assert "test_bad_flows.py" in reason
    assert len(await world.journal(handle)) == 2


async def test_a_flow_that_never_rests_but_waits_for_a_step_goes_on(world: World) -> None:
    """As anyio does, which repeats a cancellation on every turn."""
    go_on = asyncio.Event()

    @step
    async def long() -> str:
        await go_on.wait()
        return "done"

    @flow
    async def restless() -> str:
        task = asyncio.create_task(long())
        while not task.done():
            await asyncio.sleep(0)
        return task.result()

    engine = await world.engine(restless)
    handle = await engine.start(restless, id="1")
    await asyncio.sleep(0.05)
    go_on.set()
    assert await handle.result(timeout=10) == "done"


# ---------------------------------------------------------------- the process


@pytest.mark.fault(5)
async def test_a_step_that_blocks_the_loop_is_named(world: World, caplog: pytest.LogCaptureFixture) -> None:
    @step(name="rude")
    async def rude() -> None:
        deadline = time.monotonic() + 5
        while not said() and time.monotonic() < deadline:
            time.sleep(0.01)

    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if "has been blocked" in r.getMessage()]

    @flow(name="polite")
    async def polite() -> None:
        await rude()

    engine = await world.engine(polite, stall_limit=0.1, lease=0.4)
    await engine.run(polite, id="7", timeout=10)
    (text,) = said()
    assert "step rude of polite '7'" in text
    assert "test_bad_flows.py" in text  # with the stack
    await until(lambda: any("turns again" in r.getMessage() for r in caplog.records))


@pytest.mark.fault(5)
async def test_a_flow_body_that_blocks_the_loop_is_named(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if "has been blocked" in r.getMessage()]

    @flow(name="thinks")
    async def thinks() -> None:
        deadline = time.monotonic() + 5
        while not said() and time.monotonic() < deadline:
            time.sleep(0.01)

    engine = await world.engine(thinks, stall_limit=0.1, lease=0.4)
    await engine.run(thinks, id="8", timeout=10)
    assert "the body of flow thinks '8'" in said()[0]


@pytest.mark.fault(7)
async def test_an_engine_in_a_forked_child(world: World) -> None:
    engine = await world.engine(takes)
    handle = await engine.start(takes, id="1")
    calls: list[Callable[[], Any]] = [
        lambda: engine.start(takes, id="2"),
        lambda: handle.send("from the child"),
        lambda: handle.result(),
        lambda: engine.health(),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # 3.12 warns of forks in threaded processes: that is the point
        pid = os.fork()
    if pid == 0:
        wrong = 0
        for call in calls:
            try:
                call().send(None)
                wrong += 1
            except ForkedEngine:
                pass
            except BaseException:
                wrong += 10
        os._exit(wrong)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    await handle.send("from the parent")
    assert await handle.result(timeout=10) == "from the parent"


async def test_options_that_make_no_sense(world: World) -> None:
    for options in ({"lease": 0}, {"stall_limit": -1}, {"max_resident": -1}, {"max_running": 0}):
        with pytest.raises(ValueError, match="must be"):
            Engine(world.store(), **options)  # type: ignore[arg-type]
    engine = Engine(world.store())
    with pytest.raises(EngineClosed, match="async with"):
        await engine.health()


def test_every_error_is_of_one_tree() -> None:
    import perdure

    errors = [v for v in vars(perdure).values() if isinstance(v, type) and issubclass(v, BaseException)]
    assert len(errors) > 20
    assert all(issubclass(e, PerdureError | Warning) and e.__doc__ for e in errors)
