"""Flows that go through several runs: what tests of them share."""

from typing import Any

from perdure import Handle, continue_as_new, flow, receive, step
from tests.support.stores import Held, as_store
from tests.support.world import World, eventually


@step(name="add")
async def add(n: int) -> int:
    return n + 1


@flow(name="count")
async def count(n: int, to: int) -> int:
    n = await add(n)
    if n >= to:
        return n
    return await continue_as_new(n, to)


@flow(name="waits")
async def waits(name: str) -> str:
    return f"{name} got {await receive(str)}"


async def begun(world: World, handle: Handle[Any], run: int) -> None:
    """The instance waits in that run."""
    await eventually(lambda: world.row(handle), lambda row: row.run == run)
    await world.parked(handle)


def held(world: World) -> Held:
    """The store of the world's next engine, whose batches the test can hold."""
    store = Held(world.store())
    world.store = lambda: as_store(store)  # type: ignore[method-assign]
    return store
