"""A machine whose time stands still until somebody moves it, and whose chance comes from a seed.

It knows clocks, threads and ids only; when time is moved is decided elsewhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from perdure.clock import Clock
from perdure.system import System
from perdure.threads import Repeating

START: Final = 1_767_225_600.0
"""Thursday, 1 January 2026, 00:00 UTC: the same in every test, so that none depends on the day on which it runs."""
_BOOTED: Final = START - 1_000_000.0
"""When the machine was switched on. A whole number, so that what is wall time is exactly the same time since boot."""


class VirtualClock(Clock):
    """Wall and boot time stand still until `move_to` moves both; `monotonic` is real time."""

    def __init__(self, start: float = START) -> None:
        super().__init__()
        self._now = start
        self._watchers: list[Callable[[], None]] = []

    def wall(self) -> float:
        """Epoch seconds."""
        return self._now

    def boot(self) -> float:
        """Seconds since the machine was switched on."""
        return self._now - _BOOTED

    def on_move(self, moved: Callable[[], None]) -> Callable[[], None]:
        """See `Clock`."""
        self._watchers.append(moved)
        return lambda: self._watchers.remove(moved)

    def move_to(self, when: float) -> None:
        """The clock shows `when`, in epoch seconds, and everybody who waits for time was told to look again.

        Raises:
            ValueError: that is in the past; time does not go back.
        """
        if when < self._now:
            raise ValueError(f"the clock shows {self._now}, and cannot be moved back to {when}")
        self._now = when
        for moved in tuple(self._watchers):
            moved()


class VirtualSystem(System):
    """A virtual clock, chance and ids from a seed, real threads for sync steps, and no other thread."""

    queues = False

    def __init__(self, clock: VirtualClock | None = None, *, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.virtual = clock or VirtualClock()
        self._replicas = 0
        super().__init__(self.virtual)
        self.process = f"process-{seed}"

    def random_bytes(self, n: int) -> bytes:
        """`n` bytes, the next ones of this seed."""
        return self._random.randbytes(n)

    def repeat(self, work: Callable[[], bool], pause: float, name: str) -> Repeating:
        """`work` is never called: nobody needs to renew a lease that outlasts the test."""
        return _Never()

    def new_replica_id(self) -> str:
        """A name for a replica that was never used before in this system."""
        self._replicas += 1
        return f"replica-{self._replicas}"


class _Never(Repeating):
    """What is repeated every so often, as far as it can be told: it has ended."""

    def __init__(self) -> None:
        pass  # no thread

    @property
    def running(self) -> bool:
        return False

    def hurry(self) -> None:
        pass

    def stop(self) -> None:
        pass
