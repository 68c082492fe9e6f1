"""A step that may fail and is tried again, and what is done when it has failed for good."""

import asyncio
import random
import tempfile
from datetime import timedelta

from perdure import Engine, Retry, current, flow, step


class Unreliable(Exception):
    """It did not work this time."""


@step(name="UnreliableFunction", retry=Retry(attempts=4, initial=timedelta(milliseconds=20), retry_on=(Unreliable,)))
async def unreliable(data: str, failures: float) -> str:
    if random.random() < failures:
        print(f"attempt {current().attempt} fails")
        raise Unreliable("Simulated failure!")
    return f"Successfully processed: {data}"


@step(name="LogError")
async def log_error(message: str) -> None:
    print("error:", message)


@flow(name="ResilientOrchestrator")
async def resilient(data: str, failures: float) -> str:
    try:
        return f"Success: {await unreliable(data, failures)}"  # nothing is tried again unless its step says so
    except Unreliable as error:  # its own type, also after a restart
        await log_error(str(error))
        return "Failed after retries"


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[resilient]) as engine:
            print(await engine.run(resilient, "test-data", 0.0, id="good"))
            print(await engine.run(resilient, "test-data", 0.7, id="mostly bad"))
            print(await engine.run(resilient, "test-data", 1.0, id="bad"))


if __name__ == "__main__":
    asyncio.run(main())
