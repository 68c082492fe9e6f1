"""A flow that waits for a human, but not for ever."""

import asyncio
import tempfile
from datetime import timedelta

from perdure import Engine, flow, receive, step


@step
async def send_approval_email(request: str) -> None:
    print("please approve:", request)


@flow(name="HumanApprovalOrchestrator")
async def human_approval(request: str, patience: timedelta) -> str:
    await send_approval_email(request)
    try:
        approved = await receive(bool, name="HumanApproval", timeout=patience)
    except TimeoutError:
        return "Approval timed out"
    return "Approved by human" if approved else "Rejected by human"


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[human_approval]) as engine:
            day = timedelta(hours=24)
            handle = await engine.start(human_approval, "a holiday", day, id="1")
            await handle.send(True, name="HumanApproval")
            print(await handle.result())
            print(await engine.run(human_approval, "a yacht", timedelta(milliseconds=200), id="2"))


if __name__ == "__main__":
    asyncio.run(main())
