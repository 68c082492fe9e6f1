"""Steps on a queue: the flow runs where it is, the step's attempts run where the queue is served."""

from __future__ import annotations

import asyncio
from types import ModuleType
from typing import Any

import pytest

import perdure
from perdure import (
    DuplicateId,
    Engine,
    FlowCancelled,
    FlowFailed,
    Handle,
    NotEncodable,
    NotSupported,
    OutcomeUnknown,
    Retry,
    State,
    capture,
    current,
    flow,
    step,
)
from perdure.model.records import Entry, Kind
from perdure.testing import Flows, crash_everywhere, record, replay, simulate
from perdure.testing.cluster import ClusterSystem
from tests.support.clock import until
from tests.support.world import World, eventually

GPU = "gpu"


class Board:
    """What the steps have done, and what they wait for."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.ended: list[str] = []
        self.go_on = asyncio.Event()


board = Board()


@pytest.fixture(autouse=True)
def fresh() -> None:
    board.__init__()


class TooDark(Exception):
    """A step's own error."""

    def __init__(self, lux: int) -> None:
        super().__init__(lux)
        self.lux = lux


@step(queue=GPU)
async def render(scene: str, *, lux: int = 1) -> str:
    info = current()
    board.calls.append((scene, lux, info.key, info.attempt, info.parent))
    return f"{scene} at {lux}"


@step(queue=GPU)
def fails(lux: int) -> None:
    board.calls.append(lux)
    raise TooDark(lux)


@step(queue=GPU, retry=Retry(attempts=3, initial=5, give_up_on=(TooDark,)))
async def tries() -> tuple[int, int | None]:
    info = current()
    done = info.progress(int)
    board.calls.append((info.key, info.attempt, done))
    info.heartbeat((done or 0) + 10)
    if info.attempt < 3:
        raise ConnectionError
    return info.attempt, done


@step(queue=GPU)
async def lasts() -> str:
    board.calls.append(current().key)
    try:
        await board.go_on.wait()
    except asyncio.CancelledError:
        board.ended.append("cancelled")
        raise
    return "lasted"


@step(queue=GPU, at_most_once=True)
async def once() -> str:
    board.calls.append(current().key)
    await board.go_on.wait()
    return "once"


@step(queue=GPU, timeout=3)
async def too_long() -> None:
    await board.go_on.wait()


@step(queue="nobody")
async def nowhere() -> str:
    return "there"


@flow
async def renders(scene: str) -> str:
    return await render(scene, lux=7) + "!"


@flow
async def asks(name: str) -> Any:
    return await globals()[name]()


STEPS: tuple[Any, ...] = (render, fails, tries, lasts, once, too_long, nowhere)


async def pair(world: World, *flows: Any, **options: Any) -> tuple[Engine, Engine]:
    """An engine that runs the flows, and one that runs steps for the queue and nothing else."""
    gpu = await world.engine(queues=[GPU], steps=STEPS)
    return await world.engine(*flows, **options), gpu


async def steps_of(world: World, handle: Handle[Any]) -> list[Entry]:
    return [entry for entry in await world.journal(handle) if entry.kind == Kind.STEP]


# ---------------------------------------------------------------- outcomes


async def test_the_step_runs_on_the_queue_and_the_journal_has_its_outcome(world: World) -> None:
    plain, _ = await pair(world, renders)
    handle = await plain.start(renders, "dawn", id="1")
    assert await handle.result() == "dawn at 7!"
    (entry,) = await steps_of(world, handle)
    assert (entry.name, entry.key, entry.failed) == ("render", "0", False)
    assert [e.kind for e in await world.journal(handle)] == [Kind.BEGUN, Kind.STEP]
    uid = (await world.row(handle)).uid.hex()
    assert board.calls == [("dawn", 7, f"{uid}.0.0", 1, ("renders", "1"))]
    assert await world.pending(handle) == []
    assert await world.inbox(handle) == []


async def test_it_makes_no_difference_where_the_caller_is(world: World) -> None:
    both = await world.engine(renders, queues=["", GPU], steps=STEPS)
    assert await both.run(renders, "dawn", id="1") == "dawn at 7!"
    assert await both.run(renders, "dusk", id="2", queue=GPU) == "dusk at 7!"
    assert len(board.calls) == 2


@flow
async def sees_the_error() -> str:
    try:
        await fails(3)
    except TooDark as error:
        return f"{error.lux} lux"
    return ""


async def test_a_failure_is_the_steps_own(world: World) -> None:
    plain, _ = await pair(world, sees_the_error, asks)
    assert await plain.run(sees_the_error, id="1") == "3 lux"
    assert board.calls == [3]


async def test_it_is_tried_again_there_by_its_own_rule_with_one_key_and_its_progress(world: World) -> None:
    plain, _ = await pair(world, asks)
    handle = await plain.start(asks, "tries", id="1")
    for n in (1, 2):
        await until(lambda n=n: len(board.calls) == n)
        await eventually(lambda: scheduled(plain, "perdure.step:tries"))
        world.clock.advance(5 * n)
    assert await handle.result() == (3, 20)
    keys = {key for key, _, _ in board.calls}
    assert keys == {f"{(await world.row(handle)).uid.hex()}.0.0"}
    assert [(attempt, done) for _, attempt, done in board.calls] == [(1, None), (2, 10), (3, 20)]


async def scheduled(engine: Engine, flow: str) -> bool:
    """Whether an instance of the flow waits for a time."""
    return any([info.due_at is not None and info.state is State.SUSPENDED async for info in engine.find(flow)])


async def test_its_timeout_counts_there(world: World) -> None:
    plain, _ = await pair(world, asks)
    handle = await plain.start(asks, "too_long", id="1")
    await eventually(lambda: states(plain, "perdure.step:too_long"), lambda found: found == [State.RUNNING])
    await asyncio.sleep(0.05)
    world.clock.advance(3)
    with pytest.raises(FlowFailed) as failed:
        await handle.result()
    assert isinstance(failed.value.__cause__, TimeoutError)


async def states(engine: Engine, flow: str) -> list[State]:
    return [info.state async for info in engine.find(flow)]


async def test_who_has_not_been_given_the_step_leaves_it_to_who_has(world: World) -> None:
    plain = await world.engine(renders)
    await world.engine(renders, queues=[GPU], steps=[fails])
    handle = await plain.start(renders, "dawn", id="1")
    await world.parked(handle)
    assert await states(plain, "perdure.step:render") == [State.SCHEDULED]
    module = ModuleType("scenes")
    module.render, module.other = render, 3  # type: ignore[attr-defined]
    await world.engine(queues=[GPU], steps=[module])
    assert await handle.result() == "dawn at 7!"


# ---------------------------------------------------------------- crashes


async def test_a_caller_that_dies_waits_for_the_same_attempt_when_it_is_back(world: World) -> None:
    plain, _ = await pair(world, asks)
    await plain.start(asks, "lasts", id="1")
    await until(lambda: board.calls)
    plain = await world.restart(plain)
    await world.parked(plain.handle(asks, "1"))
    board.go_on.set()
    assert await plain.handle(asks, "1").result() == "lasted"
    assert len(board.calls) == 1


async def test_an_outcome_that_came_while_the_caller_was_dead_is_its_outcome(world: World) -> None:
    plain, gpu = await pair(world, asks)
    await plain.start(asks, "lasts", id="1")
    await until(lambda: board.calls)
    await world.crash(plain)
    board.go_on.set()
    await eventually(lambda: states(gpu, "perdure.step:lasts"), lambda found: found == [State.SUCCEEDED])
    plain = await world.engine(asks)
    assert await plain.handle(asks, "1").result() == "lasted"
    assert len(board.calls) == 1


async def test_a_caller_that_waits_may_leave_memory(world: World) -> None:
    plain, _ = await pair(world, asks, max_resident=0)
    handle = await plain.start(asks, "lasts", id="1")
    await until(lambda: board.calls)
    await world.unloaded(handle)
    board.go_on.set()
    assert await handle.result() == "lasted"
    assert len(board.calls) == 1


async def test_an_attempt_that_dies_begins_again_with_the_same_key(world: World) -> None:
    plain, gpu = await pair(world, asks)
    handle = await plain.start(asks, "lasts", id="1")
    await until(lambda: board.calls)
    await world.restart(gpu)
    await until(lambda: len(board.calls) == 2)
    board.go_on.set()
    assert await handle.result() == "lasted"
    assert len(set(board.calls)) == 1


async def test_an_at_most_once_attempt_that_dies_is_unknown_to_the_caller(world: World) -> None:
    plain, gpu = await pair(world, asks)
    handle = await plain.start(asks, "once", id="1")
    await until(lambda: board.calls)
    await world.restart(gpu)
    with pytest.raises(FlowFailed) as failed:
        await handle.result()
    assert isinstance(failed.value.__cause__, OutcomeUnknown)
    assert len(board.calls) == 1


async def test_an_at_most_once_step_does_not_care_whether_the_caller_dies(world: World) -> None:
    plain, _ = await pair(world, asks)
    await plain.start(asks, "once", id="1")
    await until(lambda: board.calls)
    plain = await world.restart(plain)
    board.go_on.set()
    assert await plain.handle(asks, "1").result() == "once"
    assert len(board.calls) == 1


# ---------------------------------------------------------------- cancelling


@flow
async def gives_up() -> str:
    try:
        async with asyncio.timeout(10):
            return await lasts()
    except TimeoutError:
        await perdure.receive(str)
        return "gave up"


@flow
async def leaves_it() -> str:
    task = asyncio.create_task(asks_directly())
    await perdure.receive(str)
    return str(task.done())


async def asks_directly() -> str:
    return await lasts()


async def test_cancelling_the_caller_reaches_the_step(world: World) -> None:
    plain, _ = await pair(world, asks)
    handle = await plain.start(asks, "lasts", id="1")
    await until(lambda: board.calls)
    await handle.cancel()
    with pytest.raises(FlowCancelled):
        await handle.result()
    await until(lambda: board.ended)


async def test_a_time_limit_of_the_callers_reaches_the_step(world: World) -> None:
    plain, _ = await pair(world, gives_up)
    handle = await plain.start(gives_up, id="1")
    await until(lambda: board.calls)
    world.clock.advance(10)
    await until(lambda: board.ended)
    await handle.send("well")
    assert await handle.result() == "gave up"
    assert await world.pending(handle) == []


async def test_a_flow_that_ends_ends_its_steps(world: World) -> None:
    plain, _ = await pair(world, leaves_it)
    handle = await plain.start(leaves_it, id="1")
    await until(lambda: board.calls)
    await handle.send("end")
    assert await handle.result() == "False"
    await until(lambda: board.ended)


async def test_a_time_limit_is_replayed_by_a_caller_that_died_then(world: World) -> None:
    plain, _ = await pair(world, gives_up)
    handle = await plain.start(gives_up, id="1")
    await until(lambda: board.calls)
    world.clock.advance(10)
    await until(lambda: board.ended)
    await world.parked(handle)
    plain = await world.restart(plain)
    handle = plain.handle(gives_up, "1")
    await handle.send("well")
    assert await handle.result() == "gave up"
    assert len(board.calls) == 1


async def test_who_cancels_the_steps_own_instance_fails_the_step(world: World) -> None:
    plain, _ = await pair(world, asks)
    handles = [await plain.start(asks, name, id=name) for name in ("lasts", "once")]
    await until(lambda: len(board.calls) == 2)
    async for info in plain.find():
        if info.flow.startswith("perdure.step:"):
            await plain.cancel(info.flow, info.id)
    causes: list[BaseException | None] = []
    for handle in handles:
        with pytest.raises(FlowFailed) as failed:
            await handle.result()
        causes.append(failed.value.__cause__)
    assert [type(cause) for cause in causes] == [FlowCancelled, OutcomeUnknown]


# ---------------------------------------------------------------- mending, deploys


async def test_an_outcome_that_was_removed_is_made_again(world: World) -> None:
    plain, _ = await pair(world, renders)
    handle = await plain.start(renders, "dawn", id="1")
    await handle.result()
    panel = await plain.panel(renders, "1")
    panel.entries.remove("render")
    assert await (await panel.restart()).result() == "dawn at 7!"
    assert len(board.calls) == 2
    assert len({call[2] for call in board.calls}) == 1


@flow
async def renders_two() -> list[str]:
    found = [await render("a"), await render("b")]
    await perdure.receive(str)
    return found


async def test_one_in_the_middle_is_made_again_in_its_place(world: World) -> None:
    plain, _ = await pair(world, renders_two)
    handle = await plain.start(renders_two, id="1")
    await world.parked(handle)
    panel = await plain.panel(renders_two, "1")
    panel.entries.remove("0")
    await panel.save()
    await until(lambda: len(board.calls) == 3)
    await handle.send("go on")
    assert await handle.result() == ["a at 1", "b at 1"]
    assert [e.outcome for e in await steps_of(world, handle)] == [b'"a at 1"', b'"b at 1"']


async def test_an_outcome_that_was_set_needs_nobody(world: World) -> None:
    plain = await world.engine(asks)
    await plain.start(asks, "nowhere", id="1")
    await world.parked(plain.handle(asks, "1"))
    panel = await plain.panel(asks, "1")
    assert [row["name"] for row in panel.pending] == ["nowhere"]
    panel.entries.set("0", "here")
    await panel.save()
    assert await plain.handle(asks, "1").result() == "here"


where: str | None = None


@flow
async def moves() -> str:
    found = await render.options(queue=where)("dawn")
    await perdure.receive(str)
    return found + await render.options(queue=where)("dusk")


@pytest.mark.parametrize(("before", "after"), [(None, GPU), (GPU, None), (GPU, "")])
async def test_a_step_may_be_put_on_a_queue_and_taken_off_it_at_any_time(
    world: World, monkeypatch: pytest.MonkeyPatch, before: str | None, after: str | None
) -> None:
    await world.engine(queues=[GPU], steps=STEPS)
    monkeypatch.setitem(globals(), "where", before)
    plain = await world.engine(moves, steps=STEPS)
    handle = await plain.start(moves, id="1")
    await eventually(lambda: steps_of(world, handle))
    monkeypatch.setitem(globals(), "where", after)
    plain = await world.restart(plain, moves, steps=STEPS)
    await plain.handle(moves, "1").send("go on")
    assert await plain.handle(moves, "1").result() == "dawn at 1dusk at 1"
    assert [call[0] for call in board.calls] == ["dawn", "dusk"]


@flow
async def asks_once_where_it_is_now() -> str:
    try:
        return await once.options(queue=where)()
    except OutcomeUnknown:
        return "unknown"


@pytest.mark.parametrize(("before", "after"), [(None, GPU), (GPU, None)])
async def test_an_at_most_once_step_that_moves_while_it_runs_is_unknown(
    world: World, monkeypatch: pytest.MonkeyPatch, before: str | None, after: str | None
) -> None:
    await world.engine(queues=[GPU], steps=STEPS)
    monkeypatch.setitem(globals(), "where", before)
    plain = await world.engine(asks_once_where_it_is_now)
    await plain.start(asks_once_where_it_is_now, id="1")
    await until(lambda: board.calls)
    monkeypatch.setitem(globals(), "where", after)
    plain = await world.restart(plain)
    if before == GPU:
        board.go_on.set()  # its caller waits for that, and looks at its new code when it has come
    assert await plain.handle(asks_once_where_it_is_now, "1").result() == "unknown"
    assert len(board.calls) == 1


@flow
async def goes_round(n: int) -> str:
    found = await render(str(n))
    if n:
        await perdure.continue_as_new(n - 1)
    return found


async def test_each_run_has_its_own(world: World) -> None:
    plain, _ = await pair(world, goes_round)
    assert await plain.run(goes_round, 2, id="1") == "0 at 1"
    assert [call[0] for call in board.calls] == ["2", "1", "0"]
    assert len({call[2] for call in board.calls}) == 3


# ---------------------------------------------------------------- calls of every kind


@step(name="crops")
async def crop(picture: str) -> str:
    return f"crop of {picture}"


@flow
async def calls_it_every_way() -> list[str]:
    return [
        await capture(render, "a", name="label"),
        await render.options(id="b")("b"),
        *await asyncio.gather(*(render(c) for c in "cde")),
        await crop.options(queue=GPU)("f"),
    ]


async def test_it_may_be_captured_renamed_and_asked_for_side_by_side(world: World) -> None:
    await world.engine(queues=[GPU], steps=[render, crop])
    plain = await world.engine(calls_it_every_way)
    handle = await plain.start(calls_it_every_way, id="1")
    assert await handle.result() == [f"{c} at 1" for c in "abcde"] + ["crop of f"]
    names = {e.name for e in await steps_of(world, handle)}
    assert names == {"label", "render", "crops"}
    assert {"=b"} < {e.key for e in await steps_of(world, handle)}


class Camera:
    def __init__(self, place: str) -> None:
        self.place = place

    @step(queue=GPU)
    async def shoot(self, lux: int) -> str:
        return f"picture {self.place} at {lux}"


@flow
async def shoots() -> str:
    return await Camera("here").shoot(5)


async def test_a_method_runs_on_the_object_that_was_given_there(world: World) -> None:
    await world.engine(queues=[GPU], steps=[Camera("there").shoot])
    plain = await world.engine(shoots)
    assert await plain.run(shoots, id="1") == "picture there at 5"


@flow
async def calls_what_cannot_be_elsewhere() -> None:
    for options in ({"retry": Retry()}, {"timeout": 3}, {"at_most_once": True}):
        with pytest.raises(NotSupported, match="give them to @step"):
            await render.options(**options)("a")  # type: ignore[arg-type]
    with pytest.raises(NotSupported, match="give them to @step"):
        await capture(render, "a", returns=str)
    with pytest.raises(NotEncodable, match="render"):
        await render(object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="control"):
        await render.options(queue="a\nb")("a")
    await render.options(id="x")("a")
    with pytest.raises(DuplicateId):
        await render.options(id="x")("a")


async def test_what_would_mean_something_else_there_is_refused(world: World) -> None:
    plain, _ = await pair(world, calls_what_cannot_be_elsewhere)
    await plain.run(calls_what_cannot_be_elsewhere, id="1")
    assert [call[0] for call in board.calls] == ["a"]


async def test_outside_flows_it_just_runs() -> None:
    assert await crop.options(queue=GPU)("x") == "crop of x"
    assert await Camera("x").shoot(1) == "picture x at 1"


def test_what_is_no_step_or_named_twice_is_refused() -> None:
    @step(name="render")
    def another() -> None: ...

    with pytest.raises(TypeError, match="not a step"):
        Engine("memory://", steps=[len])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="bound to the object"):
        Engine("memory://", steps=[Camera.shoot])
    with pytest.raises(ValueError, match="two steps are named 'render'"):
        Engine("memory://", steps=[render, another])
    with pytest.raises(ValueError, match="no step in it"):
        Engine("memory://", steps=[ModuleType("empty")])


# ---------------------------------------------------------------- in tests


async def test_in_the_fixture_all_queues_are_one() -> None:
    async with Flows() as flows:
        handle = await flows.start(renders, "dawn", id="1", queue="any")
        assert await handle.result() == "dawn at 7!"
        flows.stub(render, returns="a stub")
        assert await flows.run(renders, "dusk", id="2") == "a stub!"
        assert flows.steps("2") == ["render"]


@pytest.mark.parametrize("ended", [False, True])
async def test_a_recording_of_a_caller_is_replayed(world: World, ended: bool) -> None:
    plain, _ = await pair(world, renders_two)
    handle = await plain.start(renders_two, id="1", queue=None)
    await world.parked(handle)
    if ended:
        await eventually(lambda: steps_of(world, handle), lambda found: len(found) == 2)
        await handle.send("go on")
        await handle.result()
    found = await replay(await record(plain, renders_two, "1"), renders_two)
    assert found.result == (["a at 1", "b at 1"] if ended else None)


@pytest.mark.parametrize("name", ["lasts", "once"])
async def test_a_recording_of_a_caller_that_waits_asks_for_what_it_waits_for(world: World, name: str) -> None:
    plain, _ = await pair(world, asks)
    await plain.start(asks, name, id="1")
    await until(lambda: board.calls)
    found = await replay(await record(plain, asks, "1"), asks)
    assert (found.state, [one.partition(" (")[0] for one in found.asks_for]) == (None, [f"step {name}"])
    board.go_on.set()


@flow
async def renders_with_a_child() -> list[str]:
    return [await render("a"), await perdure.run(renders, "b", queue="other"), await render("c")]


async def test_crashed_everywhere_a_step_on_a_queue_runs_where_its_flow_is() -> None:
    result = await crash_everywhere(renders_with_a_child)
    assert result == ["a at 1", "b at 7!", "c at 1"]


# ---------------------------------------------------------------- whatever goes wrong


done: dict[str, int] = {}


@step(queue=GPU, retry=Retry(attempts=3, initial=1))
async def counts_by_key(n: int) -> int:
    info = current()
    done[info.key] = n
    await asyncio.sleep(n)
    if info.attempt < n:
        raise ConnectionError
    return n


@step(queue=GPU, at_most_once=True)
async def counts_once(n: int) -> int:
    await asyncio.sleep(n)
    return n


@flow
async def films(n: int) -> list[Any]:
    found: list[Any] = [await counts_by_key(n)]
    try:
        async with asyncio.timeout(2 * n):
            found += await asyncio.gather(counts_by_key(1), counts_by_key(2))
    except TimeoutError:
        found.append(-1)
    try:
        found.append(await counts_once(1))
    except OutcomeUnknown:
        found.append(0)
    return [*found, await perdure.run(films, n - 1, queue=GPU)] if n else found


async def starts_films(world: Any) -> None:
    for n in range(3):
        await world.start(films, n, id=str(n), queue=["", GPU][n % 2])


def all_are_on_their_queues(world: Any) -> bool:
    """Each step has run as an instance of its own."""
    flows = {seen.flow for seen in world.instances}
    return flows == {"films", "perdure.step:counts_by_key", "perdure.step:counts_once"}


async def test_a_cluster_with_queues_comes_through_whatever_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClusterSystem, "queues", True)
    found = await simulate(
        starts_films, flows=[films], seeds=range(40), effects=done, invariant=all_are_on_their_queues,
        queues=["", GPU], steps=[counts_by_key, counts_once],
    )  # fmt: skip
    assert found.seeds == 40
