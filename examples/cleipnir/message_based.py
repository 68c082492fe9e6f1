"""The order flow over messages, written as if it were one sequence, which it is."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID, uuid4

from perdure import Engine, FlowFunction, capture, flow, get_logger, receive

log = get_logger("orders")


@dataclass(frozen=True)
class Order:
    id: str
    customer: UUID


@dataclass(frozen=True)
class Command:
    """What the order wants done."""

    order: str
    what: str
    transaction: UUID | None = None


@dataclass(frozen=True)
class FundsReserved:
    order: str


@dataclass(frozen=True)
class ProductsShipped:
    order: str


@dataclass(frozen=True)
class FundsCaptured:
    order: str


@dataclass(frozen=True)
class OrderConfirmationEmailSent:
    order: str


ANSWERS = {
    "ReserveFunds": FundsReserved,
    "ShipProducts": ProductsShipped,
    "CaptureFunds": FundsCaptured,
    "SendOrderConfirmationEmail": OrderConfirmationEmailSent,
}


class Bus:
    """A stand-in for a broker and the services behind it: each command is answered by its event, a moment later."""

    def __init__(self) -> None:
        self.sent: list[Command] = []
        self.listener: Callable[[str, object], Awaitable[None]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def send(self, command: Command) -> None:
        """The broker has the command."""
        self.sent.append(command)
        print(command.what)
        task = asyncio.create_task(self._answer(command))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, command: Command) -> None:
        await asyncio.sleep(0.01)
        if self.listener is not None:
            await self.listener(command.order, ANSWERS[command.what](command.order))


def order_flow(bus: Bus) -> FlowFunction[[Order], None]:
    """The flow, with the bus that it sends to."""

    @flow(name="OrderFlow")
    async def run(order: Order) -> None:
        log.info("processing of order %s started", order.id)
        transaction = await capture(uuid4)  # a local variable is durable: nothing is kept beside it

        await capture(bus.send, Command(order.id, "ReserveFunds", transaction))
        await receive(FundsReserved)

        await capture(bus.send, Command(order.id, "ShipProducts"))
        await receive(ProductsShipped)

        await capture(bus.send, Command(order.id, "CaptureFunds", transaction))
        await receive(FundsCaptured)

        await capture(bus.send, Command(order.id, "SendOrderConfirmationEmail"))
        await receive(OrderConfirmationEmailSent)
        log.info("processing of order %s completed", order.id)

    return run


def listen(bus: Bus, engine: Engine, run: FlowFunction[[Order], None]) -> None:
    """Events for an order go into its flow's inbox."""

    async def forward(order_id: str, event: object) -> None:
        await engine.send(run, order_id, event, key=type(event).__name__)

    bus.listener = forward


async def main() -> None:
    bus = Bus()
    run = order_flow(bus)
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/orders.db", flows=[run]) as engine:
            listen(bus, engine, run)
            await engine.run(run, Order("MK-54321", uuid4()), id="MK-54321")
            print("state:", (await engine.handle(run, "MK-54321").state()).value)


if __name__ == "__main__":
    asyncio.run(main())
