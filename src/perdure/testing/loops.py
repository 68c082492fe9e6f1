"""asyncio loops in virtual time: each runs until it is idle, and whoever drives it says how late it is then.

They know nothing of Perdure. Several can be driven side by side in one thread, as the processes of a cluster; one that
is not driven any more is a process that was killed, and none of its code runs on.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, Final, TypeVar

T = TypeVar("T")

RESOLUTION: Final = 1e-6
"""Seconds that are taken for no time: asyncio's own nanosecond is lost in a float after some months of virtual time."""
IO_SECONDS: Final = 0.02
"""An idle loop that has sockets open waits so long, really, for something to come, before time is moved."""


class Time:
    """How late it is, in seconds since the beginning. Moved by whoever drives the loops."""

    def __init__(self) -> None:
        self.now = 0.0

    def move_to(self, when: float) -> None:
        """It is so late, or a little later: a loop calls what is due before its time, not at it."""
        self.now = max(self.now, when + max(1e-8, 4 * math.ulp(when)))


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time is virtual. `run_until_idle` runs all that can run now; `wakes_at` is when there is more."""

    def __init__(self, time: Time) -> None:
        self._virtual = time
        self.wakes_at = 0.0
        """When it has something to do by itself; infinite: never."""
        super().__init__(_Selector(self))
        self._clock_resolution = RESOLUTION

    def time(self) -> float:
        """Seconds of virtual time."""
        return self._virtual.now

    def run_until_idle(self) -> None:
        """Everything that can happen without time passing has happened."""
        self.run_forever()

    def idle(self, seconds: float | None) -> None:
        """Nothing can happen for so long; None: until somebody else makes it happen."""
        self.wakes_at = math.inf if seconds is None else self._virtual.now + seconds
        self.stop()

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio's. From outside (another process's commit): the loop has something to do now."""
        handle = super().call_soon_threadsafe(callback, *args, context=context)
        self.wakes_at = min(self.wakes_at, self._virtual.now)
        return handle

    def run_in_executor(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """The function is run here and now: a thread would bring an order of its own."""
        return done(self, lambda: func(*args))


class _Selector(selectors.BaseSelector):
    """Tells the loop when it is idle, instead of sleeping. Sockets, if there are any, are real."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        sockets = len(self._real.get_map()) > 1  # one is the loop's own
        ready = self._real.select(0) if sockets else []
        if ready or (timeout is not None and timeout <= 0):
            return ready
        ready = self._real.select(min(IO_SECONDS, IO_SECONDS if timeout is None else timeout)) if sockets else []
        if not ready:
            self._loop.idle(timeout)
        return ready

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


def done(loop: asyncio.AbstractEventLoop, work: Callable[[], T]) -> asyncio.Future[T]:
    """What the function gave or raised, called here and now as in a thread: with no running loop."""
    future: asyncio.Future[T] = loop.create_future()
    running = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        result = work()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        asyncio._set_running_loop(running)
        future.set_exception(error)
    else:
        asyncio._set_running_loop(running)
        future.set_result(result)
    finally:
        asyncio._set_running_loop(running)
    return future


async def apart(work: Callable[[], T]) -> T:
    """What the function gave, which may run other loops: it is called from the running loop, in no task of that."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def call() -> None:
        asyncio._set_running_loop(None)
        try:
            result = work()
        except BaseException as error:
            asyncio._set_running_loop(loop)
            if not outcome.done():
                outcome.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            if not outcome.done():
                outcome.set_result(result)
        finally:
            asyncio._set_running_loop(loop)

    loop.call_soon(call)
    return await outcome
