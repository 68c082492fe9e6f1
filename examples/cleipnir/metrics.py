"""Counting what becomes of flows: a plain function around the flow's own."""

import asyncio
import functools
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from perdure import Engine, FlowFailed, FlowFunction, capture, current, flow, step

P = ParamSpec("P")
R = TypeVar("R")

Metrics = Counter[str]


def counted(metrics: Metrics, body: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """The same function; its lives and ends are counted."""

    def count(name: str) -> None:
        metrics[name] += 1

    @functools.wraps(body)
    async def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if current().restarted:
            count("restarted")  # not a step: it counts the very thing that replay leaves out
        try:
            result = await body(*args, **kwargs)
        except Exception:
            await capture(count, "failed")
            raise
        await capture(count, "completed")
        return result

    return run


@step
async def half(n: int) -> int:
    if n % 2:
        raise ValueError(f"{n} is odd")
    return n // 2


def fragile_flow(metrics: Metrics) -> FlowFunction[[int], int]:
    """A flow that is counted."""

    async def body(n: int) -> int:
        return await half(n)

    return flow(name="FragileFlow")(counted(metrics, body))


async def main() -> None:
    metrics: Metrics = Counter()
    run = fragile_flow(metrics)
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[run]) as engine:
            for n in (2, 4, 13):
                try:
                    await engine.run(run, n, id=str(n))
                except FlowFailed as failed:
                    print(failed)
    print(dict(metrics))


if __name__ == "__main__":
    asyncio.run(main())
