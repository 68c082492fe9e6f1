"""The one seam to the machine: clocks, threads, random bytes, ids. Simulation replaces it whole, by `store.system`."""

from __future__ import annotations

import os
import secrets
import struct
import threading
from collections.abc import Callable

from perdure.clock import Clock
from perdure.threads import Repeating, Threads


class System:
    """What an engine takes from the machine that is not the database. One per store; safe to use from any thread."""

    reads_sources: bool = True
    """Whether a flow's source is looked through when it is first replayed: that happens once in a process, and what is
    simulated must go alike each time.
    """

    queues: bool = True
    """Whether queues count. If not, all of them are one, which every engine serves: in tests there are few engines."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.process = f"{os.getpid()}-{self.random_bytes(6).hex()}"
        """A name for this process (as far as it shares this object) that no other ever had."""
        self._lock = threading.Lock()
        self._last = 0
        self._tail = self.random_bytes(8)

    def random_bytes(self, n: int) -> bytes:
        """`n` unpredictable bytes."""
        return secrets.token_bytes(n)

    def random(self) -> float:
        """A number in [0, 1), for jitter."""
        return int.from_bytes(self.random_bytes(7), "big") / (1 << 56)

    def new_uid(self) -> bytes:
        """16 bytes that no other call gives; later calls sort later, so that new rows go to the end of an index.

        8 bytes of time in units of 2⁻²⁰ s, counted on when calls are closer than that, then 8 bytes drawn once per
        system.
        """
        with self._lock:
            self._last = max(self._last + 1, int(self.clock.wall() * 1048576))
            return struct.pack(">Q", self._last) + self._tail

    def threads(self, limit: int) -> Threads:
        """Up to `limit` threads for sync steps."""
        return Threads(limit)

    def repeat(self, work: Callable[[], bool], pause: float, name: str) -> Repeating:
        """`work` is called every `pause` seconds, beside the loop, until it gives False or the result is stopped."""
        return Repeating(work, pause, name)

    def new_replica_id(self) -> str:
        """A name for a replica that was never used before: process id and random part."""
        return f"{os.getpid()}-{self.random_bytes(6).hex()}"
