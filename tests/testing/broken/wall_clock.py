"""The machine's clock is read in the flow: it tells another time at each replay."""
# ruff: noqa

import time
from typing import Any

from perdure import current, flow, now, receive, step

invoices: dict[str, float] = {}


@step
async def invoice(order: str, at: float) -> str:
    invoices[current().key] = 1
    return f"invoice of {order}"


@flow
async def broken(order: str) -> str:
    at = time.time()  # <- here, PD101
    sent = await invoice(order, at)
    await receive(str)
    return sent


@flow
async def mended(order: str) -> str:
    at = now().timestamp()
    sent = await invoice(order, at)
    await receive(str)
    return sent


ARGS = ("o1",)
OPTIONS: dict[str, Any] = {"effects": invoices, "messages": ["paid"]}
