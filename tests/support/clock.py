"""A clock that only the test moves: days pass in no time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from perdure.clock import Clock
from perdure.system import System


class ManualClock(Clock):
    """Wall and boot time stand still until `advance` moves both; real time (`monotonic`) goes on."""

    def __init__(self, start: float = 1_750_000_000.0) -> None:
        self._now = start
        self._watchers: list[Callable[[], None]] = []

    def wall(self) -> float:
        return self._now

    def boot(self) -> float:
        return self._now - 1_000_000_000.0

    def on_move(self, moved: Callable[[], None]) -> Callable[[], None]:
        self._watchers.append(moved)
        return lambda: self._watchers.remove(moved)

    def advance(self, seconds: float) -> None:
        """The clocks show `seconds` more, and everybody who waits for time looks again."""
        self._now += seconds
        for moved in list(self._watchers):
            moved()


def manual_system() -> tuple[ManualClock, System]:
    """A system for a store whose time the test moves."""
    clock = ManualClock()
    return clock, System(clock)


async def until(
    condition: Callable[[], object], *, seconds: float = 10.0, told: Callable[[], str] = lambda: ""
) -> None:
    """The condition holds; fails, with what `told` says, if it does not within so many real seconds. Polls often."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"the condition did not come true in time {told()}")
        await asyncio.sleep(0.002)
