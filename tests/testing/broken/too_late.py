"""Whether a message has come is asked at once, and never again: whether it has is a matter of luck."""
# ruff: noqa

from typing import Any

from perdure import Outgoing, flow, receive, step

parcels: set[str] = set()


@step
async def ship(order: str, express: bool) -> None:
    parcels.add(f"{order} express" if express else order)


@flow
async def broken(order: str) -> str:
    try:
        await receive(str, name="express", timeout=0)  # <- here
        express = True
    except TimeoutError:
        express = False
    await ship(order, express)
    return "express" if express else "slow"


@flow
async def mended(order: str) -> str:
    try:
        await receive(str, name="express", timeout=60)
        express = True
    except TimeoutError:
        express = False
    await ship(order, express)
    return "express" if express else "slow"


ARGS = ("o1",)
OPTIONS: dict[str, Any] = {"effects": parcels, "messages": [Outgoing("crashed", "please", name="express")]}
