"""The rules of the flow loop, one by one: order, who may call it, when it is idle, generators, unloading."""

import asyncio
import contextlib
import contextvars
import gc
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from perdure import Engine, NotDurable, NotInFlow, State, capture, delay, flow, receive, step
from perdure.engine import loop as flow_loop
from perdure.engine import ordering
from perdure.model.records import Kind, Loaded
from perdure.stores.memory import MemoryStore
from perdure.system import System
from tests.support.clock import ManualClock, manual_system, until

effects: list[str] = []
"""What really happened, in steps and elsewhere."""


@pytest.fixture(autouse=True)
def _no_effects() -> None:
    effects.clear()


@step
async def do(what: str) -> str:
    effects.append(what)
    return what


@dataclass
class Go:
    n: int = 0


class Bench:
    """One engine on one store, under a clock that the test moves."""

    def __init__(self, flows: tuple[Any, ...]) -> None:
        self.clock: ManualClock
        self.clock, system = manual_system()
        self.store = MemoryStore(system)
        self.flows = flows

    def engine(self, **options: Any) -> Engine:
        return Engine(self.store, flows=self.flows, drain=0, **options)

    async def loaded(self, name: str) -> Loaded:
        row = await self.store.instance(name, "one")
        assert row is not None
        return (await self.store.load([row.uid]))[0]

    async def keys(self, name: str) -> list[tuple[str, str, str]]:
        """Kind, name and key of the entries that operations caused."""
        return [(e.kind, e.name, e.key) for e in (await self.loaded(name)).entries if e.kind != Kind.BEGUN]


async def run(body: Any, *args: Any, advance: float = 0.0) -> Any:
    """The result of one instance of the flow, on an engine of its own."""
    bench = Bench((body,))
    async with bench.engine() as engine:
        handle = await engine.start(body, *args, id="one")
        if advance:
            await parked(bench, body.name)
            bench.clock.advance(advance)
        return await handle.result(timeout=20)


async def parked(bench: Bench, name: str) -> None:
    """The instance waits, durably."""

    def waits() -> bool:
        return any(life.row.waiting for life in bench.store._lives.values() if life.row.flow == name)

    await until(waits)


async def reason(body: Any) -> str:
    """Why the only instance of the flow is blocked."""
    bench = Bench((body,))
    async with bench.engine() as engine:
        handle = await engine.start(body, id="one")
        await until(lambda: any(life.row.state is State.BLOCKED for life in bench.store._lives.values()))
        assert await handle.state() is State.BLOCKED
        return (await bench.loaded(body.name)).instance.reason or ""


# ---------------------------------------------------------------- order


@flow
async def sets_of_tasks() -> list[list[str]]:
    orders: list[list[str]] = []
    ballast = [object() for _ in range(len(effects) * 37)]  # other addresses each time
    tasks = {asyncio.create_task(do(f"t{i}"), name=f"t{i}") for i in range(40)}
    orders.append([t.get_name() for t in tasks])
    done, _ = await asyncio.wait(tasks)
    orders.append([t.get_name() for t in done])
    ended: list[str] = []

    async def child(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    with contextlib.suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            for i in range(20):
                group.create_task(child(f"c{i}"))
            await do("started")
            raise ValueError
    del ballast
    return [*orders, ended]


@pytest.mark.fault(50)
async def test_sets_of_tasks_iterate_alike_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(System, "new_uid", lambda _: b"the same instance")  # the order is the instance's own
    first = await run(sets_of_tasks)
    assert await run(sets_of_tasks) == first
    assert sorted(first[2], key=lambda name: int(name[1:])) == [f"c{i}" for i in range(20)]


@flow
async def in_an_anyio_group() -> list[str]:
    ballast = [object() for _ in range(len(effects) * 41 + 1)]
    ended: list[str] = []

    async def child(name: str) -> None:
        try:
            with anyio.fail_after(100):
                await anyio.sleep(100)
        finally:
            ended.append(name)

    async with anyio.create_task_group() as group:
        for i in range(20):
            group.start_soon(child, f"c{i}")
        await do("started")
        group.cancel_scope.cancel()
    del ballast
    return ended


async def test_an_anyio_group_cancels_its_tasks_in_the_order_of_their_start() -> None:
    for _ in range(3):
        assert await run(in_an_anyio_group) == [f"c{i}" for i in range(20)]


@flow
async def as_completed_over_coroutines(original: bool) -> list[str]:
    async def branch(i: int) -> str:
        return await do(f"b{i}")

    completed: Callable[..., Any] = ordering._original_as_completed if original else asyncio.as_completed
    return [await future for future in completed([branch(i) for i in range(8)])]


@pytest.mark.fault(50)
async def test_as_completed_makes_its_tasks_in_the_order_given() -> None:
    bench = Bench((as_completed_over_coroutines,))
    async with bench.engine() as engine:
        await engine.run(as_completed_over_coroutines, False, id="one")
    entries = (await bench.loaded(as_completed_over_coroutines.name)).entries
    steps = {e.key: e.arguments for e in entries if e.kind == Kind.STEP}
    assert steps == {f"{i}.0": f'["b{i}"]'.encode() for i in range(8)}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
async def test_the_original_as_completed_raises_over_coroutines() -> None:
    with pytest.raises(Exception, match=r"call it as asyncio\.as_completed") as raised:
        await run(as_completed_over_coroutines, True)
    assert isinstance(raised.value.__cause__, NotDurable)
    gc.collect()


# ---------------------------------------------------------------- who may call it


@flow
async def woken_by_a_step() -> None:
    event = asyncio.Event()
    waiter = asyncio.create_task(event.wait())
    await asyncio.sleep(0)
    try:
        await capture(event.set)
    finally:
        waiter.cancel()


async def test_a_step_that_sets_an_event_of_the_flow_is_told_the_remedy() -> None:
    with pytest.raises(Exception, match="send it a message") as raised:
        await run(woken_by_a_step)
    assert isinstance(raised.value.__cause__, NotDurable)


shared: dict[str, asyncio.Event] = {}


@flow
async def shares(name: str) -> None:
    if name == "waits":
        shared["event"] = asyncio.Event()
        limit = asyncio.create_task(asyncio.sleep(1000))
        await asyncio.wait([limit, asyncio.create_task(shared["event"].wait())], return_when=asyncio.FIRST_COMPLETED)
    else:
        shared["event"].set()


async def test_a_flow_that_wakes_another_raises_where_it_does() -> None:
    bench = Bench((shares,))
    async with bench.engine() as engine:
        await engine.start(shares, "waits", id="one")
        await parked(bench, shares.name)
        with pytest.raises(Exception, match="belongs inside one flow") as raised:
            await engine.run(shares, "wakes", id="two")
        assert isinstance(raised.value.__cause__, NotDurable)


@flow
async def lends_its_loop() -> None:
    shared_loop.append(asyncio.get_running_loop())
    await receive(Go)


shared_loop: list[Any] = []


async def test_no_thread_and_no_real_loop_may_use_a_flows_loop() -> None:
    bench = Bench((lends_its_loop,))
    async with bench.engine() as engine:
        await engine.start(lends_its_loop, id="one")
        await parked(bench, lends_its_loop.name)
        loop = shared_loop.pop()
        for use in (loop.call_soon, loop.call_soon_threadsafe, lambda f: loop.call_later(1, f)):
            with pytest.raises(NotDurable, match="outside the flow's own turns"):
                use(print)
        found: list[BaseException] = []

        def elsewhere() -> None:
            try:
                loop.call_soon_threadsafe(print)
            except NotDurable as error:
                found.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(found) == 1


@flow
async def does_what_cannot_be_replayed(what: str) -> None:
    loop = asyncio.get_running_loop()
    match what:
        case "to_thread":
            await asyncio.to_thread(print)
        case "executor":
            await loop.run_in_executor(None, print)
        case "anyio":
            await anyio.to_thread.run_sync(print)
        case "subprocess":
            await asyncio.create_subprocess_exec("true")
        case "connection":
            await asyncio.open_connection("localhost", 1)
        case "server":
            await asyncio.start_server(lambda r, w: None, "localhost", 0)
        case "getaddrinfo":
            await loop.getaddrinfo("localhost", 1)
        case "signal":
            loop.add_signal_handler(10, print)
        case _:
            with socket.socket() as unused:
                loop.add_reader(unused, print)


@pytest.mark.filterwarnings("ignore:unclosed")
@pytest.mark.parametrize(
    "what", ["to_thread", "executor", "anyio", "subprocess", "connection", "server", "getaddrinfo", "signal", "reader"]
)
async def test_io_in_a_flows_own_body_is_refused(what: str) -> None:
    with pytest.raises(Exception, match="put it in capture") as raised:
        await run(does_what_cannot_be_replayed, what)
    assert isinstance(raised.value.__cause__, NotDurable)


# ---------------------------------------------------------------- idle


@flow
async def undoes_under_a_cancelled_scope() -> str:
    async def child() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await do("undo")

    with anyio.move_on_after(5):
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
    return "moved on"


async def test_a_loop_that_is_never_empty_gets_its_completion() -> None:
    """anyio cancels again on every turn while the group waits for the child, whose undo waits for idle."""
    assert await run(undoes_under_a_cancelled_scope, advance=6) == "moved on"
    assert effects == ["undo"]


@flow
async def polls() -> list[int]:
    turns: list[int] = []
    for i in range(3):
        task = asyncio.create_task(do(f"p{i}"))
        turns.append(0)
        while not task.done():
            turns[-1] += 1
            await asyncio.sleep(0)
    return turns


async def test_a_flow_that_polls_sees_the_same_number_of_turns_every_time() -> None:
    first = await run(polls)
    assert max(first) <= 2 * flow_loop.IDLE_TURNS + 2
    assert await run(polls) == first


@flow
async def spins() -> None:
    while True:
        await asyncio.sleep(0)


async def test_a_flow_that_spins_is_set_aside_and_the_real_loop_lives() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count())
    text = await reason(spins)
    counter.cancel()
    assert text.startswith("Spins: ")
    assert "await a delay()" in text
    assert turns > 50  # slices: the real loop had its turns


@flow
async def waits_for_nothing() -> None:
    await do("first")
    await asyncio.Event().wait()


@flow
async def leaves_a_task_that_waits_for_nothing() -> None:
    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    task = asyncio.create_task(stubborn(), name="stubborn")
    await do("first")
    del task


async def test_a_flow_that_can_never_go_on_is_set_aside_with_the_line() -> None:
    text = await reason(waits_for_nothing)
    assert text.startswith("WaitsForNothing: ")
    assert f"main at {__file__}:" in text
    assert "stubborn at" in await reason(leaves_a_task_that_waits_for_nothing)


# ---------------------------------------------------------------- contexts

tone: contextvars.ContextVar[str] = contextvars.ContextVar("tone", default="none")


def heard() -> str:
    return tone.get()


@flow
async def contexts() -> list[str]:
    tone.set("outer")

    async def inner(value: str) -> str:
        tone.set(value)
        await asyncio.sleep(0)
        return await capture(heard)

    found = await asyncio.gather(inner("a"), inner("b"))
    loop = asyncio.get_running_loop()
    other = await loop.create_task(inner("c"), context=contextvars.Context())
    refused: asyncio.Future[str] = loop.create_future()

    def callback() -> None:
        try:
            capture(heard).send(None)
        except NotInFlow as error:
            refused.set_result(str(error))

    loop.call_soon(callback, context=contextvars.Context())
    return [*found, other, await capture(heard), (await refused)[:9]]


async def test_contexts_go_with_tasks_and_into_steps_and_a_foreign_one_is_still_in_the_flow() -> None:
    assert await run(contexts) == ["a", "b", "c", "outer", "capture()"]


@flow
async def one_off(housekeeping: bool) -> str:
    async def idle() -> None:
        await asyncio.sleep(0)

    if housekeeping:
        await asyncio.create_task(idle())
    return await asyncio.create_task(do("work"))


async def test_a_task_that_asks_for_nothing_durable_shifts_no_key() -> None:
    for housekeeping in (False, True):
        bench = Bench((one_off,))
        async with bench.engine() as engine:
            await engine.run(one_off, housekeeping, id="one")
        assert [key for *_, key in await bench.keys(one_off.name)] == ["0.0"]


# ---------------------------------------------------------------- async generators


async def numbers() -> AsyncIterator[int]:
    try:
        for i in range(3):
            yield i
            await do(f"n{i}")
    finally:
        await do("closed")


@flow
async def leaves_a_generator(keep: bool) -> list[str]:
    kept = numbers()
    async for i in kept if keep else numbers():
        if i == 1:
            break
    await do("after")
    return list(effects)


@pytest.mark.parametrize("keep", [False, True])
async def test_a_generator_left_early_is_closed_inside_the_flow(keep: bool) -> None:
    bench = Bench((leaves_a_generator,))
    async with bench.engine() as engine:
        await engine.run(leaves_a_generator, keep, id="one")
    assert sorted(effects) == ["after", "closed", "n0"]
    recorded = [e.arguments for e in (await bench.loaded(leaves_a_generator.name)).entries if e.kind == Kind.STEP]
    assert sorted(a or b"" for a in recorded) == [b'["after"]', b'["closed"]', b'["n0"]']


@flow
async def waits_in_a_generator() -> None:
    async for _ in numbers():
        await receive(Go)


@pytest.mark.fault(48)
@pytest.mark.peer(17)
async def test_a_generator_that_is_unloaded_has_no_effect_outside_the_flow() -> None:
    bench = Bench((waits_in_a_generator,))
    for _ in range(3):
        async with bench.engine() as engine:
            await parked_or_started(bench, engine)
        gc.collect()
        await asyncio.sleep(0)
        assert effects == []


async def parked_or_started(bench: Bench, engine: Engine) -> None:
    await engine.start(waits_in_a_generator, id="one")
    await parked(bench, waits_in_a_generator.name)


# ---------------------------------------------------------------- the end of a flow


@flow
async def returns_while_a_step_runs() -> str:
    loser = asyncio.create_task(capture(asyncio.sleep, 30))
    await do("won")
    loser.cancel()
    return "won"


async def test_a_flow_that_returns_while_a_cancelled_step_runs_still_ends() -> None:
    assert await run(returns_while_a_step_runs) == "won"


@flow
async def leaves_tasks(undo: str) -> str:
    async def left(name: str) -> None:
        try:
            await delay(1000)
        finally:
            await do(f"{undo} {name}")

    tasks = [asyncio.create_task(left(name)) for name in "ab"]
    await do("first")
    return f"{len(tasks)} left"


async def test_tasks_that_are_left_are_cancelled_and_may_still_run_steps_and_replay() -> None:
    bench = Bench((leaves_tasks,))
    async with bench.engine() as engine:
        assert await engine.run(leaves_tasks, "undo", id="one") == "2 left"
    assert effects == ["first", "undo a", "undo b"]
    async with bench.engine() as engine:
        handle = await engine.restart(leaves_tasks, "one")  # as if the process had died before the end was written
        assert await handle.result(timeout=20) == "2 left"
    assert effects == ["first", "undo a", "undo b"]


# ---------------------------------------------------------------- unloading


@flow
async def parks(how: str) -> int:
    async def child() -> None:
        try:
            await receive(Go, name="never")
        finally:
            await do("undo")

    match how:
        case "TaskGroup":
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
                group.create_task(child())
                return (await receive(Go)).n
        case "anyio":
            async with anyio.create_task_group() as scope:
                scope.start_soon(child)
                with anyio.CancelScope(shield=True):
                    return (await receive(Go)).n
        case "shield":
            return (await asyncio.shield(receive(Go))).n
        case _:
            while True:
                try:
                    return (await receive(Go)).n
                except BaseException:
                    effects.append("swallowed") if len(effects) < 3 else None


@pytest.mark.parametrize("how", ["TaskGroup", "anyio", "shield", "swallows"])
async def test_whatever_waits_can_be_unloaded_and_loaded_again(how: str, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench((parks,))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            async with bench.engine() as engine:
                await engine.start(parks, how, id="one")
                await parked(bench, parks.name)
            gc.collect()
    assert "undo" not in effects
    assert "Task was destroyed" not in caplog.text
    assert ("swallow their cancellation" in caplog.text) == (how == "swallows")
