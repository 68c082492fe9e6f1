"""A greeting that comes later."""

import asyncio
import logging
import tempfile
from datetime import timedelta

from perdure import Engine, delay, flow, logger


@flow(name="DelayedGreeting")
async def delayed_greeting(name: str, pause: timedelta) -> str:
    logger.info("⏰ Setting timer for %s...", pause)  # a `print` here would come again at every replay
    await delay(pause)
    logger.info("🎉 Timer fired! Greeting %s", name)
    return f"Hello {name} (after delay)!"


async def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[delayed_greeting]) as engine:
            print(await engine.run(delayed_greeting, "World", timedelta(milliseconds=500), id="1"))  # or seconds=5


if __name__ == "__main__":
    asyncio.run(main())
