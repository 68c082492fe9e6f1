"""A flow that waits for two messages, in whichever order they come."""

import asyncio
import tempfile
from dataclasses import dataclass
from datetime import timedelta

from perdure import Engine, flow, messages


@dataclass(frozen=True)
class FundsReserved:
    order: str


@dataclass(frozen=True)
class InventoryLocked:
    order: str


@flow
async def wait_for_messages(order_id: str) -> list[str]:
    both = await messages(FundsReserved, InventoryLocked).take(2).list()
    return [type(each).__name__ for each in both]


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/flows.db"
        # How long a waiting flow stays in memory is the engine's matter: half a minute here, and 0 = it leaves at once.
        # Not said: until there are too many (`max_resident`).
        async with Engine(url, flows=[wait_for_messages], unload_after=timedelta(seconds=30)) as engine:
            handle = await engine.start(wait_for_messages, "MK-54321", id="MK-54321")
            await handle.send(InventoryLocked("MK-54321"))
        async with Engine(url, flows=[wait_for_messages], unload_after=0) as engine:
            handle = engine.handle(wait_for_messages, "MK-54321")
            await handle.send(FundsReserved("MK-54321"))
            print("complete after", " and ".join(await handle.result()))


if __name__ == "__main__":
    asyncio.run(main())
