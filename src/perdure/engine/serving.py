"""An engine as a service: which flows it is given, and running until the process is told to stop."""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
from collections.abc import Callable, Coroutine, Iterable, Sequence
from types import ModuleType
from typing import Any, cast

from perdure.api.flow import AnyFlow, FlowFunction
from perdure.engine.names import check_queue
from perdure.model.lanes import check_flow_name

logger = logging.getLogger("perdure")


async def until_stopped(stop: Callable[[float], Coroutine[Any, Any, None]], drain: float) -> None:
    """The process got SIGTERM or SIGINT and has stopped since, draining for so long; after a second signal at once."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    stopping: asyncio.Task[None] | None = None

    def on_signal() -> None:
        if asked.is_set():
            logger.warning("second signal: stopping hard; running steps begin again elsewhere")
            if stopping is not None:
                stopping.cancel()
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await asked.wait()
        stopping = loop.create_task(stop(drain))
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            if not stopping.cancelled():
                raise
            await stop(0.0)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def registered(flows: Iterable[AnyFlow | ModuleType]) -> dict[str, FlowFunction[..., Any]]:
    """The flows by name.

    Raises:
        TypeError: something is not a flow.
        ValueError: two flows have the same name, or one a name that no flow may have.
    """
    found: dict[str, FlowFunction[..., Any]] = {}
    for item in flows:
        if isinstance(item, ModuleType):
            members = [
                cast("AnyFlow", value) for _, value in inspect.getmembers(item) if isinstance(value, FlowFunction)
            ]
            if not members:
                raise ValueError(f"module {item.__name__} has no flow in it")
        elif isinstance(cast("object", item), FlowFunction):
            members = [item]
        else:
            raise TypeError(f"{item!r} is not a flow; decorate it with @flow")
        for function in members:
            check_flow_name(function.name)
            if found.setdefault(function.name, function) is not function:
                raise ValueError(f"two flows are named {function.name!r}; give one of them another name=")
    return found


def served(queues: Sequence[str]) -> tuple[str, ...]:
    """The queues that an engine serves, "" for what names none.

    Raises:
        TypeError: it is one text, or something in it is none.
        ValueError: something in it is no name of a queue.
    """
    if isinstance(queues, str):
        raise TypeError(f"queues is a sequence of names; for one of them write [{queues!r}]")
    for queue in queues:
        if queue is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise TypeError('queues are names; what names none is ""')
        check_queue(queue)
    return tuple(dict.fromkeys(queues)) or ("",)
