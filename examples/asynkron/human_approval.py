"""An approval workflow with a request of its own type."""

import asyncio
import tempfile
from dataclasses import dataclass

from perdure import Engine, flow, receive, step


@dataclass(frozen=True)
class ApprovalRequest:
    id: str
    what: str


@step(name="SendApprovalRequest")
async def send_request(request: ApprovalRequest) -> None:
    print("please approve:", request.what)


@step(name="ProcessApprovedRequest")
async def process_approved(request: ApprovalRequest) -> None:
    print("granted:", request.what)


@step(name="HandleRejection")
async def handle_rejection(request: ApprovalRequest) -> None:
    print("refused:", request.what)


@flow(name="ApprovalWorkflow")
async def approval(request: ApprovalRequest) -> str:
    await send_request(request)
    if await receive(bool, name="ApprovalEvent"):  # could be hours or days
        await process_approved(request)
        return "Request approved and processed!"
    await handle_rejection(request)
    return "Request was rejected."


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[approval]) as engine:
            requests = {ApprovalRequest("1", "a holiday"): True, ApprovalRequest("2", "a yacht"): False}
            for request, answer in requests.items():
                handle = await engine.start(approval, request, id=request.id)
                await handle.send(answer, name="ApprovalEvent")
                print(await handle.result())


if __name__ == "__main__":
    asyncio.run(main())
