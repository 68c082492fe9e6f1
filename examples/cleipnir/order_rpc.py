"""An order flow that calls three services."""

import asyncio
import tempfile
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID, uuid4

from perdure import Engine, FlowFunction, capture, flow


@dataclass(frozen=True)
class Order:
    id: str
    customer: UUID
    products: list[UUID]
    total: Decimal


class PaymentProvider:
    """Knows a repeat by its transaction id."""

    def __init__(self) -> None:
        self.reserved: dict[UUID, Decimal] = {}
        self.captured: set[UUID] = set()

    async def reserve(self, customer: UUID, transaction: UUID, amount: Decimal) -> None:
        """The money is set aside."""
        self.reserved[transaction] = amount
        print(f"payments: {amount} reserved")

    async def capture(self, transaction: UUID) -> None:
        """The money is taken."""
        self.captured.add(transaction)
        print(f"payments: {self.reserved[transaction]} captured")


class Logistics:
    """Ships as often as it is told to."""

    def __init__(self) -> None:
        self.shipped: list[UUID] = []

    async def ship(self, customer: UUID, products: list[UUID]) -> str:
        """The tracking number."""
        self.shipped += products
        print(f"logistics: {len(products)} products on their way")
        return f"TT-{len(self.shipped)}"


class Email:
    """Writes to customers."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def send_confirmation(self, customer: UUID, tracking: str, products: list[UUID]) -> None:
        """The customer knows."""
        self.sent.append(tracking)
        print(f"email: {tracking} confirmed")


def order_flow(payments: PaymentProvider, logistics: Logistics, email: Email) -> FlowFunction[[Order], str]:
    """The flow, with the clients that it needs."""

    @flow(name="OrderFlow")
    async def run(order: Order) -> str:
        transaction = await capture(uuid4)  # the same after every restart
        await capture(payments.reserve, order.customer, transaction, order.total)
        tracking = await capture(logistics.ship, order.customer, order.products, at_most_once=True)
        await capture(payments.capture, transaction)
        await capture(email.send_confirmation, order.customer, tracking, order.products)
        return tracking

    return run


async def main() -> None:
    run = order_flow(PaymentProvider(), Logistics(), Email())
    order = Order("MK-54321", uuid4(), [uuid4()], Decimal(120))
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/orders.db", flows=[run]) as engine:
            print("tracking number:", await engine.run(run, order, id=order.id))


if __name__ == "__main__":
    asyncio.run(main())
