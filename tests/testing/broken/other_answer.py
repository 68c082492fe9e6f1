"""Nothing is wrong: a step gives another answer when it runs again, and the flow does the same with any of them."""
# ruff: noqa

import itertools
from typing import Any

from perdure import current, flow, step

tickets = itertools.count(1)
open_tickets: dict[str, int] = {}
closed: set[str] = set()


@step
async def open_ticket() -> int:
    return open_tickets.setdefault(current().key, next(tickets))


@step
async def draw_number() -> int:
    return next(tickets)


@step
async def close_ticket(number: int) -> None:
    closed.add("closed")


@flow
async def mended() -> str:
    number = await draw_number()
    for _ in range(number % 3):
        await open_ticket()
    await close_ticket(number)
    return "closed"


ARGS = ()
OPTIONS: dict[str, Any] = {"effects": closed}
