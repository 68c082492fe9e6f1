"""Flows of every kind that are right are not reported, however they are crashed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from perdure import (
    FlowCancelled,
    Handle,
    NotSupported,
    OutcomeUnknown,
    Outgoing,
    Retry,
    Tx,
    capture,
    continue_as_new,
    current,
    delay,
    expose,
    exposed,
    flow,
    logger,
    messages,
    new_uuid,
    now,
    receive,
    rng,
    run,
    send,
    start,
    step,
    transaction,
)
from perdure.testing.crashing import PromiseBroken, crash_everywhere

world: dict[str, object] = {}


@step
async def put(value: object) -> object:
    world[current().key] = value
    return value


@step
def put_in_thread(value: object) -> object:
    world[current().key] = value
    return value


@step
async def slowly(value: object, seconds: float) -> object:
    await asyncio.sleep(seconds)
    world[current().key] = value
    return value


class Down(Exception):
    pass


async def crashed(flow: Any, *args: Any, **options: Any) -> Any:
    """What the flow gives, having been crashed everywhere, in pairs as well."""
    return await crash_everywhere(flow, *args, effects=world, crashes=2, **options)


# ------------------------------------------------------------ children


@flow
async def child(n: int) -> str:
    await put(n)
    await put(str(new_uuid()))
    return f"{n} {rng().random()} {new_uuid()}"


@flow
async def parent(n: int) -> list[str]:
    first = await child(0)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(child(i + 1)) for i in range(n)]
    return [first, *(task.result() for task in tasks), str(new_uuid())]


async def test_ids_and_keys_of_children_are_the_same_after_a_crash() -> None:
    assert len(await crashed(parent, 2)) == 4


@flow
async def with_detached() -> str:
    handle = await start(child, 1, id="one", detached=True)
    await put("parent")
    await delay(1)
    return await handle.result()


async def test_detached_children() -> None:
    await crashed(with_detached)


@flow
async def grandparent() -> list[str]:
    return await run(parent, 1, id="parent")


async def test_grandchildren() -> None:
    await crashed(grandparent)


@flow
async def other() -> str:
    return await receive(str) + "!"


@flow
async def sender() -> str:
    handle = await start(other, id="other")
    await handle.send("hello")
    await send(other, "nobody", "for nobody")
    return await handle.result()


async def test_messages_to_other_flows() -> None:
    assert await crashed(sender) == "hello!"


# ------------------------------------------------------------ tasks


@flow
async def gathers() -> list[object]:
    return [*await asyncio.gather(put(1), slowly(2, 5), put_in_thread(3), child(4)), await slowly(5, 1)]


@flow
async def races() -> object:
    quick, slow = asyncio.create_task(slowly("quick", 1)), asyncio.create_task(slowly("slow", 50))
    done, left = await asyncio.wait({quick, slow}, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    return [await task for task in done]


@flow
async def limited() -> str:
    try:
        async with asyncio.timeout(10):
            await receive(str)
    except TimeoutError:
        return await child(1)
    return "no timeout"


@flow
async def fails_in_a_group() -> str:
    async def fail() -> None:
        await put("failing")
        raise Down

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(slowly("never", 100))
    except* Down:
        pass
    return "caught"


@flow
async def by_queue() -> list[object]:
    queue: asyncio.Queue[int] = asyncio.Queue()
    found: list[object] = []

    async def worker() -> None:
        while not queue.empty():
            number = queue.get_nowait()
            found.append(await slowly(number, 1 + number / 10))

    for n in range(5):
        queue.put_nowait(n)
    await asyncio.gather(worker(), worker())
    return sorted(found, key=str)


@flow
async def as_completed() -> list[object]:
    found = [await done for done in asyncio.as_completed([slowly(n, 5 - n) for n in range(3)])]
    return sorted(found, key=str)


@pytest.mark.parametrize("body", [gathers, races, limited, fails_in_a_group, by_queue, as_completed])
async def test_tasks(body: Callable[[], Coroutine[Any, Any, object]]) -> None:
    await crashed(body)


# ------------------------------------------------------------ runs, messages, time


@flow
async def counts(n: int) -> int:
    await put(n)
    return n if n == 3 else await continue_as_new(n + 1)


async def test_runs() -> None:
    assert await crashed(counts, 0) == 3


@flow
async def reads() -> list[str]:
    found: list[str] = []
    async for message in messages(str):
        await put(message)
        found.append(message)
        if len(found) == 3:
            break
    return found


async def test_streams() -> None:
    assert await crashed(reads, messages=["a", "b", "c"]) == ["a", "b", "c"]


@flow
async def named() -> list[str]:
    late = await receive(str, name="late", timeout=60)
    return [late, await receive(str)]


async def test_named_messages_and_duplicates() -> None:
    outside = ["first", Outgoing("any", "second", name="late", key="k")]
    assert await crashed(named, messages=outside) == ["second", "first"]
    assert await crashed(named, messages=outside, duplicates=True) == ["second", "first"]


@flow
async def waits_for_months() -> str:
    begun = now()
    for month in range(2):
        await delay(timedelta(days=30))
        expose("month", month)
    await put(str(now() - begun))
    return f"{now() - begun} {exposed('month')}"


async def test_months() -> None:
    assert await crash_everywhere(waits_for_months, effects=world) == "60 days, 0:00:00 1"


@flow
async def waits_for_years() -> str:
    await delay(timedelta(days=1000))
    await receive(str, timeout=timedelta(days=365))
    return "after years"


async def test_years() -> None:
    async def drive(handle: Handle[str]) -> None:
        await asyncio.sleep(1100 * 86400)
        await handle.send("at last", key="k")

    assert await crash_everywhere(waits_for_years, drive=drive) == "after years"


# ------------------------------------------------------------ steps


@step(retry=Retry(attempts=5))
async def third_time() -> str:
    world[f"{current().key} {current().attempt}"] = True
    if current().attempt < 3:
        raise Down
    return "up"


@flow
async def retries() -> tuple[str, timedelta]:
    begun = now()
    return await third_time(), now() - begun


@step(retry=Retry(attempts=3, jitter=0.5))
async def second_time() -> str:
    if current().attempt < 2:
        raise Down
    return "up"


@flow
async def retries_with_jitter() -> tuple[str, timedelta]:
    begun = now()
    return await second_time(), now() - begun


@step(timeout=5)
async def too_slow() -> None:
    await asyncio.sleep(100)


@flow
async def times_out() -> str:
    try:
        await too_slow()
    except TimeoutError:
        return "timed out"
    return "in time"


@flow
async def captures() -> object:
    def sync() -> str:
        return "sync"

    async def other() -> str:
        return await asyncio.to_thread(sync)

    await capture(world.setdefault, "captured", 1)
    return [await capture(sync), await capture(other), await capture(lambda: 1)]


@step
async def heartbeats() -> str:
    done = current().progress(int) or 0
    for n in range(done, 3):
        await asyncio.sleep(1)
        world[f"part {n}"] = True
        current().heartbeat(n + 1)
    return "all"


@flow
async def with_progress() -> str:
    return await heartbeats()


@pytest.mark.parametrize("body", [retries, retries_with_jitter, times_out, captures, with_progress])
async def test_steps(body: Callable[[], Coroutine[Any, Any, object]]) -> None:
    await crashed(body)


@step(at_most_once=True, retry=Retry(attempts=3, retry_on=(Down,)))
async def once() -> str:
    world[current().key] = True
    if current().attempt == 1:
        raise Down
    return "done"


@flow
async def asks_the_other_side() -> str:
    try:
        return await once()
    except OutcomeUnknown:
        return "a person looks"


async def test_an_unknown_outcome_is_another_result_which_check_may_accept() -> None:
    with pytest.raises(PromiseBroken, match="OutcomeUnknown"):
        await crash_everywhere(asks_the_other_side, effects=world)

    ends: set[str] = set()
    result = await crash_everywhere(
        asks_the_other_side, effects=world, check=lambda end: ends.add(end.result), crashes=2
    )
    assert result == "done"
    assert ends == {"done", "a person looks"}


async def work(tx: Tx, amount: int) -> int:
    await tx.execute("insert into paid values (?)", amount)
    return amount


@flow
async def pays() -> int:
    return await transaction(work, 7) + await transaction(work, 8)


async def test_transactions_need_a_stub_and_are_done_once() -> None:
    with pytest.raises(NotSupported):
        await crash_everywhere(pays)

    paid: list[int] = []

    async def book(tx: Tx, amount: int) -> int:
        paid.append(amount)
        return amount

    assert await crash_everywhere(pays, effects=paid, stubs={work: book}) == 15


# ------------------------------------------------------------ ends


@flow
async def fails() -> None:
    await put("before")
    raise Down("on purpose")


async def test_a_flow_that_fails_on_purpose_raises_its_error() -> None:
    with pytest.raises(Down, match="on purpose"):
        await crash_everywhere(fails, effects=world)
    assert await crash_everywhere(tolerant, effects=world) == "failed as it should"


@flow
async def tolerant() -> str:
    try:
        await fails()
    except Down:
        return "failed as it should"
    return "did not fail"


@flow
async def cleans_up() -> str:
    try:
        return await receive(str)
    finally:
        await put("cleaned")


async def test_cancelled_from_outside() -> None:
    async def drive(handle: Handle[str]) -> None:
        await asyncio.sleep(10)
        await handle.cancel("enough")

    with pytest.raises(FlowCancelled, match="enough"):
        await crash_everywhere(cleans_up, effects=world, drive=drive)


@flow
async def with_generators() -> list[int]:
    async def numbers() -> AsyncIterator[int]:
        try:
            for n in range(10):
                yield int(str(await put(n)))
        finally:
            await put("closed")

    @asynccontextmanager
    async def around() -> AsyncIterator[None]:
        await put("entered")
        yield
        await put("left")

    found: list[int] = []
    async with around():
        async for n in numbers():
            found.append(n)
            logger.info("got %d", n)
            if n == 2:
                break
    return found


async def test_generators_and_context_managers() -> None:
    assert await crashed(with_generators) == [0, 1, 2]


class Account:
    """A service whose methods are steps."""

    def __init__(self) -> None:
        self.paid: dict[str, int] = {}

    @step
    async def pay(self, cents: int) -> int:
        self.paid[current().key] = cents
        return cents


account = Account()


@flow
async def by_method() -> int:
    return await account.pay(1) + await account.pay(2)


async def test_steps_that_are_methods_of_a_global_service() -> None:
    assert await crash_everywhere(by_method, effects=account.paid) == 3
