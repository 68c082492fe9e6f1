"""The plan of faults: what is done to replicas and database, when, and for how long. A function of its seed alone."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MODES: Final = ("everything", "processes", "database", "none")
"""What faults a round may have."""
PROCESSES: Final = ("kill", "kill", "stop", "drain")
DATABASE: Final = ("immediate", "fast", "cut")


@dataclass(frozen=True)
class Fault:
    """At a time of the round, in seconds: one of `PROCESSES` to a replica, or one of `DATABASE`."""

    at: float
    kind: str
    replica: int
    """Which one; for a `cut`, which third of the connections, 3: all."""
    lasts: float
    """Seconds until it is started again, or goes on."""

    def __str__(self) -> str:
        where = "" if self.kind in DATABASE else f" of replica {self.replica}"
        return f"{self.at:.2f} s: {self.kind}{where}, {self.lasts:.2f} s"


def plan(seed: object, mode: str, *, replicas: int, lease: float, server: bool) -> Iterator[Fault]:
    """The faults of a round in the order of their times, without end. `server`: it is ours to stop."""
    streams: list[Iterator[Fault]] = []
    if mode in ("everything", "processes"):
        streams.append(_processes(random.Random(f"processes {seed}"), replicas, lease))
    if mode in ("everything", "database") and server:
        streams.append(_database(random.Random(f"database {seed}"), lease))
    return heapq.merge(*streams, key=lambda fault: fault.at)


def _processes(chance: random.Random, replicas: int, lease: float) -> Iterator[Fault]:
    at = 1.0
    while True:
        at += chance.uniform(0.3, 1.9)
        kind = chance.choice(PROCESSES)
        lasts = chance.uniform(0.0, 1.5)
        if kind == "stop":
            lasts = chance.choice((chance.uniform(0.2, 0.6), chance.uniform(1.2, 2.0))) * lease
        yield Fault(round(at, 3), kind, chance.randrange(replicas), round(lasts, 3))


def _database(chance: random.Random, lease: float) -> Iterator[Fault]:
    at = 1.0
    while True:
        at += chance.uniform(2.0, 7.0)
        kind = chance.choice(DATABASE)
        # Now and then it is away for longer than a lease lasts.
        lasts = 0.0 if kind == "cut" else chance.uniform(0.0, 1.0) if chance.random() < 0.85 else 1.3 * lease
        yield Fault(round(at, 3), kind, chance.randrange(4), round(lasts, 3))
