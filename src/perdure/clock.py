"""Time, as the engine sees it: the one place that reads a clock, and the one thing tests replace to move time."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Duration = timedelta | float
"""A length of time: a `timedelta`, or seconds."""


def seconds(duration: Duration) -> float:
    """The duration in seconds."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


def to_datetime(at: float) -> datetime:
    """The aware UTC datetime of an instant in epoch seconds."""
    return datetime.fromtimestamp(at, UTC)


def to_epoch(at: datetime) -> float:
    """The epoch seconds of an aware datetime.

    Raises:
        ValueError: the datetime is naive; give it a time zone.
    """
    if at.tzinfo is None:
        raise ValueError(f"{at!r} has no time zone; use an aware datetime, e.g. datetime.now(UTC)")
    return at.timestamp()


class Clock:
    """The machine's clocks. `wall` may be set by hand; `boot` only goes forward and counts suspended time."""

    calm: float = 1.0
    """So many times more rarely than usual it is looked for what may have been overlooked: virtual time that skips over
    days must not stop at every second.
    """

    def __init__(self) -> None:
        if type(self).boot is Clock.boot:  # it is read several times a step: spare the call through Python
            self.boot = functools.partial(time.clock_gettime, _BOOT)

    def wall(self) -> float:
        """Epoch seconds."""
        return time.time()

    def boot(self) -> float:
        """Seconds since an arbitrary start, never going back, counting the time that the machine was suspended."""
        return time.clock_gettime(_BOOT)

    def on_move(self, moved: Callable[[], None]) -> Callable[[], None]:
        """`moved` is called (from any thread) when somebody moves this clock; gives a function that ends that.

        The machine's clocks move by themselves only.
        """
        return lambda: None

    def monotonic(self) -> float:
        """Seconds of real time, for measuring how long our own code took; no test moves it."""
        return time.monotonic()


_BOOT: int = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", 1))
