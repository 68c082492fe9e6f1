"""A desk where flows book: it counts what is done, and can be closed or busy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from perdure import Engine, FlowFunction, Handle, OutcomeUnknown, capture, flow, receive
from tests.support.clock import until


class Declined(Exception):
    """The desk says no."""


class Desk:
    """Does what it is asked, and numbers it: what runs again has another outcome."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.closed: set[str] = set()
        """What is declined."""
        self.busy: asyncio.Event | None = None
        """Who books waits for it."""

    async def book(self, what: str) -> str:
        """The booking's name and number."""
        self.done.append(what)
        if self.busy is not None:
            await self.busy.wait()
        if what in self.closed:
            raise Declined(what)
        return f"{what} {self.done.count(what)}"


def trip_of(desk: Desk) -> FlowFunction[..., Any]:
    """Two steps, a message, and a step that needs the argument."""

    @flow(name="trip")
    async def trip(guest: str = "ann") -> list[str]:
        hotel = await capture(desk.book, "hotel", id="hotel")
        flight = await capture(desk.book, "flight", name="fly")
        paid = await receive(str)
        return [hotel, flight, paid, await capture(desk.book, f"mail to {guest}", name="mail")]

    return trip


def slow_flow(desk: Desk, *, at_most_once: bool = False) -> FlowFunction[..., Any]:
    """Three steps, the second of which may end unknown."""

    @flow(name="slow")
    async def slow() -> list[str]:
        hotel = await capture(desk.book, "hotel", id="hotel")
        try:
            flight = await capture(desk.book, "flight", id="flight", at_most_once=at_most_once)
        except OutcomeUnknown:
            flight = "unknown"
        return [hotel, flight, await capture(desk.book, "end", id="end")]

    return slow


async def in_the_flight(desk: Desk, engine: Engine, slow: Any) -> Handle[Any]:
    """The instance has booked the hotel, and waits at the desk for the flight."""
    handle = await engine.start(slow, id="1")
    await until(lambda: desk.done == ["hotel"])
    busy, desk.busy = desk.busy, asyncio.Event()
    assert busy is not None
    busy.set()
    await until(lambda: desk.done == ["hotel", "flight"])
    return handle


VERBS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "save": lambda panel: panel.save(),
    "restart": lambda panel: panel.restart(),
    "succeed": lambda panel: panel.succeed(["by hand"]),
    "fail": lambda panel: panel.fail(Declined("by hand")),
    "postpone": lambda panel: panel.postpone(60),
    "delete": lambda panel: panel.delete(),
}
"""What a control panel does with an instance."""
