"""A discount is drawn in the flow's own code."""
# ruff: noqa

import random
from typing import Any

from perdure import flow, rng, step

prices: list[float] = []


@step
async def offer(price: float) -> None:
    if price not in prices:
        prices.append(price)


@flow
async def broken(price: int) -> None:
    await offer(price * random.uniform(0.8, 1))  # <- here, PD103


@flow
async def mended(price: int) -> None:
    await offer(price * rng().uniform(0.8, 1))


ARGS = (100,)
OPTIONS: dict[str, Any] = {"effects": prices}
