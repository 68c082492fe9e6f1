"""Mails now, after a day and after a week, whatever restarts in between."""

import asyncio
import tempfile
from datetime import timedelta

from perdure import Engine, delay, flow, now, step


@step
async def send_welcome_email(customer: str) -> None:
    print("welcome,", customer)


@step
async def send_follow_up_email(customer: str) -> None:
    print("how is it,", customer)


@step
async def send_weekly_newsletter(customer: str) -> None:
    print("news,", customer)


@flow(name="LongRunningProcess")
async def long_running(customer: str, day: timedelta) -> str:
    started = now()  # aware, in UTC, the same at every replay
    await send_welcome_email(customer)
    await delay(until=started + day)  # while it waits it costs a row, and no process need be there
    await send_follow_up_email(customer)
    await delay(until=started + 7 * day)
    await send_weekly_newsletter(customer)
    return "Email sequence completed over 7 days!"


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[long_running]) as engine:
            short_day = timedelta(milliseconds=100)  # or hours=24
            print(await engine.run(long_running, "Ada", short_day, id="Ada"))


if __name__ == "__main__":
    asyncio.run(main())
