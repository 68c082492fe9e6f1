"""A flow that waits for an event by its name."""

import asyncio
import tempfile

from perdure import Engine, flow, receive, step


@step
async def send_approval_request(request: str) -> None:
    print("please approve:", request)


@step
async def process_approval(text: str) -> None:
    print("processing:", text)


@step
async def process_rejection(text: str) -> None:
    print("processing:", text)


@flow(name="ApprovalOrchestrator")
async def approval(request: str) -> str:
    await send_approval_request(request)
    if await receive(bool, name="ApprovalEvent"):
        await process_approval("Approved")
        return "Request approved"
    await process_rejection("Rejected")
    return "Request rejected"


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[approval]) as engine:
            for id, answer in (("approval-123", True), ("approval-124", False)):
                await engine.start(approval, f"{id}, please", id=id)
                # Later, from wherever the id is known; the flow's name will do as well.
                await engine.send("ApprovalOrchestrator", id, answer, name="ApprovalEvent")
                print(await engine.handle(approval, id).result())


if __name__ == "__main__":
    asyncio.run(main())
