"""The program around a flow: set up once, then every posted order is an instance."""

import asyncio
import sys
import tempfile
from dataclasses import dataclass
from decimal import Decimal

from perdure import Engine, flow, step

ORDERS = 3


@dataclass(frozen=True)
class Order:
    id: str
    total: Decimal


@step
async def charge(order: Order) -> str:
    """The receipt."""
    print(f"{order.id}: {order.total} charged")
    return f"receipt of {order.id}"


@flow
async def order_flow(order: Order) -> str:
    return await charge(order)


class OrderController:
    """What the web framework calls for `POST /order`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def post(self, order: Order) -> str:
        """The order is done; posted again, it is not done again."""
        return await self._engine.run(order_flow, order, id=order.id)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        # A module stands for all flows in it.
        async with Engine(f"sqlite:///{folder}/orders.db", flows=[sys.modules[__name__]]) as engine:
            controller = OrderController(engine)
            orders = [Order(f"MK-{n}", Decimal(100 + n)) for n in range(ORDERS)]
            answers = await asyncio.gather(*(controller.post(order) for order in [*orders, *orders]))
            print(len(set(answers)), "receipts for", len(answers), "posts")


if __name__ == "__main__":
    asyncio.run(main())
