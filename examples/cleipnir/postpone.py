"""A flow that begins later, as long as a service is overloaded."""

import asyncio
import tempfile
from datetime import timedelta

from perdure import Engine, FlowFunction, capture, delay, flow


class ExternalService:
    """Overloaded for the first questions."""

    def __init__(self, overloaded: int) -> None:
        self.overloaded = overloaded
        self.asked = 0

    async def is_overloaded(self) -> bool:
        """Whether to come back later."""
        self.asked += 1
        print("overloaded?", self.asked <= self.overloaded)
        return self.asked <= self.overloaded


def postpone_flow(external: ExternalService, pause: timedelta) -> FlowFunction[[str], str]:
    """The flow, with the service that it needs."""

    @flow(name="PostponeFlow")
    async def run(order_id: str) -> str:
        while await capture(external.is_overloaded):  # each question is a step of its own
            await delay(pause)
        return f"{order_id} done"  # the rest of the flow

    return run


async def main() -> None:
    run = postpone_flow(ExternalService(overloaded=2), pause=timedelta(milliseconds=200))  # or minutes=10
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[run]) as engine:
            print(await engine.run(run, "MK-54321", id="MK-54321"))


if __name__ == "__main__":
    asyncio.run(main())
