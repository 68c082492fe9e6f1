"""Steps: an outcome is recorded once, and replay never runs a recorded step again."""

import asyncio
import functools
import inspect
import threading
from typing import Any

import pytest

from perdure import (
    DuplicateId,
    FlowFailed,
    NotEncodable,
    Retry,
    StepFailed,
    capture,
    current,
    flow,
    receive,
    step,
)
from tests.support.clock import until
from tests.support.world import World, eventually

# ---------------------------------------------------------------- recorded once


async def test_a_recorded_step_never_runs_again(world: World) -> None:
    ran: list[str] = []

    @step
    async def work(name: str) -> str:
        ran.append(name)
        return name.upper()

    @flow
    async def chain() -> list[str]:
        first = await work("a")
        second = await capture(ran.append, "captured")
        third = await capture(lambda: len(ran))
        await receive(str)
        return [first, str(second), str(third), await work("b")]

    engine = await world.engine(chain)
    handle = await engine.start(chain, id="1")
    await world.parked(handle)
    for _ in range(3):
        engine = await world.restart(engine)
    await engine.send(chain, "1", "go")
    assert await engine.handle(chain, "1").result(timeout=10) == ["A", "None", "2", "B"]
    assert ran == ["a", "captured", "b"]


async def test_a_step_that_was_not_recorded_runs_again(world: World) -> None:
    ran: list[int] = []

    @step
    async def work() -> int:
        ran.append(current().attempt)
        if len(ran) == 1:
            await asyncio.Event().wait()
        return len(ran)

    @flow
    async def one() -> int:
        return await work()

    engine = await world.engine(one)
    await engine.start(one, id="1")
    await until(lambda: ran)
    engine = await world.restart(engine)
    assert await engine.handle(one, "1").result(timeout=10) == 2
    assert ran == [1, 1]  # being cut off is no failed attempt


async def test_an_exception_is_an_outcome_recorded_once(world: World) -> None:
    ran: list[int] = []

    @step
    async def broken() -> None:
        ran.append(1)
        raise ValueError("no", 7)

    @flow
    async def catches() -> list[Any]:
        try:
            await broken()
        except ValueError as error:
            caught = error
        await receive(str)
        return [type(caught).__name__, *caught.args]

    engine = await world.engine(catches)
    await world.parked(await engine.start(catches, id="1"))
    engine = await world.restart(engine)
    await engine.send(catches, "1", "go")
    assert await engine.handle(catches, "1").result(timeout=10) == ["ValueError", "no", 7]
    assert len(ran) == 1


async def test_a_flow_gets_what_decoding_gives_the_first_time_too(world: World) -> None:
    """Otherwise the first run could see an object that replay does not."""
    kept: list[list[int]] = []

    @step
    async def give() -> list[int]:
        kept.append([1])
        return kept[0]

    @flow
    async def changes() -> list[int]:
        value = await give()
        value.append(2)
        return value

    engine = await world.engine(changes)
    assert await engine.run(changes, id="1", timeout=10) == [1, 2]
    assert kept == [[1]]


async def test_steps_get_copies_of_their_arguments(world: World) -> None:
    @step
    async def spoil(values: list[int]) -> None:
        values.append(99)

    @step(copy=False)
    async def same(values: list[int]) -> None:
        values.append(7)

    @flow
    async def two() -> list[int]:
        values = [1]
        await spoil(values)
        await same(values)
        return values

    engine = await world.engine(two)
    assert await engine.run(two, id="1", timeout=10) == [1, 7]


async def test_an_argument_that_cannot_be_encoded_is_a_placeholder(world: World) -> None:
    class Client:
        def __init__(self) -> None:
            self.lock = threading.Lock()

    got: list[Client] = []
    client = Client()

    @step
    async def fetch(client: Client, path: str) -> str:
        got.append(client)
        return path

    @flow
    async def uses() -> str:
        value = await fetch(client, "/a")
        await receive(str)
        return value

    engine = await world.engine(uses)
    handle = await engine.start(uses, id="1")
    await world.parked(handle)
    entry = (await world.journal(handle))[1]
    assert b"Client" in (entry.arguments or b"")
    assert b"/a" in (entry.arguments or b"")
    client = Client()  # another object after the restart is no mismatch
    engine = await world.restart(engine)
    await engine.send(uses, "1", "go")
    assert await engine.handle(uses, "1").result(timeout=10) == "/a"
    assert len(got) == 1


async def test_a_value_that_need_not_be_kept_is_dropped(world: World) -> None:
    @flow
    async def drops() -> list[Any]:
        dropped = await capture(lambda: threading.Lock(), returns=type(None))
        kept = await capture(lambda: [1], returns=list[int])
        return [dropped, kept]

    engine = await world.engine(drops)
    assert await engine.run(drops, id="1", timeout=10) == [None, [1]]


# ---------------------------------------------------------------- forms


async def test_a_step_is_a_true_coroutine_function(world: World) -> None:
    class Store:
        def __init__(self, prefix: str) -> None:
            self.prefix = prefix

        @step
        async def put(self, key: str, *, value: int = 3) -> str:
            """Docs."""
            return f"{self.prefix}{key}{value}"

        @step
        def get(self, key: str) -> str:
            return self.prefix + key

    assert inspect.iscoroutinefunction(Store.put)
    assert inspect.iscoroutinefunction(Store("x").put)
    assert inspect.iscoroutinefunction(Store.get)  # a sync step is awaited too
    assert list(inspect.signature(Store("x").put).parameters) == ["key", "value"]
    assert Store.put.__doc__ == "Docs."
    assert Store.put.fn is not Store.put
    assert await Store("x").put("k", value=1) == "xk1"  # outside a flow it just runs
    assert await Store("x").get("k") == "xk"

    @flow
    async def methods() -> list[str]:
        first, second = Store("a"), Store("b")
        return [await first.put("k"), await second.put("l", value=4), await first.get("m")]

    engine = await world.engine(methods)
    handle = await engine.start(methods, id="1")
    assert await handle.result(timeout=10) == ["ak3", "bl4", "am"]
    journal = await world.journal(handle)
    assert [entry.arguments for entry in journal[1:4]] == [b'["k"]', b'[["l"],{"value":4}]', b'["m"]']  # self is none


async def test_capture_takes_any_callable(world: World) -> None:
    class Caller:
        async def __call__(self, x: int) -> int:
            return x + 1

    async def add(x: int, y: int = 0) -> int:
        return x + y

    @step
    async def own(x: int) -> int:
        return x * 2

    @flow
    async def forms() -> list[int]:
        return [
            await capture(add, 1, 2),
            await capture(functools.partial(add, 1, y=5)),
            await capture(functools.partial(functools.partial(add, y=7), 2)),
            await capture(lambda: 4),
            await capture(Caller(), 4),
            await capture(own, 3),
            await capture(max, 1, 9, id="biggest", name="the biggest"),
        ]

    engine = await world.engine(forms)
    handle = await engine.start(forms, id="1")
    assert await handle.result(timeout=10) == [3, 6, 9, 4, 5, 6, 9]
    last = (await world.journal(handle))[-1]
    assert (last.key, last.name) == ("=biggest", "the biggest")


async def test_implicit_ids_go_by_task_and_number(world: World) -> None:
    @step
    async def work(x: int) -> int:
        return x

    async def pair(x: int) -> int:
        return await work(x) + await work(x + 1)

    @flow
    async def tree() -> list[int]:
        first = await work(0)
        return [first, *await asyncio.gather(pair(1), pair(3)), await work(9)]

    engine = await world.engine(tree)
    handle = await engine.start(tree, id="1")
    assert await handle.result(timeout=10) == [0, 3, 7, 9]
    keys = {entry.key for entry in (await world.journal(handle))[1:]}
    assert keys == {"0", "0.0", "0.1", "1.0", "1.1", "1"}


async def test_an_explicit_id_names_one_operation(world: World) -> None:
    @step
    async def work(x: int) -> int:
        return x

    @flow
    async def twice() -> int:
        await work.options(id="charge")(1)
        return await work.options(id="charge")(2)

    engine = await world.engine(twice)
    with pytest.raises(FlowFailed) as failed:
        await engine.run(twice, id="1", timeout=10)
    assert isinstance(failed.value.__cause__, DuplicateId)
    assert "'charge'" in str(failed.value.__cause__)


async def test_a_sync_step_runs_in_a_thread_and_sees_who_it_is(world: World) -> None:
    @step
    def where() -> list[Any]:
        here = current()
        return [threading.current_thread() is threading.main_thread(), here.flow, here.id, here.step, here.attempt]

    @flow(name="threads")
    async def threads() -> list[Any]:
        return await where()

    engine = await world.engine(threads)
    assert await engine.run(threads, id="1", timeout=10) == [False, "threads", "1", where.name, 1]


async def test_a_step_in_a_step_is_a_plain_call(world: World) -> None:
    @step
    async def inner(x: int) -> int:
        return x + 1

    @step
    async def outer(x: int) -> int:
        return await inner(x) * 10

    @flow
    async def nested() -> int:
        return await outer(1)

    engine = await world.engine(nested)
    handle = await engine.start(nested, id="1")
    assert await handle.result(timeout=10) == 20
    assert [entry.name for entry in await world.journal(handle)][1:] == [outer.name]


async def test_who_am_i(world: World) -> None:
    seen: list[list[Any]] = []

    @step
    async def inside() -> None:
        here = current()
        seen.append([here.flow, here.id, here.step, here.replaying])

    @flow(name="asks")
    async def asks() -> list[Any]:
        here = current()
        before = [here.flow, here.id, here.step, here.attempt, here.parent, here.restarted, here.replaying]
        await inside()
        await receive(str)
        return [before, current().restarted, current().replaying]

    engine = await world.engine(asks)
    handle = await engine.start(asks, id="7")
    await world.parked(handle)
    engine = await world.restart(engine)
    await engine.send(asks, "7", "go")
    before, restarted, replaying = await engine.handle(asks, "7").result(timeout=10)
    assert before == ["asks", "7", None, 0, None, True, True]
    assert (restarted, replaying) == (True, False)
    assert seen == [["asks", "7", inside.name, False]]


# ---------------------------------------------------------------- odd outcomes


async def test_a_step_that_raises_cancelled_error_itself_has_failed(world: World) -> None:
    @step
    async def odd() -> None:
        raise asyncio.CancelledError("mine")

    @flow
    async def catches() -> str:
        try:
            await odd()
        except StepFailed as failed:
            return failed.type
        return "nothing"

    engine = await world.engine(catches)
    assert await engine.run(catches, id="1", timeout=10) == "asyncio.exceptions:CancelledError"


@pytest.mark.fault(43)
async def test_a_result_that_cannot_be_encoded_fails_once_and_is_not_tried_again(world: World) -> None:
    ran: list[int] = []

    @step(retry=Retry(attempts=5, initial=0))
    async def odd() -> Any:
        ran.append(1)
        return {"deep": [threading.Lock()]}

    @flow
    async def catches() -> list[str]:
        try:
            await odd()
        except NotEncodable as error:
            return [error.where, error.path]
        return []

    engine = await world.engine(catches)
    assert await engine.run(catches, id="1", timeout=10) == [odd.name, "['deep'][0]"]
    assert len(ran) == 1


async def test_static_and_class_methods(world: World) -> None:
    class Tools:
        factor = 3

        @staticmethod
        @step
        async def add(a: int, b: int) -> int:
            return a + b

        @classmethod
        @step
        async def scale(cls, a: int) -> int:
            return a * cls.factor

    @flow
    async def uses() -> list[int]:
        return [await Tools.add(1, 2), await Tools().add(3, 4), await Tools.scale(5), await Tools().scale(6)]

    engine = await world.engine(uses)
    handle = await engine.start(uses, id="1")
    assert await handle.result(timeout=10) == [3, 7, 15, 18]
    assert [e.arguments for e in await world.journal(handle)][3:] == [b"[5]", b"[6]"]  # the class is no argument


async def test_captured_steps_keep_their_options(world: World) -> None:
    ran: list[int] = []

    @step(name="work", retry=Retry(attempts=3, initial=0))
    async def work() -> int:
        ran.append(1)
        if len(ran) < 3:
            raise ConnectionError
        return len(ran)

    @flow
    async def uses() -> list[Any]:
        first = await capture(work.options(id="named"))
        with pytest.raises(DuplicateId):
            await capture(work, id="named")
        return [first, await capture(work, name="other", retry=Retry(attempts=1))]

    engine = await world.engine(uses)
    handle = await engine.start(uses, id="1")
    assert await handle.result(timeout=10) == [3, 4]
    assert [(e.key, e.name) for e in await world.journal(handle)][1:] == [("=named", "work"), ("0", "other")]


async def test_keyword_and_default_arguments_are_one_call_however_they_are_passed(world: World) -> None:
    calls = [lambda: work(1, b=2), lambda: work(1, 2), lambda: work(a=1, b=2)]

    @step
    async def work(a: int, b: int = 5, *rest: int, key: str = "k", **more: int) -> list[Any]:
        return [a, b, list(rest), key, more]

    @flow
    async def uses() -> list[Any]:
        got = await calls[0]()
        other = await work(1, 2, 3, key="x", y=7)
        await receive(str)
        return [got, other]

    engine = await world.engine(uses)
    await world.parked(await engine.start(uses, id="1"))
    for _ in range(2):
        calls.append(calls.pop(0))
        engine = await world.restart(engine)
    await engine.send(uses, "1", "go")
    expected = [[1, 2, [], "k", {}], [1, 2, [3], "x", {"y": 7}]]
    assert await engine.handle(uses, "1").result(timeout=10) == expected


async def test_many_steps_at_once(world: World) -> None:
    @step
    async def work(n: int) -> int:
        await asyncio.sleep(0)
        return n

    @step
    def in_thread(n: int) -> int:
        return n

    @flow
    async def wide(n: int) -> int:
        results = await asyncio.gather(*(work(i) for i in range(n)), *(in_thread(i) for i in range(100)))
        await receive(str)
        return sum(results)

    engine = await world.engine(wide)
    handle = await engine.start(wide, 2500, id="1")
    await eventually(lambda: world.journal(handle), lambda entries: len(entries) == 2601)
    engine = await world.restart(engine)
    await engine.send(wide, "1", "go")
    assert await engine.handle(wide, "1").result(timeout=10) == sum(range(2500)) + sum(range(100))


async def test_work_that_is_no_coroutine_function_but_gives_an_awaitable(world: World) -> None:
    async def inner() -> int:
        return 5

    @step
    def own(x: int) -> Any:
        return inner()

    assert await own(1) == 5

    @flow
    async def uses() -> int:
        return await capture(lambda: inner()) + await capture(functools.partial(own, x=1))

    engine = await world.engine(uses)
    assert await engine.run(uses, id="1", timeout=10) == 10
