"""The first durable function: a step, and a flow that calls it, started by its name."""

import asyncio
import tempfile

from perdure import Engine, flow, step


@step(name="SayHello")
async def say_hello(name: str) -> str:
    await asyncio.sleep(0.1)  # some work
    return f"Hello, {name}!"


@flow(name="GreetingOrchestrator")
async def greeting(name: str) -> str:
    return f"Orchestrator says: {await say_hello(name)}"


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[greeting]) as engine:
            handle = await engine.start("GreetingOrchestrator", "World", id="user123")
            print(await handle.result())


if __name__ == "__main__":
    asyncio.run(main())
