"""A cancellation is swallowed around a wait, for ever: the flow cannot leave memory."""
# ruff: noqa

import asyncio
from typing import Any

from perdure import flow, receive


@flow
async def broken() -> int:
    total = 0
    while total < 3:
        try:
            total += await receive(int)
        except BaseException:  # <- here, PD503
            continue
    return total


@flow
async def mended() -> int:
    total = 0
    while total < 3:
        try:
            total += await receive(int)
        except Exception:
            continue
    return total


async def slowly(handle: Any) -> None:
    for number in range(3):
        await asyncio.sleep(60)
        await handle.send(1, key=str(number))


ARGS = ()
OPTIONS: dict[str, Any] = {"drive": slowly}
