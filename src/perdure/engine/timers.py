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


class Alarm:
    """A callback at a time; see `Timers.at`."""

    __slots__ = ("args", "callback", "number", "when")

    def __init__(self, when: float, number: int, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.when = when
        self.number = number
        self.callback: Callable[..., None] | None = callback
        self.args = args

    def __lt__(self, other: Alarm) -> bool:
        return (self.when, self.number) < (other.when, other.number)


class Timers:
    """Callbacks by engine time; called in the real loop, in the order of their times."""

    def __init__(self, now: Callable[[], float], real: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self._now = now
        self._real = real
        self._heap: list[Alarm] = []
        self._off = 0
        self._look_again = LOOK_AGAIN * clock.calm
        self._number = itertools.count()
        self._bell: asyncio.TimerHandle | None = None
        self._bell_at = float("inf")
        self._unwatch = clock.on_move(self._clock_moved)

    def at(self, when: float, callback: Callable[..., None], *args: Any) -> Alarm:
        """The callback is called when it is `when`, in a turn of the real loop, unless the alarm is put off."""
        alarm = Alarm(when, next(self._number), callback, args)
        heapq.heappush(self._heap, alarm)
        if when < self._bell_at:
            self._set_bell()
        return alarm

    def put_off(self, alarm: Alarm) -> None:
        """The callback is not called; may be repeated."""
        if alarm.callback is not None:
            alarm.callback, alarm.args = None, ()
            self._off += 1
            if self._off > 100 and self._off > len(self._heap) // 2:
                self._heap = [a for a in self._heap if a.callback is not None]
                heapq.heapify(self._heap)
                self._off = 0

    def close(self) -> None:
        """Nothing is called any more."""
        self._unwatch()
        self._heap.clear()
        if self._bell is not None:
            self._bell.cancel()

    def _clock_moved(self) -> None:
        self._real.call_soon_threadsafe(self._ring)

    def _set_bell(self) -> None:
        if self._bell is not None:
            self._bell.cancel()
        if not self._heap:
            self._bell, self._bell_at = None, float("inf")
            return
        self._bell_at = self._heap[0].when
        self._bell = self._real.call_later(min(max(0.0, self._bell_at - self._now()), self._look_again), self._ring)

    def _ring(self) -> None:
        now = self._now()
        try:
            while self._heap and self._heap[0].when <= now:
                alarm = heapq.heappop(self._heap)
                callback, alarm.callback = alarm.callback, None
                if callback is None:
                    self._off -= 1
                else:
                    callback(*alarm.args)
        finally:
            self._set_bell()  # whatever a callback raised: no other is late for it
