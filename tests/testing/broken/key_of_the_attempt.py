"""The other side knows a repeat by its key, but each attempt makes a key of its own."""
# ruff: noqa

from typing import Any
from uuid import uuid4

from perdure import flow, new_uuid, step

payments: dict[str, int] = {}


@step
async def pay(cents: int) -> None:
    payments[str(uuid4())] = cents  # <- here


@flow
async def broken() -> None:
    await pay(500)


@step
async def pay_as(key: str, cents: int) -> None:
    payments[key] = cents


@flow
async def mended() -> None:
    await pay_as(str(new_uuid()), 500)


ARGS = ()
OPTIONS: dict[str, Any] = {"effects": (payments.clear, lambda: sorted(payments.values()))}
