"""Every flow of this process counts on; replayed in the same process it counts again."""
# ruff: noqa

from typing import Any

from perdure import current, flow, receive, step

numbers = {"next": 1}
sent: dict[str, int] = {}


@step
async def send_offer(number: int) -> None:
    sent[current().key] = number


@flow
async def broken() -> int:
    number = numbers["next"]
    numbers["next"] += 1  # <- here, PD401
    await receive(str)
    await send_offer(number)
    return number


@step
async def next_number() -> int:
    return 1


@flow
async def mended() -> int:
    number = await next_number()
    await receive(str)
    await send_offer(number)
    return number


ARGS = ()
OPTIONS: dict[str, Any] = {"effects": sent, "messages": ["go"]}
