"""What is not the same every time goes through capture: here the transaction id that payments know a repeat by."""

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
    total: Decimal


class PaymentProvider:
    """One transaction id is one payment, however often it comes."""

    def __init__(self) -> None:
        self.requests = 0
        self.payments: dict[UUID, str] = {}

    async def reserve(self, transaction: UUID, customer: UUID, amount: Decimal) -> None:
        """The money is set aside."""
        self.requests += 1
        self.payments.setdefault(transaction, "reserved")

    async def capture(self, transaction: UUID) -> None:
        """The money is taken."""
        self.requests += 1
        self.payments[transaction] = "captured"


def order_flow(payments: PaymentProvider) -> FlowFunction[[Order], UUID]:
    """The flow, with the client that it needs."""

    @flow(name="OrderFlow")
    async def run(order: Order) -> UUID:
        transaction = await capture(uuid4, id="TransactionId")  # `new_uuid()` is the same, and costs nothing
        await capture(payments.reserve, transaction, order.customer, order.total)
        await capture(payments.capture, transaction)
        return transaction

    return run


async def main() -> None:
    payments = PaymentProvider()
    run = order_flow(payments)
    order = Order("MK-54321", uuid4(), Decimal(120))
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/orders.db", flows=[run]) as engine:
            transaction = await engine.run(run, order, id=order.id)
            print("payments:", payments.payments[transaction])


if __name__ == "__main__":
    asyncio.run(main())
