"""Handlers of four service buses: each is one line that forwards what came to the flow that it is for."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from perdure import Engine, flow, receive


@dataclass(frozen=True)
class MyMessage:
    value: str
    """Which instance it is for."""


@dataclass(frozen=True)
class ConsumeContext:
    """What some buses wrap a message in."""

    message: MyMessage
    message_id: str


@flow
async def simple_flow() -> str:
    return (await receive(MyMessage)).value


class MassTransitConsumer:
    """Gets a context with the message in it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def consume(self, context: ConsumeContext) -> None:
        """The flow has the message, on disk; the bus may forget it."""
        await self._engine.send(simple_flow, context.message.value, context.message, key=context.message_id)


class NServiceBusHandler:
    """Gets the message and a context beside it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def handle(self, message: MyMessage, context: ConsumeContext) -> None:
        """See MassTransitConsumer."""
        await self._engine.send(simple_flow, message.value, message, key=context.message_id)


class RebusHandler:
    """Gets the message alone."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def handle(self, message: MyMessage) -> None:
        """The flow has the message, on disk. Without a key one that comes twice is two messages."""
        await self._engine.send(simple_flow, message.value, message)


WolverineHandler = RebusHandler  # the same shape


async def deliver(handler: Callable[..., Awaitable[None]], *args: Any, times: int) -> None:
    """What a bus does: at least once."""
    for _ in range(times):
        await handler(*args)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/flows.db", flows=[simple_flow]) as engine:
            contexts = {name: ConsumeContext(MyMessage(name), f"id of {name}") for name in ("a", "b", "c", "d")}
            for name in contexts:
                await engine.start(simple_flow, id=name)
            await deliver(MassTransitConsumer(engine).consume, contexts["a"], times=2)
            await deliver(NServiceBusHandler(engine).handle, contexts["b"].message, contexts["b"], times=2)
            await deliver(RebusHandler(engine).handle, contexts["c"].message, times=1)
            await deliver(WolverineHandler(engine).handle, contexts["d"].message, times=1)
            print(*[await engine.handle(simple_flow, name).result() for name in contexts])


if __name__ == "__main__":
    asyncio.run(main())
