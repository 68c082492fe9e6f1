"""A flow's log lines go through Python's logging, to whatever is set up there, and are silent during replay."""

import asyncio
import logging
import tempfile

from perdure import Engine, flow, get_logger, receive

log = get_logger("shop.orders")


class Shelf(logging.Handler):
    """Any handler of any library; this one keeps the lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        self.lines.append(f"{record.name}: {record.getMessage()}")


@flow
async def order_flow(order_id: str) -> None:
    log.info("order %s begins", order_id)
    await receive(bool)
    log.info("order %s ends", order_id)


async def main() -> None:
    shelf = Shelf()
    log.addHandler(shelf)
    log.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/flows.db"
        async with Engine(url, flows=[order_flow]) as engine:
            await engine.start(order_flow, "MK-54321", id="MK-54321")
        async with Engine(url, flows=[order_flow]) as engine:  # runs the flow from its top again, over its journal
            handle = engine.handle(order_flow, "MK-54321")
            await handle.send(True)
            await handle.result()
    print(*shelf.lines, sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
