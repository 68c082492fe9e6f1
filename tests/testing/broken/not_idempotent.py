"""A step is believed to run once; cut off before its outcome is recorded, it runs again."""
# ruff: noqa

from typing import Any

from perdure import current, flow, step

charges: list[tuple[str, int]] = []
by_key: dict[str, int] = {}


@step
async def charge(card: str, cents: int) -> str:
    charges.append((card, cents))  # <- here
    return "paid"


@flow
async def broken(card: str) -> str:
    return await charge(card, 500)


@step
async def charge_once(card: str, cents: int) -> str:
    by_key.setdefault(current().key, cents)
    return "paid"


@flow
async def mended(card: str) -> str:
    return await charge_once(card, 500)


ARGS = ("visa",)
OPTIONS: dict[str, Any] = {"effects": (charges, by_key)}
