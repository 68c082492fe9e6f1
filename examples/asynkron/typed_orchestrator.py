"""Types in and out: a flow's arguments and result are those of its function, and stored as what they are."""

import asyncio
import tempfile
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from perdure import Engine, flow, get_logger, new_uuid, now

logger = get_logger("orders")  # silent while a flow is replayed


@dataclass(frozen=True)
class OrderRequest:
    product_name: str
    quantity: int
    price: Decimal


@dataclass(frozen=True)
class OrderResult:
    order_id: str
    status: str
    processed_at: datetime


@flow(name="ProcessTypedOrder")
async def process_typed_order(order: OrderRequest) -> OrderResult:
    logger.info("processing order for %s", order.product_name)
    return OrderResult(order_id=str(new_uuid()), status="Completed", processed_at=now())


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[process_typed_order]) as engine:
            order = OrderRequest("lamp", quantity=2, price=Decimal("19.90"))
            result = await engine.run(process_typed_order, order, id="1")
            print(result.status, "in", result.processed_at.tzinfo)


if __name__ == "__main__":
    asyncio.run(main())
