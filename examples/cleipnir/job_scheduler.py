"""Instead of a job scheduler: a flow that starts later, and one that starts again and again."""

import asyncio
import tempfile
from datetime import timedelta

from perdure import Engine, State, current, flow, step


@step
async def write_report(name: str) -> None:
    print("report:", name)


@flow
async def report(name: str) -> str:
    await write_report(name)  # a job may fail in the middle and go on there; it may wait for days as well
    return current().id


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/jobs.db", flows=[report]) as engine:
            once = await engine.start(report, "once", id="once", after=timedelta(milliseconds=200))
            # Or Cron("0 2 * * *", tz=ZoneInfo("Europe/Copenhagen")). Said again at the next start it changes nothing.
            await engine.schedule(report, timedelta(seconds=1), "every second", id="often")
            print(await once.result(), "has ended")
            while not [info async for info in engine.find(report, state=State.SUCCEEDED) if info.id != "once"]:
                await asyncio.sleep(0.05)
            await engine.unschedule("often")
            print("and so has the first of many")


if __name__ == "__main__":
    asyncio.run(main())
