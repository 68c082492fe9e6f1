"""Canonical flows. Each effect is a line in a ledger outside the process, with the step's idempotency key."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from datetime import timedelta

from perdure import (
    FlowFailed,
    OutcomeUnknown,
    Retry,
    capture,
    current,
    delay,
    expose,
    flow,
    handle,
    messages,
    receive,
    send,
    start,
    start_many,
    step,
)

LEDGER = "PERDURE_TEST_LEDGER"


def effect(label: str) -> None:
    """The effect is in the ledger, whatever happens to this process afterwards."""
    fd = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(fd, f"{label} {current().key}\n".encode())
    finally:
        os.close(fd)


class Declined(Exception):
    """The business says no."""


@dataclass(frozen=True)
class Paid:
    amount: int


@dataclass(frozen=True)
class Note:
    text: str


@step
async def work(label: str, value: int = 0) -> int:
    effect(label)
    return value + 1


@step
async def forever(label: str) -> None:
    effect(label)
    await asyncio.sleep(3600)


@step
async def decline(label: str) -> None:
    effect(label)
    raise Declined(label)


@step
def in_a_thread(label: str) -> str:
    effect(label)
    return label.upper()


# ---------------------------------------------------------------- steps


@flow
async def chain(first: int) -> int:
    a = await work("a", first)
    b = await work("b", a)
    name = await in_a_thread("c")
    return await work("d", b + len(name))


@flow
async def fan_out() -> list[int]:
    gathered = await asyncio.gather(*(work(f"g{i}", i) for i in range(4)))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(f"t{i}", i)) for i in range(3)]
    return [*gathered, *(task.result() for task in tasks), await work("end", len(tasks))]


@flow
async def race() -> list[int]:
    tasks = {asyncio.create_task(work("fast")), asyncio.create_task(forever("maybe slow"))}
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    await asyncio.wait(others)
    try:
        async with asyncio.timeout(0.005):
            await forever("maybe late")
    except TimeoutError:
        done_in_time = 0
    else:
        done_in_time = 1
    return [len(done), len(others), done_in_time, await work("end")]


FAST = Retry(attempts=3, initial=0.003, backoff=1.0)


@step(retry=FAST)
async def third_time(label: str) -> int:
    effect(label)
    if current().attempt < 3:
        raise Declined(label)
    return current().attempt


@step(retry=FAST)
async def never(label: str) -> None:
    effect(label)
    raise Declined(f"{label} {current().attempt}")


@flow
async def retries() -> list[object]:
    attempts = await third_time("third")
    try:
        await never("never")
    except Declined as error:
        return [attempts, str(error), await work("end")]
    return []


@step(at_most_once=True)
async def ship(label: str) -> str:
    effect(f"once {label}")
    return f"shipped {label}"


@flow
async def at_most_once() -> list[str]:
    found: list[str] = []
    for label in ("one", "two"):
        try:
            found.append(await ship(label))
        except OutcomeUnknown:
            found.append(f"unknown {label}")
    await work("end")
    return found


# ---------------------------------------------------------------- messages and time


@flow
async def inbox() -> list[object]:
    taken: list[object] = []
    first = await receive(Paid)
    taken.append(first.amount + await work("first"))
    taken.append((await receive(Paid, where=lambda p: p.amount > 5)).amount)
    approved = await receive(bool, name="approval")
    note = await receive(Note | Paid)
    assert isinstance(note, Paid)
    nothing = await receive(str, timeout=0.003, default=None)
    return [*taken, approved, note.amount, nothing, await work("end")]


@flow
async def stream() -> dict[str, object]:
    total = await messages(Paid).map(lambda p: p.amount).take_until(lambda n: n == 0).scan(0, lambda a, b: a + b).last()
    await work("read")
    texts = [note.text async for note in messages(Note).take(2)]
    pairs = await messages(Paid).take(4).chunk(2).list()
    first = await receive(Paid)
    return {
        "total": total,
        "texts": texts,
        "pairs": [[p.amount for p in pair] for pair in pairs],
        "first": first.amount,
    }


@flow
async def sender(to: str) -> None:
    for i in range(3):
        await send(counter, to, await work(f"s{i}", i))


@flow
async def counter() -> list[int]:
    return [await receive(int) + await work(f"r{i}") for i in range(3)]


@flow
async def timers() -> list[int]:
    await delay(0.004)
    a = await work("after delay")
    await asyncio.gather(asyncio.sleep(0.006), delay(timedelta(milliseconds=3)))
    b = await work("after both")
    try:
        async with asyncio.timeout(0.004):
            await receive(str)
    except TimeoutError:
        return [a, b, await work("timed out")]
    return []


# ---------------------------------------------------------------- children


@flow
async def leaf(n: int) -> int:
    return await work(f"leaf {n}", n * 10)


@flow
async def failing_leaf(n: int) -> int:
    await work(f"failing leaf {n}")
    raise Declined(f"leaf {n}")


@flow
async def family() -> list[object]:
    first = await leaf(1)
    two, three = await start_many(leaf, [("leaf-2", 2), ("leaf-3", 3)])
    await start(leaf, 4, id="leaf-4", detached=True)
    try:
        await (await start(failing_leaf, 5, id="leaf-5")).result()
    except FlowFailed as error:
        failed = f"failed: {error.__cause__}"
    except Declined as error:
        failed = f"raised: {error}"
    else:
        failed = ""
    other = await handle(leaf, "leaf-2").result()
    return [first, *await asyncio.gather(two.result(), three.result()), failed, other, await work("end")]


# ---------------------------------------------------------------- the end


@flow
async def patient(reason: str) -> None:
    try:
        await receive(str)
    finally:
        await work(f"child cleans up {reason}")


@flow
async def cancelled() -> None:
    await start(patient, "attached", id="child")
    expose("phase", "waiting")
    try:
        await receive(str)
    except asyncio.CancelledError:
        await work("noticed")
        raise
    finally:
        await work("cleaned up")


@flow
async def compensation() -> str:
    undo: list[str] = []
    try:
        for label in ("hotel", "flight"):
            await work(f"book {label}")
            undo.append(label)
        await decline("car")
    finally:
        for label in reversed(undo):
            await work(f"cancel {label}")
    return "never"


@flow
async def exposing() -> int:
    total = 0
    for i in range(4):
        total += await work(f"e{i}", i)
        expose("progress", {"done": i + 1, "total": total})
    expose("end", await capture(lambda: "now", name="the end"))
    return total
