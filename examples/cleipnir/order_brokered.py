"""An order flow that talks to its services over a message bus."""

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from perdure import Engine, FlowFunction, capture, flow, receive


@dataclass(frozen=True)
class Order:
    id: str
    customer: UUID
    products: list[UUID]
    total: Decimal


@dataclass(frozen=True)
class ReserveFunds:
    order: str
    amount: Decimal
    transaction: UUID
    customer: UUID


@dataclass(frozen=True)
class ShipProducts:
    order: str
    customer: UUID
    products: list[UUID]


@dataclass(frozen=True)
class CaptureFunds:
    order: str
    customer: UUID
    transaction: UUID


@dataclass(frozen=True)
class SendOrderConfirmationEmail:
    order: str
    customer: UUID
    tracking: str


@dataclass(frozen=True)
class FundsReserved:
    order: str


@dataclass(frozen=True)
class ProductsShipped:
    order: str
    tracking: str


@dataclass(frozen=True)
class FundsCaptured:
    order: str


@dataclass(frozen=True)
class OrderConfirmationEmailSent:
    order: str


Event = FundsReserved | ProductsShipped | FundsCaptured | OrderConfirmationEmailSent
EVENTS = (FundsReserved, ProductsShipped, FundsCaptured, OrderConfirmationEmailSent)


class Bus:
    """Gives each message to the handlers of its type, again and again until they have taken it, as brokers do."""

    def __init__(self) -> None:
        self.published: list[object] = []
        self._handlers: dict[type, list[Callable[[Any], Awaitable[None]]]] = defaultdict(list)
        self._deliveries: set[asyncio.Task[None]] = set()

    def subscribe(self, handler: Callable[[Any], Awaitable[None]], *types: type) -> None:
        """The handler gets all messages of these types."""
        for each in types:
            self._handlers[each].append(handler)

    async def publish(self, message: object) -> None:
        """The bus has the message."""
        self.published.append(message)
        for handler in self._handlers[type(message)]:
            delivery = asyncio.create_task(self._deliver(handler, message))
            self._deliveries.add(delivery)
            delivery.add_done_callback(self._deliveries.discard)

    async def _deliver(self, handler: Callable[[Any], Awaitable[None]], message: object) -> None:
        while True:
            try:
                return await handler(message)
            except Exception:
                await asyncio.sleep(0.02)


def services(bus: Bus) -> None:
    """Payments, logistics and email, elsewhere: they do what the bus tells them, and tell it what they did."""

    async def handle(command: ReserveFunds | ShipProducts | CaptureFunds | SendOrderConfirmationEmail) -> None:
        print(type(command).__name__, command.order)
        match command:
            case ReserveFunds():
                await bus.publish(FundsReserved(command.order))
            case ShipProducts():
                await bus.publish(ProductsShipped(command.order, f"TT-{command.order}"))
            case CaptureFunds():
                await bus.publish(FundsCaptured(command.order))
            case SendOrderConfirmationEmail():
                await bus.publish(OrderConfirmationEmailSent(command.order))

    bus.subscribe(handle, ReserveFunds, ShipProducts, CaptureFunds, SendOrderConfirmationEmail)


def order_flow(bus: Bus) -> FlowFunction[[Order], str]:
    """The flow, with the bus that it publishes to."""

    @flow(name="OrderFlow")
    async def run(order: Order) -> str:
        transaction = await capture(uuid4)  # the same after every restart

        await publish_reserve_funds(order, transaction)
        await receive(FundsReserved)  # while it waits it costs a row

        await capture(bus.publish, ShipProducts(order.id, order.customer, order.products))
        tracking = (await receive(ProductsShipped)).tracking

        await capture(bus.publish, CaptureFunds(order.id, order.customer, transaction))
        await receive(FundsCaptured)

        await capture(bus.publish, SendOrderConfirmationEmail(order.id, order.customer, tracking))
        await receive(OrderConfirmationEmailSent)
        return tracking

    async def publish_reserve_funds(order: Order, transaction: UUID) -> None:  # any function of a flow may capture
        await capture(bus.publish, ReserveFunds(order.id, order.total, transaction, order.customer))

    return run


def forward(bus: Bus, engine: Engine, run: FlowFunction[[Order], str]) -> None:
    """The events that the bus has for an order are messages to its flow; however often they come, once each."""

    async def handle(event: Event) -> None:
        await engine.send(run, event.order, event, key=type(event).__name__)

    bus.subscribe(handle, *EVENTS)


async def main() -> None:
    bus = Bus()
    services(bus)
    run = order_flow(bus)
    order = Order("MK-54321", uuid4(), [uuid4()], Decimal(120))
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/orders.db", flows=[run]) as engine:
            forward(bus, engine, run)
            print("tracking number:", await engine.run(run, order, id=order.id))


if __name__ == "__main__":
    asyncio.run(main())
