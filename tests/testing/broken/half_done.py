"""A step does two things, and takes the first for a sign that both were done."""
# ruff: noqa

import asyncio
from typing import Any

from perdure import flow, step

shipped: set[str] = set()
mails: set[str] = set()


@step
async def ship(order: str) -> None:
    if order in shipped:
        return
    shipped.add(order)
    await asyncio.sleep(0.1)
    mails.add(order)  # <- here


@flow
async def broken(order: str) -> None:
    await ship(order)


@step
async def send_parcel(order: str) -> None:
    shipped.add(order)
    await asyncio.sleep(0.1)


@step
async def send_mail(order: str) -> None:
    mails.add(order)


@flow
async def mended(order: str) -> None:
    await send_parcel(order)
    await send_mail(order)


ARGS = ("o1",)
OPTIONS: dict[str, Any] = {"effects": (shipped, mails)}
