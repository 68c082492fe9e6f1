"""Two flows share a lock of their module: waking another flow is refused, with a crash or without."""
# ruff: noqa

import asyncio
from typing import Any

from perdure import flow, step

lock = asyncio.Lock()
written: list[int] = []


@step
async def write(number: int) -> None:
    if number not in written:
        written.append(number)


@flow
async def one(number: int) -> None:
    async with lock:  # <- PD405
        await write(number)


@flow
async def broken() -> None:
    await asyncio.gather(one(1), one(2))


@flow
async def mended() -> None:
    own = asyncio.Lock()

    async def one(number: int) -> None:
        async with own:
            await write(number)

    await asyncio.gather(one(1), one(2))


ARGS = ()
OPTIONS: dict[str, Any] = {"effects": written}
