"""The engine for code without a loop: the same verbs from any thread, and it stops nothing but the thread that asks."""
# pyright: reportPrivateUsage=false

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from perdure import (
    AlreadyStarted,
    Cron,
    Current,
    DoesNotFit,
    Engine,
    EngineClosed,
    FlowCancelled,
    FlowFailed,
    Handle,
    InitialState,
    InstanceNotFound,
    NotInFlow,
    NotRegistered,
    Outgoing,
    Panel,
    Retry,
    State,
    capture,
    expose,
    flow,
    receive,
    step,
)
from perdure.clock import to_datetime
from perdure.engine.payloads import Payloads
from perdure.engine.sync_engine import PAGE, SyncEngine, SyncHandle, SyncPanel
from perdure.stores.memory import MemoryStore
from perdure.stores.sqlite import SqliteStore
from tests.support.clock import ManualClock, manual_system
from tests.support.sync import (
    LIMIT_S,
    adds,
    engine_threads,
    every_call,
    every_handle_call,
    every_panel_call,
    until,
    waiting,
    waits,
)

VERBS = ("start", "run", "start_many", "send", "send_many", "handle", "cancel")


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store of each kind."""
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'sync.db'}"


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not engine_threads()


@flow(name="fails")
async def fails() -> None:
    raise ValueError("mine", 1)


def test_these_are_all_the_calls() -> None:
    engine = SyncEngine("memory://")
    nothing: Any = None
    assert set(every_call(engine)) == methods(SyncEngine)
    assert set(every_handle_call(SyncHandle(nothing, nothing))) == methods(SyncHandle)
    assert set(every_panel_call(SyncPanel(nothing, nothing))) == methods(SyncPanel)


# ---------------------------------------------------------------- the same as Engine


NOT_SYNC = {
    Engine: {"serve", "result", "life_of", "send_one", "cancel_one", "state_of", "exposed_by", "goes_on"},
    Panel: {"loaded", "payloads", "staged", "new_message"},
    SyncEngine: {"open", "close"},
}
"""What belongs to one side only: a loop of one's own and its lack, and what handles, entries and inboxes ask."""


def public(of: type) -> set[str]:
    return {name for name in dir(of) if not name.startswith("_")} - NOT_SYNC.get(of, set())


def methods(of: type) -> set[str]:
    return {name for name in public(of) if inspect.isfunction(getattr(of, name))}


def test_the_options_names_and_parameters_are_those_of_engine_handle_and_panel() -> None:
    def parameters(of: Any) -> list[Any]:
        return list(inspect.signature(of).parameters.values())

    assert parameters(SyncEngine.__init__) == parameters(Engine.__init__)
    for ours, theirs in ((SyncEngine, Engine), (SyncHandle, Handle), (SyncPanel, Panel)):
        assert public(ours) == public(theirs)
        for name in methods(theirs):
            assert parameters(getattr(ours, name)) == parameters(getattr(theirs, name)), name


@step(queue="gpu")
def remote() -> None:
    """Runs elsewhere."""


def test_every_option_reaches_the_engine() -> None:
    """Each option is given a value that is not its default, and the engine differs from a default one by all of them."""
    given = {
        "flows": [adds], "steps": [remote], "execute": False,
        "max_resident": 7, "unload_after": 3, "max_running": 8, "retention": 5, "drain": 9,
        "retry": Retry(attempts=2), "codec": Reversed(), "payload_limit": 1000, "version": "v", "lease": 11, "stall_limit": 4,
        "kill_hung": True, "step_middleware": [passes_on], "queues": ["gpu"],
    }  # fmt: skip
    names = {p.name for p in inspect.signature(Engine.__init__).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert set(given) == names, "give the new option here too"
    store = MemoryStore(manual_system()[1])
    for name, value in given.items():
        options: dict[str, Any] = {name: value}
        made, expected, default = SyncEngine(store, **options)._make(), Engine(store, **options), Engine(store)
        assert inside(made) == inside(expected), name
        assert inside(made) != inside(default), name


async def passes_on(info: Current, args: tuple[Any, ...], next: Callable[..., Awaitable[Any]]) -> Any:
    return await next(*args)


class Reversed:
    def encode(self, data: bytes, /) -> bytes:
        return data[::-1]

    def decode(self, data: bytes, /) -> bytes:
        return data[::-1]


def inside(value: Any) -> Any:
    """What the engine holds, compared by value."""
    if isinstance(value, Engine):
        return {name: inside(held) for name, held in vars(value).items()}
    if isinstance(value, Payloads):
        return {name: inside(getattr(value, name)) for name in Payloads.__slots__}
    if isinstance(value, dict):
        return {name: inside(held) for name, held in cast("dict[str, Any]", value).items()}
    return value if not callable(value) else None


def test_start_run_result_and_state(url: str) -> None:
    with SyncEngine(url, flows=[adds, fails]) as engine:
        handle = engine.start(adds, 1, 2, id="1")
        assert (handle.flow, handle.id) == ("adds", "1")
        assert handle.result(timeout=LIMIT_S) == 3
        assert handle.state() is State.SUCCEEDED
        assert engine.run("adds", 5, 6, id="3", timeout=LIMIT_S) == 11
        assert [h.result() for h in engine.start_many(adds, ((str(n), n, n) for n in range(10, 13)))] == [20, 22, 24]
        with pytest.raises(AlreadyStarted):
            engine.start(adds, 2, id="1")
        with pytest.raises(NotRegistered):
            engine.start("nobody", id="1")
        with pytest.raises(FlowFailed) as failed:
            engine.run(fails, id="f")
        assert isinstance(failed.value.__cause__, ValueError)
        assert failed.value.__cause__.args == ("mine", 1)


def test_messages_exposed_state_and_cancelling(url: str) -> None:
    @flow
    async def listens() -> list[str]:
        heard: list[str] = []
        while len(heard) < 4:
            heard.append(await receive(str))
            expose("heard", len(heard))
        return heard

    with SyncEngine(url, flows=[listens, waits]) as engine:
        handle = engine.start(listens, id="1")
        handle.send("a", key="1")
        handle.send("a", key="1")
        engine.send(listens, "1", "b")
        until(lambda: handle.exposed("heard", returns=int) == 2)
        assert handle.exposed() == {"heard": 2}
        with pytest.raises(DoesNotFit):
            handle.exposed("heard", returns=str)
        engine.send_many(listens, (Outgoing("1", text) for text in "cd"))
        assert handle.result(timeout=LIMIT_S) == ["a", "b", "c", "d"]

        first, second = engine.start_many(waits, [("1",), ("2",)])
        engine.cancel(waits, "1", "why")
        second.cancel("why")
        for cancelled in (first, second):
            with pytest.raises(FlowCancelled, match="why"):
                cancelled.result(timeout=LIMIT_S)
        with pytest.raises(InstanceNotFound):
            engine.handle("waits", "none").state()


def test_health(url: str) -> None:
    with SyncEngine(url) as engine:
        health = engine.health(timeout=LIMIT_S)
        assert health.replica
        assert health.paused is None


def test_a_start_later_is_due_when_the_stores_clock_says_so(tmp_path: Path) -> None:
    clock, system = manual_system()
    with SyncEngine(SqliteStore(tmp_path / "x.db", system), flows=[adds]) as engine:
        at = engine.start(adds, 1, id="at", at=to_datetime(clock.wall()) + timedelta(hours=1))
        after = engine.start(adds, 2, id="after", after=timedelta(hours=2))
        assert {at.state(), after.state()} == {State.SCHEDULED}
        advance(clock, engine, 3601)
        assert at.result(timeout=LIMIT_S) == 11
        assert after.state() is State.SCHEDULED
        advance(clock, engine, 3600)
        assert after.result(timeout=LIMIT_S) == 12


def test_a_schedule_starts_a_flow_at_each_due_time_until_it_is_taken_back(tmp_path: Path) -> None:
    clock, system = manual_system()
    with SyncEngine(SqliteStore(tmp_path / "x.db", system), flows=[adds]) as engine:
        engine.schedule(adds, Cron("0 0 * * *"), 1, id="nightly")
        engine.schedule(adds, Cron("0 0 * * *"), 1, id="nightly")
        plan = engine.handle("perdure.schedule", "nightly")
        for days in (1, 2):
            until(lambda: plan.state() is State.SUSPENDED)
            advance(clock, engine, 86400)
            until(lambda: len(list(engine.find(adds))) == days)  # noqa: B023
        assert all(info.id.startswith("nightly@") for info in engine.find(adds))
        engine.unschedule("nightly")
        with pytest.raises(InstanceNotFound):
            plan.state()


def advance(clock: ManualClock, engine: SyncEngine, seconds: float) -> None:
    """Moved on the engine's own thread, where its timers are."""
    moved = threading.Event()
    assert engine._life is not None
    engine._life._loop.call_soon_threadsafe(lambda: (clock.advance(seconds), moved.set()))
    assert moved.wait(LIMIT_S)


# ---------------------------------------------------------------- looking


class CountingStore(MemoryStore):
    """Counts the pages that are read."""

    pages = 0

    async def find(self, **kwargs: Any) -> Any:
        self.pages += 1
        return await super().find(**kwargs)


def test_find_reads_a_page_when_it_is_wanted() -> None:
    store = CountingStore()
    ids = [f"{n:04}" for n in range(2 * PAGE + 1)]
    with SyncEngine(store, flows=[adds, waits]) as engine:
        engine.start_many(adds, [(id, 1) for id in ids])
        found = engine.find(adds)
        assert store.pages == 0
        assert next(found).id == ids[0]
        assert store.pages == 1
        assert [info.id for info in found] == ids[1:]
        assert store.pages == 3
        assert list(engine.find(waits)) == []


def test_find_selects_as_the_engine_does(url: str) -> None:
    with SyncEngine(url, flows=[adds, waits]) as engine:
        engine.run(adds, 1, id="a")
        first = next(engine.find(adds)).created_at
        waiting = engine.start(waits, id="w")
        until(lambda: waiting.state() is State.SUSPENDED)
        assert [i.id for i in engine.find()] == ["a", "w"]
        assert [i.id for i in engine.find(state=State.SUSPENDED)] == ["w"]
        assert [i.id for i in engine.find("adds", state=[State.SUSPENDED, State.SUCCEEDED])] == ["a"]
        assert [i.id for i in engine.find(since=first + timedelta(days=1))] == []


def test_a_search_may_go_on_in_another_thread_and_be_dropped_half_way() -> None:
    with SyncEngine("memory://", flows=[adds]) as engine:
        engine.start_many(adds, [(str(n), 1) for n in range(PAGE + 1)])
        found = engine.find(adds)
        ids = [next(found).id]
        with ThreadPoolExecutor(1) as other:
            ids += [info.id for info in other.submit(list, found).result()]
        assert ids == [str(n) for n in range(PAGE + 1)]
        dropped = engine.find(adds)
        next(dropped)
        del dropped
        kept = engine.find(adds)
        assert [next(kept).id for _ in range(PAGE)] == ids[:PAGE]
    with pytest.raises(EngineClosed):
        next(kept)  # the next page


# ---------------------------------------------------------------- mending


@flow(name="subscribes")
async def subscribes(customer: str) -> str:
    receipt = await charge(customer)
    return f"{receipt}, {await receive(str, name='thanks')}"


@step(name="charge")
async def charge(customer: str) -> str:
    if "@" not in customer:
        raise ValueError(f"{customer!r} is no address")
    return f"charged {customer}"


def test_a_panel_shows_the_instance_and_mends_it(url: str) -> None:
    with SyncEngine(url, flows=[subscribes]) as engine:
        with pytest.raises(FlowFailed):
            engine.run(subscribes, "ann", id="1", timeout=LIMIT_S)
        panel = engine.panel(subscribes, "1")
        assert (panel.flow, panel.id, panel.args) == ("subscribes", "1", ("ann",))
        assert (panel.state, panel.result, panel.due_at, panel.reason) == (State.FAILED, None, None, None)
        assert isinstance(panel.error, ValueError)
        assert (list(panel.pending), len(panel.inbox), list(panel.entries)) == ([], 0, ["0"])
        assert isinstance(panel.entries["charge"], ValueError)
        assert repr(panel) == "<panel of subscribes '1': failed>"
        assert "'ann' is no address" in str(panel)

        panel.args = ("ann@example",)
        panel.inbox.append("thank you", name="thanks")
        assert panel.args == ("ann@example",)
        with pytest.raises(TypeError):
            panel.args = "ann@example"  # type: ignore[assignment]
        handle = panel.restart()
        assert isinstance(handle, SyncHandle)
        assert handle.result(timeout=LIMIT_S) == "charged ann@example, thank you"
        assert panel.state is not State.FAILED  # it was read again when it was written
        panel.refresh()
        assert panel.state is State.SUCCEEDED
        assert panel.result == "charged ann@example, thank you"
        with pytest.raises(InstanceNotFound):
            engine.panel("subscribes", "none")


def test_a_panel_ends_postpones_and_deletes(url: str) -> None:
    with SyncEngine(url, flows=[waits]) as engine:
        handles = [engine.start(waits, id=id) for id in "abcd"]
        for handle in handles:
            until(lambda: handle.state() is State.SUSPENDED)  # noqa: B023
        engine.panel(waits, "a").succeed("by hand")
        assert handles[0].result(timeout=LIMIT_S) == "by hand"
        engine.panel(waits, "b").fail(ValueError("by hand"))
        with pytest.raises(FlowFailed, match="by hand"):
            handles[1].result(timeout=LIMIT_S)
        later = engine.panel(waits, "c")
        later.inbox.append("in the box")
        later.save()
        assert handles[2].result(timeout=LIMIT_S) == "in the box"
        panel = engine.panel(waits, "d")
        panel.postpone(timedelta(days=1))
        assert panel.state is State.SCHEDULED
        assert panel.due_at is not None
        panel.delete()
        with pytest.raises(InstanceNotFound):
            handles[3].state()


def test_restart_and_delete_without_looking(url: str) -> None:
    broken = [True]

    @step
    async def breaks() -> str:
        if broken.pop():
            raise ValueError("broken")
        return "whole"

    @flow
    async def breaking() -> str:
        return await breaks()

    with SyncEngine(url, flows=[breaking]) as engine:
        with pytest.raises(FlowFailed):
            engine.run(breaking, id="1")
        broken.append(False)
        assert engine.restart(breaking, "1").result(timeout=LIMIT_S) == "whole"
        engine.delete(breaking, "1")
        assert list(engine.find(breaking)) == []


def test_what_an_instance_is_given_before_it_begins(url: str) -> None:
    @flow
    async def takes() -> str:
        return f"{await capture(lambda: 'made', id='value')} {await receive(str)}"

    with SyncEngine(url, flows=[takes]) as engine:
        initial = InitialState(entries={"value": "given"}, messages=["hello"])
        assert engine.run(takes, id="1", initial=initial, timeout=LIMIT_S) == "given hello"
        assert engine.start(takes, id="2", initial=initial).result(timeout=LIMIT_S) == "given hello"


# ---------------------------------------------------------------- threads


def test_any_thread_may_call_any_method_at_once(url: str) -> None:
    @flow
    async def greets(name: str) -> str:
        return f"{await receive(str)} {name}"

    def business(n: int) -> str:
        handle = engine.start(greets, str(n), id=str(n))
        assert engine.handle(greets, str(n)).state() in (State.RUNNING, State.SUSPENDED, State.SCHEDULED)
        with pytest.raises(TimeoutError):
            handle.result(timeout=0.001)
        (engine if n % 2 else engine_2).send(greets, str(n), "Hello", key="1")
        assert str(n) in {info.id for info in engine.find(greets)}
        return handle.result(timeout=LIMIT_S)

    with SyncEngine(url, flows=[greets]) as engine, ThreadPoolExecutor(16) as pool:
        if url == "memory://":
            engine_2 = engine
            jobs = {pool.submit(business, n): n for n in range(100)}
            assert {jobs[job]: job.result() for job in as_completed(jobs)} == {n: f"Hello {n}" for n in range(100)}
        else:
            with SyncEngine(url, execute=False) as engine_2:  # two engines in one process, each on its own thread
                assert len(engine_threads()) == 2
                assert list(pool.map(business, range(100))) == [f"Hello {n}" for n in range(100)]
        assert waiting(engine) == 0


def test_a_wait_for_a_result_stops_only_its_own_thread(url: str) -> None:
    with SyncEngine(url, flows=[adds, waits]) as engine, ThreadPoolExecutor(1) as pool:
        handle = engine.start(waits, id="1")
        waiter = pool.submit(handle.result)
        until(lambda: waiting(engine) == 1)
        assert engine.run(adds, 1, id="1", timeout=LIMIT_S) == 11
        with pytest.raises(TimeoutError, match="it goes on"):
            handle.result(timeout=0.01)
        assert not waiter.done()
        handle.send("it")
        assert waiter.result(LIMIT_S) == "it"


def test_flows_run_on_the_engines_thread_and_plain_steps_on_others() -> None:
    @step
    def plain() -> str:
        return threading.current_thread().name

    @flow
    async def names() -> list[str]:
        return [threading.current_thread().name, await plain()]

    with SyncEngine("memory://", flows=[names]) as engine:
        flow_thread, step_thread = engine.run(names, id="1")
        (thread,) = engine_threads()
        assert flow_thread == thread.name
        assert thread.daemon
        assert step_thread.startswith("perdure-step")


def test_a_plain_step_may_use_the_engine(url: str) -> None:
    @step
    def tells() -> int:
        engine.send(waits, "1", "from a step")
        return len([info for info in engine.find() if engine.handle(info.flow, info.id).state()])

    @flow
    async def teller() -> int:
        return await tells()

    with SyncEngine(url, flows=[teller, waits]) as engine:
        handle = engine.start(waits, id="1")
        assert engine.run(teller, id="t", timeout=LIMIT_S) == 2
        assert handle.result(timeout=LIMIT_S) == "from a step"


# ---------------------------------------------------------------- where it may not be called


def refusals(engine: SyncEngine, handle: SyncHandle[Any], panel: SyncPanel[Any]) -> dict[str, str]:
    """What each call says, here."""
    said: dict[str, str] = {}
    calls = {f"SyncEngine.{name}": call for name, call in every_call(engine).items()}
    calls |= {f"SyncHandle.{name}": call for name, call in every_handle_call(handle).items()}
    calls |= {f"SyncPanel.{name}": call for name, call in every_panel_call(panel).items()}
    for name, call in (calls | {"SyncEngine.open": engine.open}).items():
        try:
            call()
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
        else:
            said[name] = "nothing"
    return said


async def test_async_code_is_told_to_use_engine() -> None:
    other = SyncEngine("memory://", flows=[adds])
    with ThreadPoolExecutor(1) as pool:
        engine = SyncEngine("memory://", flows=[adds])
        pool.submit(engine.open).result()
        handle: SyncHandle[int] = pool.submit(lambda: engine.start(adds, 1, id="1")).result()
        panel: SyncPanel[int] = pool.submit(lambda: engine.panel(adds, "1")).result()
        for name, said in refusals(engine, handle, panel).items():
            assert said.startswith(f"RuntimeError: {name}() was called in async code"), said
            assert "use Engine there" in said
        with pytest.raises(RuntimeError, match=r"SyncEngine\.open\(\) was called in async code"), other:
            pass
        assert await asyncio.to_thread(handle.result, timeout=LIMIT_S) == 11  # it was harmed by nothing
        await asyncio.to_thread(engine.close)


def test_an_async_step_is_told_to_be_a_plain_function() -> None:
    """It runs on the engine's own thread, which would wait for itself."""
    made: list[Any] = []

    @step
    async def asks() -> dict[str, str]:
        with pytest.raises(RuntimeError, match="cannot wait for itself"):
            engine.close()
        return refusals(engine, *made)

    @flow
    async def asking() -> dict[str, str]:
        return await asks()

    with SyncEngine("memory://", flows=[asking, waits]) as engine:
        made += [engine.start(waits, id="1"), engine.panel(waits, "1")]
        for name, said in engine.run(asking, id="1", timeout=LIMIT_S).items():
            assert said.startswith(f"RuntimeError: {name}() was called in async code"), said
            assert "make the step a plain function" in said


def test_a_flow_is_told_the_right_call() -> None:
    made: list[Any] = []

    @flow
    async def asking() -> dict[str, str]:
        return refusals(engine, *made)

    with SyncEngine("memory://", flows=[asking, waits]) as engine:
        made += [engine.start(waits, id="1"), engine.panel(waits, "1")]
        said = engine.run(asking, id="1", timeout=LIMIT_S)
    for name, what in said.items():
        assert what.startswith(f"NotInFlow: {name}() was called inside a flow; use "), what
        kind, _, verb = name.partition(".")
        if kind == "SyncHandle":
            assert f"use perdure.handle(flow, id).{verb}(), which is journaled" in what
        elif verb in VERBS:
            assert f"use perdure.{verb}(), which is journaled" in what
        else:
            assert "use a step that is a plain function" in what


def test_a_handle_in_a_thread_with_a_flows_context_is_refused() -> None:
    """As `Handle` does: only one of the two signs of a flow is there."""
    import contextvars

    context: list[contextvars.Context] = []

    @flow
    async def lends() -> str:
        context.append(contextvars.copy_context())
        return await receive(str)

    with SyncEngine("memory://", flows=[lends]) as engine:
        handle = engine.start(lends, id="1")
        until(lambda: context)
        with pytest.raises(NotInFlow, match="with a flow's context but outside its loop"):
            context[0].run(handle.state)
