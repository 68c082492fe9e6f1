"""The order flow of the README: what is never called twice is the capture of the money."""

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
    """Takes the money as often as it is told to."""

    def __init__(self) -> None:
        self.reserved: set[UUID] = set()
        self.captured: list[UUID] = []

    async def reserve(self, customer: UUID, transaction: UUID, amount: Decimal) -> None:
        """The money is set aside."""
        self.reserved.add(transaction)
        print(f"payments: {amount} reserved")

    async def capture(self, transaction: UUID) -> str:
        """The tracking number: this provider ships as well."""
        self.captured.append(transaction)
        print("payments: captured")
        return f"TT-{len(self.captured)}"


class Email:
    """Writes to customers."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def send_confirmation(self, customer: UUID, tracking: str, products: list[UUID]) -> None:
        """The customer knows."""
        self.sent.append(tracking)
        print(f"email: {tracking} confirmed")


def order_flow(payments: PaymentProvider, email: Email) -> FlowFunction[[Order], str]:
    """The flow, with the clients that it needs."""

    @flow(name="OrderFlow")
    async def run(order: Order) -> str:
        transaction = await capture(uuid4)
        await capture(payments.reserve, order.customer, transaction, order.total)
        tracking = await capture(payments.capture, transaction, at_most_once=True)  # never called multiple times
        await capture(email.send_confirmation, order.customer, tracking, order.products)
        return tracking

    return run


async def main() -> None:
    run = order_flow(PaymentProvider(), Email())
    order = Order("MK-54321", uuid4(), [uuid4()], Decimal(120))
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/orders.db", flows=[run]) as engine:
            print("tracking number:", await engine.run(run, order, id=order.id))


if __name__ == "__main__":
    asyncio.run(main())
