"""What is to be undone is registered after it was done: if its outcome gets lost, nobody undoes it."""
# ruff: noqa

from collections.abc import Awaitable, Callable
from typing import Any

from perdure import OutcomeUnknown, flow, step
from perdure.testing.plays import Ending

rooms: set[str] = set()
seats: set[str] = set()


@step(at_most_once=True)
async def book_room(trip: str) -> None:
    rooms.add(trip)


@step(at_most_once=True)
async def book_seat(trip: str) -> None:
    seats.add(trip)


@step
async def cancel_room(trip: str) -> None:
    rooms.discard(trip)


@step
async def cancel_seat(trip: str) -> None:
    seats.discard(trip)


@flow
async def broken(trip: str) -> str:
    undo: list[Callable[[str], Awaitable[None]]] = []
    try:
        await book_room(trip)  # <- here
        undo.append(cancel_room)
        await book_seat(trip)
        undo.append(cancel_seat)
    except OutcomeUnknown:
        for cancel in reversed(undo):
            await cancel(trip)
        return "given up"
    return "booked"


@flow
async def mended(trip: str) -> str:
    undo: list[Callable[[str], Awaitable[None]]] = []
    try:
        undo.append(cancel_room)
        await book_room(trip)
        undo.append(cancel_seat)
        await book_seat(trip)
    except OutcomeUnknown:
        for cancel in reversed(undo):
            await cancel(trip)
        return "given up"
    return "booked"


def all_or_nothing(end: Ending) -> None:
    booked = {"trip"} if end.result == "booked" else set()
    assert end.effects == (booked, booked)


ARGS = ("trip",)
OPTIONS: dict[str, Any] = {"effects": (rooms, seats), "check": all_or_nothing}
