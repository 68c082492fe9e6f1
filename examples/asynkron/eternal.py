"""A monitor that never ends: its journal does not grow, since it begins a new run from time to time."""

import asyncio
import tempfile
from dataclasses import dataclass
from datetime import timedelta

from perdure import Engine, FlowCancelled, continue_as_new, delay, flow, step

CHECKS_PER_RUN = 3  # or a thousand


@dataclass(frozen=True)
class Config:
    system: str
    pause: timedelta


@step(name="CheckSystemHealth")
async def check_health(system: str) -> str:
    print("checking", system)
    return "OK" if system == "sound" else "on fire"


@step(name="SendAlert")
async def send_alert(status: str) -> None:
    print("alert:", status)


@flow(name="MonitorOrchestrator")
async def monitor(config: Config) -> None:
    for _ in range(CHECKS_PER_RUN):
        status = await check_health(config.system)
        if status != "OK":
            await send_alert(status)
        await delay(config.pause)
    await continue_as_new(config)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[monitor]) as engine:
            pause = timedelta(milliseconds=50)  # or minutes=5
            handle = await engine.start(monitor, Config("the old system", pause), id="old")
            await asyncio.sleep(0.5)
            await handle.cancel("seen enough")
            try:
                await handle.result()
            except FlowCancelled as cancelled:
                print("cancelled:", cancelled.reason)


if __name__ == "__main__":
    asyncio.run(main())
