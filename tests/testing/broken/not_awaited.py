"""A step is called and not awaited: it is never done, with a crash or without; only the lint sees it."""
# ruff: noqa

from typing import Any

from perdure import flow, step

mails: set[str] = set()


@step
async def mail(order: str) -> None:
    mails.add(order)


@flow
async def broken(order: str) -> str:
    mail(order)  # <- PD501
    return "mailed"


@flow
async def mended(order: str) -> str:
    await mail(order)
    return "mailed"


ARGS = ("o1",)
OPTIONS: dict[str, Any] = {"effects": mails}
