"""`simulate`: a program and a cluster live through many seeds of bad weather; a seed that breaks a promise is told with
the fewest faults that do it.

One life of a cluster is `perdure.testing.lives`'; what may go wrong is `faults`'.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from perdure.api.flow import AnyFlow
from perdure.clock import Duration, seconds
from perdure.engine.serving import registered
from perdure.testing.chronicle import Event
from perdure.testing.faults import KINDS, Fault
from perdure.testing.lives import Life, Setting, live
from perdure.testing.loops import apart
from perdure.testing.plays import Effects
from perdure.testing.world import World

TRIES: Final = 200
"""So many lives are lived to leave out faults."""
LINES: Final = 120
"""Of a timeline so many lines are shown: its end."""


class SimulationFailed(AssertionError):
    """A seed broke a promise. The text says which, with the fewest faults that do it, and what each process did."""

    def __init__(self, text: str, life: Life) -> None:
        super().__init__(text)
        self.seed = life.seed
        """`simulate(..., seeds=[seed])` does it again."""
        self.why = life.broken or ""
        """Which promise, in words."""
        self.faults: Sequence[Fault] = life.fired
        """The fewest that were found to do it."""
        self.timeline: Sequence[Event] = life.events
        """All that happened."""


@dataclass(frozen=True)
class Simulated:
    """What was lived through."""

    seeds: int
    faults: int
    """How many happened."""
    seconds: float
    """Virtual ones."""


async def simulate(
    program: Callable[[World], Awaitable[object]],
    /,
    *,
    flows: Iterable[AnyFlow | ModuleType],
    seeds: Iterable[int] = range(1000),
    invariant: Callable[[World], object] | None = None,
    effects: Any = None,
    replicas: int = 3,
    faults: Collection[str] = KINDS,
    lease: Duration = 10,
    limit: Duration = 600,
) -> Simulated:
    """..."""
    setting = Setting(
        program=program, flows=tuple(registered(flows).values()), invariant=invariant, effects=Effects.of(effects),
        given=effects, replicas=replicas, kinds=frozenset(faults), lease=seconds(lease), limit=seconds(limit),
        may_block=False,
    )  # fmt: skip
    return await apart(lambda: _simulate(setting, seeds))


def _simulate(setting: Setting, seeds: Iterable[int]) -> Simulated:
    count, faults, passed = 0, 0, 0.0
    for seed in seeds:
        life = live(setting, seed)
        if life.broken is not None:
            raise failed(setting, life)
        count, faults, passed = count + 1, faults + len(life.fired), passed + life.seconds
    return Simulated(count, faults, passed)


def failed(setting: Setting, life: Life) -> SimulationFailed:
    """What is told of the life, with as few faults as still break something."""
    keys = fewest([fault.key for fault in life.fired], lambda left: _breaks(setting, life, left))
    shortest = live(setting, life.seed, only=frozenset(keys), told=True)
    if shortest.broken is None:  # it broke only the first time: something outside the seed decides
        shortest = life
    return SimulationFailed(_report(life, shortest), shortest)


def _breaks(setting: Setting, life: Life, keys: Sequence[str]) -> bool:
    """Whether these faults alone break the same promise."""
    return live(setting, life.seed, only=frozenset(keys)).promise == life.promise


def fewest(items: Sequence[str], fails: Callable[[Sequence[str]], bool], tries: int = TRIES) -> Sequence[str]:
    """As few of the items as still fail, as far as so many tries find out: halves are left out, then smaller parts."""
    left, parts = list(dict.fromkeys(items)), 2
    if tries and fails(()):
        return ()
    while len(left) > 1 and tries > 0:
        size = -(-len(left) // parts)
        for start in range(0, len(left), size):
            without = left[:start] + left[start + size :]
            tries -= 1
            if without and fails(without):
                left, parts = without, max(parts - 1, 2)
                break
            if tries <= 0:
                return left
        else:
            if size == 1:
                break
            parts = min(2 * parts, len(left))
    return left


def _report(first: Life, shortest: Life) -> str:
    return "\n".join(_lines(first, shortest))


def _lines(first: Life, shortest: Life) -> Iterator[str]:
    yield f"seed {first.seed}: {shortest.broken}"
    yield ""
    count = len(shortest.fired)
    yield f"{count} of {len(first.fired)} faults are enough:" if count else "No fault is needed for it."
    for fault in shortest.fired:
        yield f"  {fault}"
    yield ""
    left_out = len(shortest.events) - LINES
    yield "What happened" + (f" (its last {LINES} lines; all are in .timeline):" if left_out > 0 else ":")
    for event in shortest.events[-LINES:]:
        yield f"  {event}"
    yield ""
    yield f"To see it again: simulate(..., seeds=[{first.seed}])"
