"""A service that does it again whenever it is asked: a lost outcome ends the flow rather than ship twice."""

import asyncio
import tempfile
from dataclasses import dataclass
from uuid import UUID, uuid4

from perdure import Engine, FlowFailed, FlowFunction, capture, flow


@dataclass(frozen=True)
class Order:
    id: str
    customer: UUID
    products: list[UUID]


class PaymentProvider:
    """Knows a repeat by its transaction id."""

    def __init__(self) -> None:
        self.payments: dict[UUID, str] = {}

    async def reserve(self, transaction: UUID) -> None:
        """The money is set aside."""
        self.payments[transaction] = "reserved"

    async def capture(self, transaction: UUID) -> None:
        """The money is taken."""
        self.payments[transaction] = "captured"


class Logistics:
    """Ships as often as it is told to, and may not answer."""

    def __init__(self, *, answers: bool) -> None:
        self.shipped: list[UUID] = []
        self.answers = answers

    async def ship(self, customer: UUID, products: list[UUID]) -> None:
        """The goods are gone, whether or not you hear of it."""
        self.shipped += products
        print(f"{len(products)} products shipped")
        if not self.answers:
            await asyncio.Event().wait()


def order_flow(payments: PaymentProvider, logistics: Logistics) -> FlowFunction[[Order], None]:
    """The flow, with the clients that it needs."""

    @flow(name="OrderFlow")
    async def run(order: Order) -> None:
        transaction = await capture(uuid4, id="TransactionId")
        await capture(payments.reserve, transaction)
        await capture(logistics.ship, order.customer, order.products, id="ShipProducts", at_most_once=True, timeout=0.2)
        await capture(payments.capture, transaction)

    return run


async def main() -> None:
    run = order_flow(PaymentProvider(), Logistics(answers=False))
    order = Order("MK-54321", uuid4(), [uuid4()])
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/orders.db", flows=[run]) as engine:
            try:
                await engine.run(run, order, id=order.id)
            except FlowFailed as failed:
                print(f"{type(failed.__cause__).__name__}: somebody must look whether the goods went out")


if __name__ == "__main__":
    asyncio.run(main())
