"""Values that break things: codec hooks that fail or never say the same twice, types that changed, wrong arguments."""

import asyncio
import contextvars
import itertools
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import pytest

from perdure import Retry, State, StepFailed, capture, delay, flow, receive, run, send, step, type_name
from tests.support.world import World, eventually


class Nonces:
    """A hook like encryption: the same bytes never look the same twice."""

    def __init__(self) -> None:
        self._n = itertools.count()

    def encode(self, data: bytes, /) -> bytes:
        return b"%d:" % next(self._n) + data

    def decode(self, data: bytes, /) -> bytes:
        return data.split(b":", 1)[1]


async def test_a_hook_that_encrypts_with_nonces_is_no_mismatch(world: World) -> None:
    @flow
    async def child(x: int) -> int:
        return x + 1

    @flow
    async def parent() -> list[Any]:
        await send("child", "nobody", {"a": 1}, key="k")
        got = await capture(lambda x: x, 5)
        other = await run(child, got)
        return [got, other, await receive(int)]

    hook = Nonces()
    engine = await world.engine(parent, child, codec=hook)
    handle = await engine.start(parent, id="1")
    await eventually(lambda: world.journal(handle), lambda entries: len(entries) >= 5)
    await world.parked(handle)
    engine = await world.restart(engine)
    handle = engine.handle(parent, "1")
    await handle.send(3)
    assert await handle.result(timeout=10) == [5, 6, 3]


class Locked:
    """A hook that cannot read some messages, like one whose key is gone."""

    def encode(self, data: bytes, /) -> bytes:
        return data

    def decode(self, data: bytes, /) -> bytes:
        if b"poison" in data:
            raise RuntimeError("no key for this")
        return data


@pytest.mark.fault(38)
@pytest.mark.peer(29)
async def test_a_message_that_the_hook_cannot_read_hurts_nobody_else(world: World) -> None:
    @flow
    async def waits() -> str:
        return await receive(str)

    engine = await world.engine(waits, codec=Locked())
    poisoned, other = await engine.start(waits, id="1"), await engine.start(waits, id="2")
    await world.parked(poisoned)
    replica = (await engine.health()).replica
    await poisoned.send("poison")
    await other.send("good")
    assert await other.result(timeout=5) == "good"
    await poisoned.send("good as well")
    assert await poisoned.result(timeout=5) == "good as well"
    assert (await engine.health()).replica == replica  # it did not have to begin anew


async def test_arguments_that_the_hook_cannot_read_block_the_instance(world: World) -> None:
    @flow
    async def takes(x: str) -> str:
        return x

    engine = await world.engine(takes, codec=Locked())
    blocked = await engine.start(takes, "poison", id="1")
    assert "no key for this" in await world.blocked(blocked)


class CannotWrite:
    """A hook that cannot write errors that speak of something."""

    def encode(self, data: bytes, /) -> bytes:
        if b"unspeakable" in data:
            raise RuntimeError("cannot be encrypted")
        return data

    def decode(self, data: bytes, /) -> bytes:
        return data


async def test_an_outcome_that_the_hook_cannot_write_does_not_hang_the_flow(world: World) -> None:
    @step
    async def fails() -> None:
        raise ValueError("unspeakable")

    @flow
    async def body() -> None:
        await fails()

    engine = await world.engine(body, codec=CannotWrite())
    handle = await engine.start(body, id="1")
    state = await eventually(handle.state, lambda s: s.ended or s is State.BLOCKED, seconds=3)
    assert state in (State.FAILED, State.BLOCKED)


async def test_arguments_that_do_not_fit_are_refused_also_by_name(world: World) -> None:
    @flow
    async def two(a: int, b: int) -> int:
        return a + b

    engine = await world.engine(two)
    with pytest.raises(TypeError):
        await engine.start(two.name, 1, 2, 3, id="1")


async def test_arguments_that_do_not_fit_the_code_block_the_instance(world: World) -> None:
    """Started by name by a client that knows no better, or by an older release."""

    @flow
    async def two(a: int, b: int) -> int:
        return a + b

    engine = await world.engine(two)
    client = await world.engine(execute=False)
    wrong = await client.start(two.name, 1, 2, 3, id="1")
    assert "TypeError" in await world.blocked(wrong)
    assert await engine.run(two, 1, 2, id="2", timeout=5) == 3  # the engine goes on


async def test_a_child_gains_a_field_with_a_default_while_its_parent_waits(world: World) -> None:
    before = make_dataclass("Order", [("total", int)], frozen=True, namespace={"__module__": __name__})

    @flow(name="child")
    async def child(order: Any) -> int:
        return await receive(int) + order.total

    @flow(name="parent")
    async def parent() -> int:
        return await child(before(1))

    engine = await world.engine(parent, child)
    handle = await engine.start(parent, id="1")
    await eventually(lambda: world.journal(handle), lambda entries: len(entries) == 2)
    await world.parked(handle)
    ((_, kid),) = await _ids(engine, "child")

    fields = [("total", int), ("currency", str, field(default="EUR"))]
    after = make_dataclass("Order", fields, frozen=True, namespace={"__module__": __name__})

    @flow(name="parent")
    async def parent2() -> int:
        return await child(after(1))

    engine = await world.restart(engine, parent2, child)
    await engine.send("child", kid, 41)
    assert await engine.handle(parent2, "1").result(timeout=5) == 42


async def _ids(engine: Any, flow: str) -> list[tuple[str, str]]:
    return [(info.flow, info.id) async for info in engine.find(flow)]


async def test_arguments_of_a_type_that_is_gone_are_a_mismatch_and_no_error_of_the_flow(world: World) -> None:
    class Renamed:
        """The stored name is of a class that this program has not."""

        on = False

        def encode(self, data: bytes, /) -> bytes:
            return data

        def decode(self, data: bytes, /) -> bytes:
            return data.replace(b"review.Gone", b"nowhere:Gone") if self.on else data

    @type_name("review.Gone")
    @dataclass(frozen=True)
    class Gone:
        total: int

    @step(name="work")
    async def work(order: Any) -> int:
        return 1

    now: list[Any] = [Gone(1)]

    @flow(name="body")
    async def body() -> int:
        try:
            await work(now[0])
        except Exception:
            return -1
        return await receive(int)

    hook = Renamed()
    engine = await world.engine(body, codec=hook)
    handle = await engine.start(body, id="1")
    await eventually(lambda: world.journal(handle), lambda entries: len(entries) == 2)
    hook.on, now[0] = True, {"total": 1}
    engine = await world.restart(engine)
    await engine.send(body, "1", 1)
    assert "NonDeterminismError" in await world.blocked(engine.handle(body, "1"))


async def test_where_that_changes_the_message_changes_nothing(world: World) -> None:
    """The flow gets what decoding the written bytes gives, the first time too."""

    @flow
    async def body() -> list[Any]:
        got = await receive(list, where=lambda m: bool(m.pop()))
        return [got, await capture(lambda: 1)]

    engine = await world.engine(body)
    handle = await engine.start(body, id="1")
    await world.parked(handle)
    await handle.send([1, 2, 3])
    assert await handle.result(timeout=5) == [[1, 2, 3], 1]


async def test_a_sync_step_that_raises_stop_iteration_has_failed(world: World) -> None:
    @flow
    async def body() -> str:
        try:
            await capture(lambda: next(iter([])))
        except (StepFailed, RuntimeError) as error:
            return str(error)
        return "?"

    engine = await world.engine(body)
    assert "StopIteration" in await engine.run(body, id="1", timeout=3)


async def test_a_sync_step_that_exits_has_failed_and_the_process_lives(world: World) -> None:
    """argparse, click: a library's `sys.exit` in a thread is no signal."""

    def exits() -> None:
        raise SystemExit(2)

    @flow
    async def body() -> str:
        try:
            await capture(exits)
        except StepFailed as error:
            return error.type
        return "?"

    engine = await world.engine(body)
    assert await engine.run(body, id="1", timeout=3) == "SystemExit"


async def test_a_wait_for_ever_hides_nothing_from_find(world: World) -> None:
    @flow
    async def for_ever() -> None:
        await asyncio.sleep(float("inf"))

    @flow
    async def very_long() -> None:
        await delay(1e13)

    engine = await world.engine(for_ever, very_long)
    handles = [await engine.start(for_ever, id="1"), await engine.start(very_long, id="2")]
    for one in handles:
        await world.parked(one)
    assert [info.id async for info in engine.find()] == ["1", "2"]


async def test_a_lower_payload_limit_strands_nobody(world: World) -> None:
    @step
    async def size(text: str) -> int:
        return len(text)

    @flow
    async def body() -> int:
        return await size("x" * 10_000) + await receive(int)

    engine = await world.engine(body)
    handle = await engine.start(body, id="1")
    await eventually(lambda: world.journal(handle), lambda entries: len(entries) == 2)
    engine = await world.restart(engine, payload_limit=1_000)
    await engine.send(body, "1", 1)
    assert await engine.handle(body, "1").result(timeout=5) == 10_001


async def test_attempts_do_not_see_each_others_context(world: World) -> None:
    mark: contextvars.ContextVar[int] = contextvars.ContextVar("mark", default=0)
    seen: list[int] = []

    @step(retry=Retry(attempts=3, initial=0))
    async def marks() -> int:
        seen.append(mark.get())
        mark.set(mark.get() + 1)
        if len(seen) < 3:
            raise ValueError("again")
        return mark.get()

    @flow
    async def body() -> list[int]:
        mark.set(10)
        return [await marks(), mark.get()]

    engine = await world.engine(body)
    assert await engine.run(body, id="1", timeout=5) == [11, 10]
    assert seen == [10, 10, 10]
