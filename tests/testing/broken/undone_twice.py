"""A compensation adds back what was taken; cut off, it adds it back twice."""
# ruff: noqa

from typing import Any

from perdure import current, flow, step

stock: dict[str, int] = {}
given_back: set[str] = set()


class NoMoney(Exception):
    pass


@step
async def take(item: str) -> None:
    stock[item] = 9


@step
async def charge(item: str) -> None:
    raise NoMoney(item)


@step
async def give_back(item: str) -> None:
    stock[item] += 1  # <- here


@flow
async def broken(item: str) -> str:
    await take(item)
    try:
        await charge(item)
    except NoMoney:
        await give_back(item)
        return "no money"
    return "sold"


@step
async def give_back_once(item: str) -> None:
    if current().key not in given_back:
        given_back.add(current().key)
        stock[item] += 1


@flow
async def mended(item: str) -> str:
    await take(item)
    try:
        await charge(item)
    except NoMoney:
        await give_back_once(item)
        return "no money"
    return "sold"


ARGS = ("book",)
OPTIONS: dict[str, Any] = {"effects": (stock, given_back)}
