"""Why a flow: the same code without one, and a process that dies between shipping and being paid."""

import asyncio
from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True)
class Order:
    id: str
    total: Decimal


class Services:
    """Payments, logistics and email; what happened there stays."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.shipped = asyncio.Event()

    async def reserve(self, order: Order) -> None:
        """The money is set aside."""
        self.done.append("reserved")

    async def ship(self, order: Order) -> None:
        """The goods are gone."""
        self.done.append("shipped")
        self.shipped.set()
        await asyncio.sleep(0.01)

    async def capture(self, order: Order) -> None:
        """The money is taken."""
        self.done.append("captured")

    async def confirm(self, order: Order) -> None:
        """The customer knows."""
        self.done.append("confirmed")


async def process_order(order: Order, services: Services) -> None:
    """No flow: nothing remembers how far it came."""
    await services.reserve(order)
    await services.ship(order)
    await services.capture(order)
    await services.confirm(order)


async def main() -> None:
    services = Services()
    process = asyncio.create_task(process_order(Order("MK-54321", Decimal(120)), services))
    await services.shipped.wait()
    process.cancel()  # what a killed process looks like from outside: it just stops
    await asyncio.wait([process])
    print("done, and nobody goes on:", *services.done)


if __name__ == "__main__":
    asyncio.run(main())
