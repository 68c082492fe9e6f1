"""A workflow of three steps."""

import asyncio
import tempfile

from perdure import Engine, flow, step


@step(name="ValidateData")
async def validate(data: str) -> str:
    print("🔍 Validating:", data)
    await asyncio.sleep(0.02)
    return f"validated-{data}"


@step(name="TransformData")
async def transform(data: str) -> str:
    print("🔄 Transforming:", data)
    await asyncio.sleep(0.02)
    return f"transformed-{data}"


@step(name="StoreData")
async def store(data: str) -> str:
    print("💾 Storing:", data)
    await asyncio.sleep(0.02)
    return f"stored-{data}"


@flow(name="DataPipelineOrchestrator")
async def pipeline(data: str) -> str:
    validated = await validate(data)
    transformed = await transform(validated)
    return f"Pipeline complete: {await store(transformed)}"


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[pipeline]) as engine:
            print(await engine.run(pipeline, "data", id="1"))


if __name__ == "__main__":
    asyncio.run(main())
