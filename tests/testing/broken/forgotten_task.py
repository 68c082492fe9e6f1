"""A task is begun and not awaited: the flow's end cancels it. A step of it may have run by then, or not."""
# ruff: noqa

import asyncio
from typing import Any

from perdure import current, delay, flow, step

mails: dict[str, str] = {}


@step
async def mail(order: str) -> None:
    mails[current().key] = order


@step
async def pay(order: str) -> str:
    return f"paid {order}"


@flow
async def broken(order: str) -> str:
    asyncio.create_task(mail(order))  # <- PD506
    return await pay(order)


@flow
async def mended(order: str) -> str:
    mailed = asyncio.create_task(mail(order))
    paid = await pay(order)
    await mailed
    return paid


ARGS = ("o1",)
OPTIONS: dict[str, Any] = {"effects": mails}
