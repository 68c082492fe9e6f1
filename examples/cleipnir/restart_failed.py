"""A failed flow is looked at, given another argument and started again."""

import asyncio
import tempfile

from perdure import Engine, FlowFailed, flow, step


@step
async def process(parameter: str) -> str:
    if parameter != "valid parameter":
        raise ValueError(f"{parameter!r} is not valid")
    return f"processed {parameter}"


@flow
async def fragile_flow(parameter: str) -> str:
    return await process(parameter)


async def mend(engine: Engine, id: str) -> str:
    """The result, with a parameter that works."""
    panel = await engine.panel(fragile_flow, id)
    print("failed with:", panel.error)
    panel.args = ("valid parameter",)  # all arguments
    handle = await panel.restart()
    return await handle.result()


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[fragile_flow]) as engine:
            try:
                await engine.run(fragile_flow, "invalid parameter", id="1")
            except FlowFailed:
                print(await mend(engine, "1"))


if __name__ == "__main__":
    asyncio.run(main())
