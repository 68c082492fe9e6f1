"""Steps one after the other, each with the outcome of the one before."""

import asyncio
import tempfile
from dataclasses import dataclass
from decimal import Decimal

from perdure import Engine, FlowFailed, flow, step


@dataclass(frozen=True)
class OrderRequest:
    id: str
    amount: Decimal


@step(name="ValidateOrder")
async def validate(order: OrderRequest) -> OrderRequest:
    print(f"Validating order {order.id}...")
    if order.amount <= 0:
        raise ValueError("Invalid amount")
    return order


@step(name="ChargePayment")
async def charge(order: OrderRequest) -> OrderRequest:
    print(f"Charging ${order.amount} for order {order.id}...")
    await asyncio.sleep(0.05)  # the payment
    return order


@step(name="ShipOrder")
async def ship(order: OrderRequest) -> OrderRequest:
    print(f"Shipping order {order.id}...")
    return order


@step(name="NotifyCustomer")
async def notify(order: OrderRequest) -> str:
    print(f"Writing about order {order.id}...")
    return "Customer notified."


@flow(name="ProcessOrderOrchestrator")
async def process_order(order: OrderRequest) -> str:
    validated = await validate(order)
    charged = await charge(validated)
    shipped = await ship(charged)
    notified = await notify(shipped)
    return f"Order {order.id} processed successfully! {notified}"


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[process_order]) as engine:
            print(await engine.run(process_order, OrderRequest("MK-1", Decimal("99.50")), id="MK-1"))
            try:
                await engine.run(process_order, OrderRequest("MK-2", Decimal(0)), id="MK-2")
            except FlowFailed as failed:
                print(failed)


if __name__ == "__main__":
    asyncio.run(main())
