"""What had ended is compared to its end, as far as that was the code's doing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from perdure import FlowCancelled, NonDeterminismError, State, flow, receive, step, type_name
from perdure.testing.recording import Recording
from perdure.testing.replaying import OtherEnd, replay
from tests.support.world import World
from tests.testing.recordings.conftest import Keep


@step
async def work(what: str) -> str:
    return what


async def ended(world: World, keep: Keep) -> Recording:
    """Of `order`, which did a step and returned 1."""

    @flow(name="order")
    async def order() -> int:
        await work("a")
        return 1

    engine = await world.engine(order)
    await engine.run(order, id="1")
    return await keep(engine, order, "1")


async def test_another_result(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def changed() -> int:
        await work("a")
        return 2

    with pytest.raises(OtherEnd, match=r"order '1' had succeeded with 1 where .* succeeded with 2$"):
        await replay(await ended(world, keep), changed)


async def test_a_failure_instead_of_a_result(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def changed() -> int:
        await work("a")
        raise ValueError("late")

    with pytest.raises(OtherEnd, match=r"failed with ValueError\('late'\)"):
        await replay(await ended(world, keep), changed)


async def test_code_that_goes_on_where_the_run_had_ended(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def changed() -> str:
        await work("a")
        return await work("b")

    with pytest.raises(OtherEnd, match=r"asks for step work \(1\) at .*test_ends\.py:\d+$") as caught:
        await replay(await ended(world, keep), changed)
    assert caught.value.line.endswith(f":{changed.fn.__code__.co_firstlineno + 3}")


async def test_code_that_ends_earlier(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def changed() -> int:
        return 1

    with pytest.raises(NonDeterminismError, match="the journal goes on with step work") as caught:
        await replay(await ended(world, keep), changed)
    assert not isinstance(caught.value, OtherEnd)


async def test_an_end_by_hand_is_not_compared(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order() -> str:
        await work("a")
        return await receive(str)

    engine = await world.engine(order)
    await world.parked(await engine.start(order, id="1"))
    await (await engine.panel(order, "1")).succeed("by hand")
    recording = await keep(engine, order, "1")
    assert recording.state is State.SUCCEEDED
    assert (await replay(recording, order)).state is None


async def test_an_end_without_code_is_not_compared(world: World, keep: Keep) -> None:
    @flow(name="order")
    async def order() -> None:
        await work("a")

    engine = await world.engine(order)
    handle = await engine.start(order, id="1", after=60)
    await handle.cancel()
    with pytest.raises(FlowCancelled):
        await handle.result()
    assert (await replay(await keep(engine, order, "1"), order)).asks_for == (
        "step work (0)",
        "a cancel request",
    )


async def test_a_result_with_a_new_field_is_the_same(world: World, keep: Keep) -> None:
    receipt = dataclasses.make_dataclass("Receipt", [("number", int)])
    receipt = type_name("test.Receipt")(receipt)

    @flow(name="order")
    async def order() -> Any:
        await work("a")
        return receipt(1)

    engine = await world.engine(order)
    await engine.run(order, id="1")
    recording = await keep(engine, order, "1")
    newer = dataclasses.make_dataclass("Receipt", [("number", int), ("tax", int, 0)])
    newer = type_name("test.Receipt")(newer)

    @flow(name="order")
    async def changed() -> Any:
        await work("a")
        return newer(1)

    assert (await replay(recording, changed)).result == newer(1, 0)
