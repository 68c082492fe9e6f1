"""Many steps at once, and all their outcomes together."""

import asyncio
import random
import tempfile

from perdure import Engine, flow, step


@step(name="ProcessData")
async def process(data: str) -> str:
    print(f"Processing {data}...")
    await asyncio.sleep(random.uniform(0.05, 0.15))  # in a step chance is allowed
    return f"Processed-{data}"


@flow(name="ParallelProcessingOrchestrator")
async def process_parallel(inputs: list[str]) -> str:
    results = await asyncio.gather(*(process(data) for data in inputs))
    return f"Processed {len(results)} items: {', '.join(results)}"


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[process_parallel]) as engine:
            inputs = ["data1", "data2", "data3", "data4", "data5"]
            print(await engine.run(process_parallel, inputs, id="all"))


if __name__ == "__main__":
    asyncio.run(main())
