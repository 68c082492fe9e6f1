"""A message to one flow, from wherever its id is known; with a key it is delivered once."""

import asyncio
import tempfile
from dataclasses import dataclass

from perdure import Engine, flow, receive


@dataclass(frozen=True)
class FundsReserved:
    order: str


@flow
async def order_flow(order_id: str) -> list[str]:
    first = await receive(FundsReserved)
    second = await receive(FundsReserved, timeout=0.2, default=None)  # nobody sends another one
    return [each.order for each in (first, second) if each]


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[order_flow]) as engine:
            await engine.start(order_flow, "MK-54321", id="MK-54321")
            handle = engine.handle(order_flow, "MK-54321")
            for _ in range(3):
                await handle.send(FundsReserved("MK-54321"), key="FundsReserved")
            print("received:", *await handle.result())


if __name__ == "__main__":
    asyncio.run(main())
