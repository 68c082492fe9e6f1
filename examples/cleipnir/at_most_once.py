"""Work that is never begun twice: if its outcome is lost, the flow is told so."""

import asyncio
import tempfile
from datetime import timedelta

from perdure import Engine, FlowFailed, FlowFunction, capture, flow


class RocketSender:
    """A rocket that is fired is fired; what comes back may be silence."""

    def __init__(self) -> None:
        self.fired: list[str] = []

    async def fire(self, rocket: str) -> None:
        """The rocket has left; only that of the second flow says so."""
        self.fired.append(rocket)
        print(f"{rocket} fired")
        if rocket == "silent":
            await asyncio.Event().wait()


def at_most_once(sender: RocketSender) -> FlowFunction[[str], None]:
    """The flow, with the service that it needs."""

    @flow(name="AtMostOnceFlow")
    async def run(rocket: str) -> None:
        await capture(sender.fire, rocket, id="FireRocket", at_most_once=True, timeout=timedelta(milliseconds=200))

    return run


async def main() -> None:
    run = at_most_once(RocketSender())
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[run]) as engine:
            await engine.run(run, "loud", id="1")
            try:
                await engine.run(run, "silent", id="2")
            except FlowFailed as failed:
                print(f"{type(failed.__cause__).__name__}: {failed.__cause__}")


if __name__ == "__main__":
    asyncio.run(main())
