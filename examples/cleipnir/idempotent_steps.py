"""Where every call may be repeated, it is enough to make a flow of the code."""

import asyncio
import tempfile
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from perdure import Engine, FlowFunction, capture, flow, logger


@dataclass(frozen=True)
class Order:
    id: str
    transaction: UUID
    total: Decimal


class Services:
    """Payments, logistics and email, which all know a repeat by the order or transaction."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.done: dict[str, None] = {}

    def _do(self, what: str) -> None:
        print(what)
        self.calls.append(what)
        self.done[what] = None

    async def reserve(self, transaction: UUID, amount: Decimal) -> None:
        """The money is set aside."""
        self._do(f"reserved {amount}")

    async def ship(self, order_id: str) -> None:
        """The goods are gone."""
        self._do(f"shipped {order_id}")

    async def capture(self, transaction: UUID) -> None:
        """The money is taken."""
        self._do("captured")

    async def confirm(self, order_id: str) -> None:
        """The customer knows."""
        self._do(f"confirmed {order_id}")


def order_flow(services: Services) -> FlowFunction[[Order], None]:
    """The flow, with the services that it calls."""

    @flow(name="OrderFlow")
    async def run(order: Order) -> None:
        logger.info("processing of order %s started", order.id)  # silent during replay
        await capture(services.reserve, order.transaction, order.total)
        await capture(services.ship, order.id)
        await capture(services.capture, order.transaction)
        await capture(services.confirm, order.id)
        logger.info("processing of order %s completed", order.id)

    return run


async def main() -> None:
    run = order_flow(Services())
    order = Order("MK-54321", UUID(int=54321), Decimal(120))
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/orders.db", flows=[run]) as engine:
            await engine.run(run, order, id=order.id)
            print("state:", (await engine.handle(run, order.id).state()).value)


if __name__ == "__main__":
    asyncio.run(main())
