"""The order service: takes orders over HTTP and runs one durable flow for each, on a SQLite file."""

import argparse
import asyncio
import logging
import os
import signal
from collections import Counter
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any
from uuid import UUID

from examples.orders import lifetime
from examples.orders.flow import order_flow
from examples.orders.model import FundsCaptured, order_from_json
from examples.orders.services import text
from examples.orders.wire import BadMessage, Request, Server, bound
from perdure import AlreadyStarted, Engine, EngineClosed, StoreUnavailable


class OrderService:
    """Its requests, each answered when what it asks is on disk."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def handle(self, request: Request) -> tuple[int, object]:
        """One request is carried out."""
        try:
            match request.method, request.parts:
                case "POST", ("orders",):
                    return await self._order(request.json())
                case "POST", ("callbacks", "funds-captured"):
                    return await self._funds_captured(request.json())
                case "GET", ("progress",):
                    states = Counter([info.state.value async for info in self._engine.find(order_flow)])
                    return 200, states
                case _:
                    raise BadMessage(404, "no such thing here")
        except (EngineClosed, StoreUnavailable) as error:
            return 503, {"error": str(error)}

    async def _order(self, body: dict[str, Any]) -> tuple[int, object]:
        try:
            order = order_from_json(body)
            await self._engine.start(order_flow, order, id=order.id)  # the same order again changes nothing
        except ValueError as error:
            raise BadMessage(400, str(error)) from error
        except AlreadyStarted as error:
            return 409, {"error": str(error)}
        return 202, {"id": order.id}

    async def _funds_captured(self, body: dict[str, Any]) -> tuple[int, object]:
        try:
            funds = FundsCaptured(
                text(body, "order"),
                UUID(text(body, "transaction")),
                Decimal(text(body, "amount")),
                text(body, "currency"),
            )
        except (ValueError, InvalidOperation) as error:
            raise BadMessage(400, str(error)) from error
        # Payments repeats itself until it hears an answer; the key makes one message of it.
        await self._engine.send(order_flow, funds.order, funds, key=str(funds.transaction))
        return 200, {}


async def main(database: Path, port: int) -> None:
    """The order service has served until it was told to stop."""
    lifetime.end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    async with Engine(f"sqlite:///{database}", flows=[order_flow], drain=5) as engine:
        server = Server(OrderService(engine).handle)
        await server.listen(bound(port, share=True))
        lifetime.say_ready(port=server.port)
        try:
            await engine.serve()
        finally:
            await server.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", type=Path, required=True, help="the SQLite file")
    parser.add_argument("--port", type=int, required=True, help="the port to listen on")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(main(options.database, options.port))
