"""One heap for all that is due at a time of engine time, looked at again when the time or the clock has moved."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any, Final

from perdure.clock import Clock

LOOK_AGAIN: Final = 5.0
"""Real seconds after which the heap is looked at in any case: the machine may have been suspended."""


class EngineTime:
    """The store's clock, measured at join and at each renewal, advanced by the boot-time clock."""

    __slots__ = ("_boot", "_offset")

    def __init__(self, clock: Clock) -> None:
        self._boot = clock.boot
        self._offset = clock.wall() - clock.boot()

    def measured(self, store_time: float, at_boot: float) -> None:
        """The store's clock showed `store_time` when the boot-time clock showed `at_boot`."""
        self._offset = store_time - at_boot

    def now(self) -> float:
        """Epoch seconds."""
        return self._boot() + self._offset


class Timers:
    """Callbacks by engine time; called in the real loop, in the order of their times."""

    def __init__(self, now: Callable[[], float], real: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self._now = now
        self._real = real
        self._heap: list[tuple[float, int, Callable[..., None] | None, Any]] = []
        self._number = itertools.count()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = float("inf")
        self._unwatch = clock.on_move(self._clock_moved)

    def at(self, when: float, callback: Callable[..., None], *args: Any) -> None:
        """The callback is called when it is `when`, in a turn of the real loop."""
        heapq.heappush(self._heap, (when, next(self._number), callback, args))
        if when < self._alarm_at:
            self._set_alarm()

    def close(self) -> None:
        """Nothing is called any more."""
        self._unwatch()
        self._heap.clear()
        if self._alarm is not None:
            self._alarm.cancel()

    def _clock_moved(self) -> None:
        self._real.call_soon_threadsafe(self._ring)

    def next_at(self) -> float | None:
        """When something is due next."""
        return self._heap[0][0] if self._heap else None

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        if not self._heap:
            self._alarm, self._alarm_at = None, float("inf")
            return
        self._alarm_at = self._heap[0][0]
        self._alarm = self._real.call_later(min(max(0.0, self._alarm_at - self._now()), LOOK_AGAIN), self._ring)

    def _ring(self) -> None:
        now = self._now()
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, _, callback, args = heapq.heappop(heap)
            if callback is not None:
                callback(*args)
        self._set_alarm()
