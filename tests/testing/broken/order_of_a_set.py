"""A set of texts is iterated. In one process the order is always the same: only the lint sees it."""
# ruff: noqa

from typing import Any

from perdure import flow, step

notified: list[str] = []


@step
async def notify(customer: str) -> None:
    if customer not in notified:
        notified.append(customer)


@flow
async def broken(customers: list[str]) -> None:
    for customer in set(customers):  # <- PD301
        await notify(customer)


@flow
async def mended(customers: list[str]) -> None:
    for customer in sorted(set(customers)):
        await notify(customer)


ARGS = (["ada", "bob", "ada", "eve"],)
OPTIONS: dict[str, Any] = {"effects": notified}
