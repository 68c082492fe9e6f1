"""A price is kept by `lru_cache`; what an earlier run of the flow got, a new process does not have."""
# ruff: noqa

import functools
from typing import Any

from perdure import current, flow, step

list_prices = {"book": 10}
charged: dict[str, int] = {}


@functools.lru_cache
def price_of(item: str) -> int:
    return list_prices[item]  # <- PD401


@step
async def charge(cents: int) -> None:
    charged[current().key] = cents


@step
async def raise_prices() -> None:
    list_prices["book"] = 12


@flow
async def broken(item: str) -> int:
    price = price_of(item)  # <- here, PD403
    await charge(price)
    await raise_prices()
    return price


@step
async def look_up(item: str) -> int:
    return 10


@flow
async def mended(item: str) -> int:
    price = await look_up(item)
    await charge(price)
    await raise_prices()
    return price


def reset() -> None:
    charged.clear()
    list_prices["book"] = 10


ARGS = ("book",)
OPTIONS: dict[str, Any] = {"effects": (reset, lambda: charged)}
