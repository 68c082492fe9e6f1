"""`OutcomeUnknown` is taken for "it did not happen", and it is done again."""
# ruff: noqa

from typing import Any

from perdure import OutcomeUnknown, flow, step

transfers: list[int] = []


@step(at_most_once=True)
async def transfer(cents: int) -> str:
    transfers.append(cents)
    return "done"


@flow
async def broken(cents: int) -> str:
    try:
        return await transfer(cents)
    except OutcomeUnknown:
        return await transfer(cents)  # <- here


@step
async def look_up(cents: int) -> bool:
    return cents in transfers


@flow
async def mended(cents: int) -> str:
    try:
        return await transfer(cents)
    except OutcomeUnknown:
        if await look_up(cents):
            return "done"
        return await mended(cents)


ARGS = (100,)
OPTIONS: dict[str, Any] = {"effects": transfers}
