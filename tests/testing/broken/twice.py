"""A payment is told twice, since its sender began anew without a key, and is added up twice."""
# ruff: noqa

from dataclasses import dataclass
from typing import Any

from perdure import current, flow, receive, step

credits: dict[str, int] = {}


@dataclass(frozen=True)
class Paid:
    id: str
    cents: int


@step
async def credit(cents: int) -> None:
    credits[current().key] = cents


@flow
async def broken(price: int) -> int:
    paid = 0
    while paid < price:
        message = await receive(Paid)
        await credit(message.cents)  # <- here
        paid += message.cents
    return paid


@step
async def credit_for(id: str, cents: int) -> None:
    credits[id] = cents


@flow
async def mended(price: int) -> int:
    paid = 0
    seen: set[str] = set()
    while paid < price:
        message = await receive(Paid)
        if message.id in seen:
            continue
        seen.add(message.id)
        await credit_for(message.id, message.cents)
        paid += message.cents
    return paid


ARGS = (300,)
OPTIONS: dict[str, Any] = {
    "effects": credits,
    "messages": [Paid("a", 100), Paid("b", 200)],
    "duplicates": True,
}
