"""Moves the clock: to the next timer, while the test waits and nothing can happen without time passing.

It knows how to tell that nothing happens, and who waits. What is said to whom who waits in vain is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

from perdure.engine.steps import Attempt
from perdure.testing.inside import Inside
from perdure.testing.virtual import VirtualClock

T = TypeVar("T")

QUIET_TURNS: Final = 10
"""So many turns of the real loop nothing has happened before time is moved: what a test does between two awaits of ours
takes fewer.
"""
BUSY_TURNS: Final = 200
"""After so many turns something real is waited for, a thread or a socket: the processor is not burnt meanwhile."""
PAUSE: Final = 0.001
"""So many real seconds are waited then, at a time."""
WRITES: Final = 200_000
"""An instance that has not ended after so many writes never will: most likely it asks for something every minute. And
after so many without any time passing, there is no end to them.
"""


class Wait:
    """The test waits: until a time, or (`until` infinite) until what it waits for has happened."""

    __slots__ = ("since", "told", "uid", "until")

    def __init__(self, until: float, uid: bytes | None, since: int) -> None:
        self.until = until
        self.uid = uid
        """The instance whose result is waited for."""
        self.since = since
        """How much had happened when it began."""
        self.told: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        """None: it is so late, and everything has settled. An error: it waits in vain."""

    def tell(self, error: BaseException | None) -> None:
        """The wait is over."""
        if not self.told.done():
            self.told.set_result(error)


class Explains(Protocol):
    """What to say to a test that waits in vain."""

    def not_quiet(self, wait: Wait, attempts: list[Attempt]) -> BaseException: ...
    def endless(self, wait: Wait) -> BaseException: ...
    def timeless(self, wait: Wait) -> BaseException: ...
    def nothing_left(self, wait: Wait, asleep: list[Attempt]) -> BaseException: ...
    def blocked(self, wait: Wait, *, children: bool) -> BaseException | None:
        """If the instance is blocked, or one that it started and `children` count."""
        ...


class Skipping:
    """See the module. One per engine that runs."""

    def __init__(self, inside: Inside, clock: VirtualClock, explains: Explains, patience: Callable[[], float]) -> None:
        self._inside = inside
        self._clock = clock
        self._explains = explains
        self._patience = patience
        self._waits: set[Wait] = set()
        self._asleep: dict[Attempt, int] = {}
        """Attempts that wait for virtual time, and how many times each."""
        self._pump: asyncio.Task[None] | None = None
        self._seen: tuple[int, list[Attempt]] | None = None
        self._seen_at = 0.0
        """How much had happened and what was running, and since when (real time) that has not changed."""
        self._blocked = 0
        """How many instances had been set aside when it was last looked who waits for one of them."""

    # ------------------------------------------------------------ waiting

    async def pass_by(self, seconds: float) -> None:
        """It is so much later, and everything that was due by then has settled."""
        __tracebackhide__ = True  # a failing test shows its own line
        wait = self._wait(seconds, None)
        try:
            error = await wait.told
        finally:
            self._waits.discard(wait)
        if error is not None:
            raise error

    async def result(self, uid: bytes, work: Coroutine[Any, Any, T], timeout: float | None) -> tuple[bool, T | None]:
        """Whether `work`, which waits for the instance's end, ended within that time; and what it gave."""
        __tracebackhide__ = True
        wait = self._wait(math.inf if timeout is None else timeout, uid)
        task = asyncio.create_task(work)
        try:
            await asyncio.wait((task, wait.told), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return True, task.result()
            error = wait.told.result()
        finally:
            self._waits.discard(wait)
            task.cancel()
        if error is not None:
            raise error
        return False, None

    async def sleep_in_step(self, attempt: Attempt, seconds: float) -> None:
        """It is so much later; meanwhile the attempt does not count as running."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        alarm = None
        if seconds < math.inf:
            alarm = self._inside.timers.at(self._clock.wall() + seconds, _wake, woken)
        with self._resting(attempt):
            try:
                await woken
            finally:
                if alarm is not None:
                    self._inside.timers.put_off(alarm)

    @contextmanager
    def _resting(self, attempt: Attempt) -> Generator[None]:
        self._asleep[attempt] = self._asleep.get(attempt, 0) + 1
        try:
            yield
        finally:
            self._asleep[attempt] -= 1
            if not self._asleep[attempt]:
                del self._asleep[attempt]

    def _wait(self, seconds: float, uid: bytes | None) -> Wait:
        wait = Wait(self._clock.wall() + seconds, uid, self._inside.writes())
        self._waits.add(wait)
        if uid is not None:
            self._blocked = -1
        if self._pump is None:
            self._pump = asyncio.create_task(self._skip(), name="perdure: virtual time")
        return wait

    async def close(self) -> None:
        """Time stands still for good, and whoever waits for it is cancelled."""
        for wait in self._waits:
            wait.told.cancel()
        self._waits.clear()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])

    # ------------------------------------------------------------ moving

    async def _skip(self) -> None:
        try:
            while self._waits:
                if await self._quiet():
                    await self._move()
        except Exception as error:
            fault = error  # of ours
            self._tell(self._waits, lambda wait: fault)
        finally:
            self._pump = None

    async def _move(self) -> None:
        """Nothing can happen at this time any more."""
        if self._tell_blocked(children=False):
            return
        now = self._clock.wall()
        over = [wait for wait in self._waits if wait.until <= now]
        if over:
            self._tell(over, lambda wait: None)
            return
        timer = self._inside.next_at()
        when = min((wait.until for wait in self._waits), default=math.inf)
        if timer is not None:
            when = min(when, timer)
        if when < math.inf:
            self._clock.move_to(when)
        else:
            await self._nothing_left()

    async def _quiet(self) -> bool:
        """True: nothing can happen by itself any more. False: nobody waits any more."""
        quiet = turns = 0
        begun, self._seen = self._inside.writes(), None
        while self._waits and quiet < QUIET_TURNS:
            quiet = 0 if self._inside.busy(self._asleep) else quiet + 1
            if quiet == QUIET_TURNS and not self._inside.all_wait():
                quiet = 0
            turns += 1
            if quiet or turns < BUSY_TURNS:
                await asyncio.sleep(0)
            else:
                self._lose_patience(begun)
                await asyncio.sleep(PAUSE)
        self._tell(self._endless(), self._explains.endless)
        return bool(self._waits)

    def _lose_patience(self, begun: int) -> None:
        """Whoever waits is told if something runs and nothing has happened for long; or if there is no end to it."""
        self._tell(self._endless(), self._explains.endless)
        if self._inside.writes() - begun > WRITES:
            self._tell(self._waits, self._explains.timeless)
        now, seen = self._clock.monotonic(), (self._inside.writes(), self._running())
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        elif now - self._seen_at > self._patience():
            self._tell(self._waits, lambda wait: self._explains.not_quiet(wait, seen[1]))

    async def _nothing_left(self) -> None:
        """No timer is set. Something from outside may still come: it is waited for, but not for ever."""
        if self._tell_blocked(children=True):
            return
        waits, until = set(self._waits), self._clock.monotonic() + self._patience()
        while self._waits == waits and not self._inside.busy(self._asleep) and self._inside.next_at() is None:
            if self._clock.monotonic() > until:
                self._tell(self._waits, lambda wait: self._explains.nothing_left(wait, list(self._asleep)))
                return
            await asyncio.sleep(PAUSE)

    def _running(self) -> list[Attempt]:
        return [attempt for attempt in self._inside.attempts() if attempt not in self._asleep]

    def _endless(self) -> list[Wait]:
        limit = self._inside.writes() - WRITES
        return [wait for wait in self._waits if wait.until == math.inf and wait.since < limit]

    def _tell_blocked(self, *, children: bool) -> bool:
        """Whoever waits for what is blocked knows it. True: somebody does."""
        blocked = self._inside.blocked()
        if blocked == 0 or (blocked == self._blocked and not children):
            return False
        self._blocked = blocked
        found = {wait: error for wait in self._waits if (error := self._explains.blocked(wait, children=children))}
        self._tell(list(found), lambda wait: found[wait])
        return bool(found)

    def _tell(self, waits: Iterable[Wait], error: Callable[[Wait], BaseException | None]) -> None:
        for wait in list(waits):
            wait.tell(error(wait))
            self._waits.discard(wait)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
