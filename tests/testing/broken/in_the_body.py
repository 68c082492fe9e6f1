"""An effect in the flow's own body: it is done again at every replay."""
# ruff: noqa

from typing import Any

from perdure import current, flow, step

ledger: list[str] = []
accounts: dict[str, int] = {}


@step
async def book(order: str) -> str:
    accounts[current().key] = 1
    return f"booked {order}"


@flow
async def broken(order: str) -> str:
    ledger.append(f"begun {order}")  # <- here, PD401
    return await book(order)


@step
async def log(line: str) -> None:
    if line not in ledger:
        ledger.append(line)


@flow
async def mended(order: str) -> str:
    await log(f"begun {order}")
    return await book(order)


ARGS = ("o1",)
OPTIONS: dict[str, Any] = {"effects": (ledger, accounts)}
