"""Everything at once: two engines and a client on one store, engines die, memory is short, messages from everywhere."""

import asyncio
import random
from typing import Any

import pytest

from perdure import Engine, EngineClosed, flow, receive, start, step
from tests.support.world import World

FLOWS, MESSAGES, DEATHS = 40, 5, 3


@pytest.mark.parametrize("seed", range(4))
async def test_everything_arrives_once_and_in_order_whoever_dies(world: World, seed: int) -> None:
    chance = random.Random(seed)
    ran: dict[int, int] = {}

    @step
    async def note(n: int) -> None:
        ran[n] = ran.get(n, 0) + 1
        await asyncio.sleep(chance.random() * 0.002)

    @flow(name="child")
    async def child(n: int) -> int:
        return n + await receive(int)

    @flow(name="parent")
    async def parent(n: int) -> list[int]:
        got: list[int] = []
        for i in range(MESSAGES):
            got.append(await receive(int))
            await note(100 * n + i)
        if n % 5 == 0:
            handle = await start(child, n, id=f"child {n}")
            await handle.send(7)
            got.append(await handle.result())
        return got

    options: dict[str, Any] = {"max_resident": chance.choice([1, 3, 50])}
    engines = [await world.engine(parent, child, **options) for _ in range(2)]
    client = await world.engine(execute=False)

    def somebody() -> Engine:
        return chance.choice([*engines, client])

    async def send(n: int, i: int) -> None:
        try:
            await somebody().send(parent, str(n), i, key=f"key {i}")
        except EngineClosed:  # it may have been sent or not: the key makes it safe to send again
            await client.send(parent, str(n), i, key=f"key {i}")

    async def sender(part: int) -> None:
        for i in range(MESSAGES):
            for n in range(part, FLOWS, 4):
                await send(n, i)

    async def chaos() -> None:
        for _ in range(DEATHS):
            await asyncio.sleep(0.03)
            x = chance.randrange(2)
            dying, engines[x] = engines[x], client
            engines[x] = await world.restart(dying)

    await asyncio.gather(*(somebody().start(parent, n, id=str(n)) for n in range(FLOWS)))
    await asyncio.gather(*(sender(part) for part in range(4)), chaos())
    for n in range(FLOWS):
        expected = [*range(MESSAGES), *([n + 7] if n % 5 == 0 else [])]
        assert await client.handle(parent, str(n)).result(timeout=10) == expected
    assert len(ran) == FLOWS * MESSAGES
    assert max(ran.values()) <= 1 + DEATHS  # at most once more per death
