"""A test of a flow: stubs for its services, and the outcome of a step given from the start."""

import asyncio
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol
from uuid import UUID, uuid4

from perdure import Engine, FlowFunction, InitialState, capture, flow


@dataclass(frozen=True)
class Order:
    id: str
    customer: UUID
    products: list[UUID]
    total: Decimal


class PaymentProvider(Protocol):
    async def reserve(self, transaction: UUID, customer: UUID, amount: Decimal) -> None: ...


class Email(Protocol):
    async def send_confirmation(self, customer: UUID, products: list[UUID]) -> None: ...


def order_flow(payments: PaymentProvider, email: Email) -> FlowFunction[[Order], None]:
    """What is tested."""

    @flow(name="OrderFlow")
    async def run(order: Order) -> None:
        transaction = await capture(uuid4, id="TransactionId")
        await capture(payments.reserve, transaction, order.customer, order.total)
        await capture(email.send_confirmation, order.customer, order.products)

    return run


class PaymentStub:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.used: list[UUID] = []

    async def reserve(self, transaction: UUID, customer: UUID, amount: Decimal) -> None:
        """See PaymentProvider."""
        self.used.append(transaction)


class EmailStub:
    """Does nothing."""

    async def send_confirmation(self, customer: UUID, products: list[UUID]) -> None:
        """See Email."""


async def main() -> None:
    payments, transaction = PaymentStub(), uuid4()
    run = order_flow(payments, EmailStub())
    order = Order("MK-54321", uuid4(), [uuid4()], Decimal(120))
    async with Engine("memory://", flows=[run]) as engine:  # a test needs no file
        given = InitialState(entries={"TransactionId": transaction}, messages=[])
        await engine.run(run, order, id=order.id, initial=given)
    assert payments.used == [transaction]
    print("the payment was made under the given id")


if __name__ == "__main__":
    asyncio.run(main())
