"""PD3: sets, and what gets its order from them."""

from asyncio import as_completed, as_completed as finished
import asyncio
import uuid
from builtins import set as unordered
from collections.abc import Set
from dataclasses import dataclass

from perdure import capture, flow, step

COLOURS = {"red", "green"}
Names = set[str]


@dataclass
class Order:
    tags: set[str]
    numbers: set[int]
    lines: list[str]


@step
async def rate(currency: str) -> float:
    return 1.0


@step
async def tags_of(order: str) -> set[str]:
    return set()


@flow
async def iterates(order: Order, names: Names, some: Set[str], items: list[str]) -> None:
    for colour in COLOURS:  # PD301 plain
        await rate(colour)
    for name in names:  # PD301 alias
        await rate(name)
    for name in unordered(items):  # PD301 alias
        await rate(name)
    for tag in order.tags:  # PD301 plain
        await rate(tag)
    for number in order.numbers:  # near PD301
        await rate(str(number))
    for line in order.lines:  # near PD301
        await rate(line)
    for name in sorted(names):  # near PD301
        await rate(name)
    for tag in await tags_of("a"):  # PD301 plain
        await rate(tag)
    for tag in await capture(found):  # PD301 plain
        await rate(tag)
    {await rate(c) for c in {"USD", "EUR"}}  # PD301 nested
    await asyncio.gather(*(rate(c) for c in names | some))  # PD301 nested
    await asyncio.gather(*[rate(c) for c in names & some])  # PD301 nested
    first = list(names)[0]  # PD301 plain
    next(iter(some))  # PD301 plain
    ", ".join(names)  # PD301 plain
    names.pop()  # PD301 plain
    one, two = names  # PD301 plain
    [*names]  # PD301 plain
    len(names), first in names, max(names)  # near PD301
    {name.lower() for name in names}  # near PD301
    sorted(name.lower() for name in names)  # near PD301
    sum(1 for name in names if name)  # near PD301
    any(name == "a" for name in names)  # near PD301
    total = 0
    for name in names:  # near PD301
        if name:
            total += len(name)
    seen = set()
    for item in items:
        seen.add(item)
    for item in seen:  # PD301 plain
        await rate(item)
    numbers = set()
    for item in items:
        numbers.add(len(item))
    for n in numbers:  # near PD301
        await rate(str(n))
    for n in set(range(3)):  # near PD301
        await rate(str(n))
    for n in {1, 2, 3}:  # near PD301
        await rate(str(n))
    for n in {uuid.UUID(int=1)}:  # near PD301
        await rate(str(n))
    tasks = {asyncio.create_task(rate(item)) for item in items}
    for task in tasks:  # near PD301
        await task
    done, pending = await asyncio.wait(tasks)
    for task in done:  # near PD301
        task.result()
    ordered = {"b", "a"}
    ordered = sorted(ordered)
    for item in ordered:  # near PD301
        await rate(item)
    dict.fromkeys(items)  # near PD302
    shared = {"a": 1}.keys() & {"b": 2}.keys()
    for key in shared:  # PD301 plain
        await rate(key)
    await each(names)


def found() -> set[str]:
    return {name for name in COLOURS}


async def each(names: frozenset[str]) -> None:
    for name in names:  # PD301 helper
        await rate(name)


@flow
async def dicts(names: set[str], items: list[str]) -> dict[str, int]:
    {name: 1 for name in names}  # PD302 plain
    dict.fromkeys(Names(items))  # PD302 alias
    prices = {name: len(name) for name in names}  # near PD302
    prices["a"], prices.get("b"), "c" in prices
    {item: 1 for item in items}  # near PD302
    {name: 1 for name in sorted(names)}  # near PD302
    lengths = lambda: {name: len(name) for name in names}  # PD302 nested
    return lengths() | counted(names)


def counted(names: set[str]) -> dict[str, int]:
    return dict.fromkeys(names, 0)  # PD302 helper


@flow
async def completed(items: list[str]) -> None:
    for future in as_completed([rate(item) for item in items]):  # PD303 plain
        await future
    for future in finished([rate(item) for item in items]):  # PD303 alias
        await future
    for future in asyncio.as_completed([rate(item) for item in items]):  # near PD303
        await future
    for future in as_completed([asyncio.create_task(rate(item)) for item in items]):  # near PD303
        await future
    await capture(awaited, items)

    async def inner() -> None:
        for future in as_completed([rate(item) for item in items]):  # PD303 nested
            await future

    await inner()
    await in_a_helper(items)


async def in_a_helper(items: list[str]) -> None:
    for future in as_completed([rate(item) for item in items]):  # PD303 helper
        await future


async def awaited(items: list[str]) -> None:
    for future in as_completed([asyncio.sleep(0)]):  # near PD303
        await future
