"""PD5: what is not awaited, and what is swallowed."""

import asyncio
import contextlib
from asyncio import CancelledError as Stop
from asyncio import create_task as begin
from functools import partial

from perdure import (
    Handle,
    capture,
    continue_as_new,
    current,
    delay,
    flow,
    handle,
    messages,
    receive,
    send,
    start,
    step,
)
from perdure import capture as record


@step
async def reserve(order: str) -> str:
    return order


@step
def ship(order: str) -> str:
    return order


@flow
async def child(order: str) -> str:
    return order


async def helped(order: str) -> str:
    return await reserve(order)


async def numbers():
    yield 1


class Shop:
    @step
    async def pay(self, order: str) -> bool:
        return True


book = reserve
careful = ship.options(at_most_once=True)
wrapped = step(len)
changed = reserve


@flow
async def unawaited(order: str, shop: Shop) -> str:
    reserve(order)  # PD501 plain
    ship(order)  # PD501 plain
    book(order)  # PD501 alias
    careful(order)  # PD501 alias
    wrapped(order)  # PD501 alias
    child(order)  # PD501 plain
    helped(order)  # PD501 plain
    shop.pay(order)  # PD501 plain
    delay(5)  # PD501 plain
    record(len, order)  # PD501 alias
    asyncio.sleep(5)  # PD501 plain
    tracking = ship(order)  # PD501 plain
    if shop.pay(order):  # PD501 plain
        pass
    f"{ship(order)}"  # PD501 plain
    ship(order).upper()  # PD501 plain
    await reserve(ship(order))  # PD501 plain
    other = await start(child, order)
    other.cancel()  # PD501 plain
    handle(child, "x").send(1)  # PD501 plain
    messages(str).first()  # PD501 plain
    late = reserve(order)  # near PD501
    await late
    await asyncio.gather(reserve(order), ship(order))  # near PD501
    async with asyncio.TaskGroup() as group:
        group.create_task(reserve(order))  # near PD501
    both = [reserve(order), ship(order)]  # near PD501
    await asyncio.gather(*both)
    numbers()  # near PD501
    handle(child, "x")  # near PD501
    messages(str).take(1)  # near PD501
    await capture(lambda: reserve(order))  # near PD501
    await asyncio.gather(*[begins(order, shop) for _ in range(2)])
    make = lambda: str(ship(order))  # PD501 nested
    make()
    return ship(order)  # PD501 plain


async def begins(order: str, shop: Shop) -> None:
    shop.pay(order)  # PD501 helper
    await (reserve(order) if order else ship(order))  # near PD501


@step
async def in_a_step(order: str) -> None:
    reserve(order)  # near PD501


@flow
async def shadows(order: str, ship: object) -> None:
    reserve = await reserve(order)  # PD502 plain
    book = 1 + len(await book(order))  # PD502 alias
    ship = await ship(order)  # near PD502
    first = await helped(order)  # near PD502
    current = current()  # PD502 plain
    paid = [await pay_for(order) for pay_for in (helped,)]  # near PD502

    async def inner() -> None:
        child = await child(order)  # PD502 nested

    for turn in range(3):
        if turn:
            wrapped(order)  # near PD502
        wrapped = len
    for turn in range(3):
        await changed(order)  # PD502 plain
        changed = helped
    async with Shop() as Shop:  # PD502 plain
        pass
    for careful in careful(order):  # PD502 plain
        pass
    await inner()
    await shadowed(order)


async def shadowed(order: str) -> None:
    helped, other = await asyncio.gather(helped(order), reserve(order))  # PD502 helper


async def rebinds(order: str) -> None:
    send = record
    send = await send(len, order)  # near PD502


async def sets_globally(order: str) -> None:
    global changed
    changed = await changed(order)  # PD401 helper; near PD502


@flow
async def rebound(order: str) -> None:
    await rebinds(order)
    await sets_globally(order)


@flow
async def swallows(order: str) -> None:
    try:
        await reserve(order)
    except:  # PD503 plain
        pass
    try:
        await reserve(order)
    except BaseException as error:  # PD503 plain
        errors = [error]
    try:
        await reserve(order)
    except Stop:  # PD503 alias
        await ship(order)
    with contextlib.suppress(BaseException):  # PD503 plain
        await reserve(order)
    try:
        await reserve(order)
    finally:
        return  # PD503 plain


@flow
async def passes_on(order: str) -> str | None:
    try:
        int(order)
    except:  # near PD503
        pass
    try:
        await reserve(order)
    except BaseException:  # near PD503
        await ship(order)
        raise
    try:
        await reserve(order)
    except Exception:  # near PD503
        pass
    failed = None
    try:
        await reserve(order)
    except BaseException as error:  # near PD503
        failed = error
    if failed is not None:
        raise failed
    try:
        await reserve(order)
    except asyncio.CancelledError:  # near PD503
        raise
    except BaseException:  # near PD503
        pass
    try:
        await continue_as_new(order)
    except asyncio.CancelledError:  # near PD503
        raise
    except BaseException:  # PD503 plain
        pass
    task = asyncio.create_task(reserve(order))
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:  # near PD503
        pass
    with contextlib.suppress(asyncio.CancelledError):  # near PD503
        await task
    with contextlib.suppress(TimeoutError):  # near PD503
        await reserve(order)
    try:
        await receive(str)
    except asyncio.CancelledError:  # near PD503
        await ship(order)
        return "cancelled"

    async def inner() -> None:
        while True:
            try:
                await receive(str)
            except asyncio.CancelledError:  # PD503 nested
                continue
            finally:
                for _ in range(3):
                    continue  # near PD503

    await inner()
    await stubborn()
    return None


async def stubborn() -> None:
    while True:
        try:
            await receive(str)
        finally:
            break  # PD503 helper


@flow
async def unkept(order: str) -> None:
    asyncio.create_task(reserve(order))  # PD506 plain
    begin(reserve(order))  # PD506 alias
    asyncio.get_running_loop().create_task(reserve(order))  # PD506 plain
    lost = asyncio.ensure_future(reserve(order))  # PD506 plain
    kept = asyncio.create_task(reserve(order))  # near PD506
    await kept
    tasks = [asyncio.create_task(reserve(order))]  # near PD506
    await asyncio.wait(tasks)
    async with asyncio.TaskGroup() as group:
        group.create_task(reserve(order))  # near PD506
    await asyncio.create_task(reserve(order))  # near PD506

    def inner() -> None:
        asyncio.create_task(reserve(order))  # PD506 nested

    inner()
    begun(order)


def begun(order: str) -> None:
    asyncio.create_task(reserve(order))  # PD506 helper
