"""A flow that is called in a flow: a child, an instance of its own."""

import asyncio
import tempfile

from perdure import Engine, flow, step


@step
async def validate_order(order: str) -> None:
    print("validating", order)


@step
async def charge_payment(order: str) -> None:
    print("charging", order)


@step
async def send_notification(text: str) -> None:
    print("notifying:", text)


@flow(name="ProcessOrderOrchestrator")
async def process_order(order: str) -> str:
    await validate_order(order)
    await charge_payment(order)
    return "Order processed"


@flow(name="MainOrchestrator")
async def main_flow(order: str) -> str:
    result = await process_order(order)  # by name: `await run("ProcessOrderOrchestrator", order)`
    await send_notification(result)
    return "Workflow completed"


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[main_flow, process_order]) as engine:
            print(await engine.run(main_flow, "MK-54321", id="main"))


if __name__ == "__main__":
    asyncio.run(main())
