"""What is put around the attempts of steps: sees who is called, may change arguments, result and error."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from perdure import Current, Engine, FlowFailed, FlowMiddleware, Retry, capture, current, flow, step
from perdure.stores.memory import MemoryStore

Next = Callable[..., Awaitable[Any]]
ran: list[str] = []


@step
async def double(n: int) -> int:
    ran.append(f"double {n}")
    return 2 * n


def in_a_thread(n: int, *, plus: int) -> int:
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    ran.append(f"thread {n} {current().step}")
    return n + plus


@step
def added(n: int, *, plus: int) -> int:
    return in_a_thread(n, plus=plus)


@step(retry=Retry(attempts=3, initial=0.001, jitter=False))
async def fails() -> None:
    raise ValueError("always")


@flow
async def sums(n: int) -> int:
    return await double(n) + await added(n, plus=1) + await capture(lambda: n, name="third")


@flow
async def failing() -> None:
    await fails()


async def run(flow: Any, *args: Any, middleware: list[FlowMiddleware]) -> Any:
    ran.clear()
    async with Engine(MemoryStore(), flows=[flow], step_middleware=middleware) as engine:
        return await engine.run(flow, *args, id="one")


async def test_the_first_is_outermost_and_sees_who_is_called() -> None:
    seen: list[Any] = []

    async def outer(info: Current, args: tuple[Any, ...], next: Next) -> Any:
        value = await next(*args)
        seen.append(["outer", info.step, info.attempt, args, value])
        return value

    async def inner(info: Current, args: tuple[Any, ...], next: Next) -> Any:
        seen.append(["inner", info.key == current().key])
        return await next(*args)

    assert await run(sums, 5, middleware=[outer, inner]) == 10 + 6 + 5
    assert seen == [
        ["inner", True], ["outer", "double", 1, (5,), 10],
        ["inner", True], ["outer", "added", 1, (5,), 6],
        ["inner", True], ["outer", "third", 1, (), 5],
    ]  # fmt: skip
    assert ran == ["double 5", "thread 5 added"]


async def test_it_may_change_arguments_and_results_and_leave_the_step_out() -> None:
    async def change(info: Current, args: tuple[Any, ...], next: Next) -> Any:
        if info.step == "third":
            return 1000
        return await next(*(a + 1 for a in args)) * 10

    assert await run(sums, 5, middleware=[change]) == 120 + 70 + 1000
    assert ran == ["double 6", "thread 6 added"]


async def test_what_it_raises_is_the_attempts_failure() -> None:
    attempts: list[int] = []

    async def refuse(info: Current, args: tuple[Any, ...], next: Next) -> Any:
        attempts.append(info.attempt)
        with pytest.raises(ValueError, match="always"):
            await next(*args)
        raise KeyError("refused")

    with pytest.raises(FlowFailed) as failed:
        await run(failing, middleware=[refuse])
    assert isinstance(failed.value.__cause__, KeyError)
    assert attempts == [1, 2, 3]
