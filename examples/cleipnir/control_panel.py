"""The flow of `ship_once`, when somebody has looked: the goods did not go out, so they may be shipped after all."""

import asyncio
import tempfile
from uuid import uuid4

from examples.cleipnir.ship_once import Logistics, Order, PaymentProvider, order_flow
from perdure import Engine, FlowFailed, FlowFunction


class LostLetter(Logistics):
    """The first request never arrived, and nobody knows."""

    def __init__(self) -> None:
        super().__init__(answers=True)
        self.asked = 0

    async def ship(self, customer: object, products: object) -> None:
        """See Logistics."""
        self.asked += 1
        if self.asked == 1:
            await asyncio.Event().wait()
        print("shipped")


async def ship_again(engine: Engine, run: FlowFunction[[Order], None], id: str) -> None:
    """The flow has ended; what it had done before it shipped is not done again."""
    panel = await engine.panel(run, id)
    panel.entries.remove("ShipProducts")  # `panel.entries.set("ShipProducts", None)` if they had gone out
    handle = await panel.restart()
    await handle.result()


async def main() -> None:
    payments, logistics = PaymentProvider(), LostLetter()
    run = order_flow(payments, logistics)
    order = Order("MK-54321", uuid4(), [uuid4()])
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/orders.db", flows=[run]) as engine:
            try:
                await engine.run(run, order, id=order.id)
            except FlowFailed as failed:
                print(type(failed.__cause__).__name__)
            await ship_again(engine, run, order.id)
            print("payments:", *payments.payments.values())


if __name__ == "__main__":
    asyncio.run(main())
