"""Hello world, in a service that runs what is there until its time is over."""

import asyncio
import tempfile
from contextlib import suppress

from perdure import Engine, flow, step


@step(name="Greet")
async def greet(name: str) -> str:
    return f"Hello {name}! 👋"


@flow(name="HelloOrchestrator")
async def hello(name: str) -> str:
    return await greet(name)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[hello]) as engine:
            handle = await engine.start("HelloOrchestrator", "World", id="test")
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await engine.serve()  # else until SIGTERM or SIGINT
            print(await handle.result())


if __name__ == "__main__":
    asyncio.run(main())
