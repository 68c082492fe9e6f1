"""`simulate`: a program goes through many seeds of bad weather; of one that breaks a promise the fewest faults are told
that do it.

One seed is `perdure.testing.trials`'; what may go wrong is `faults`'.
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
from perdure.testing.loops import apart
from perdure.testing.plays import Effects
from perdure.testing.trials import Setting, Trial, tried
from perdure.testing.world import World

TRIES: Final = 200
"""So many trials are made to leave out faults."""
LINES: Final = 120
"""Of what happened so many lines are shown: its end."""


class SimulationFailed(AssertionError):
    """A seed has broken a promise. The text says which, with the fewest faults that do it, and what each process did."""

    def __init__(self, text: str, trial: Trial) -> None:
        super().__init__(text)
        self.seed = trial.seed
        """`simulate(..., seeds=[seed])` does it again."""
        self.why = trial.broken or ""
        """Which promise, in words."""
        self.faults: Sequence[Fault] = trial.fired
        """The fewest that were found to do it."""
        self.timeline: Sequence[Event] = trial.events
        """All that happened."""


@dataclass(frozen=True)
class Simulated:
    """What was gone through, and every promise was kept."""

    seeds: int
    faults: int
    """How many there were in all."""
    seconds: float
    """Of virtual time."""


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
    limit: Duration = 600,
    may_block: bool = False,
    **options: Any,
) -> Simulated:
    """For every seed the flows and their cluster have kept their promises, whatever went wrong.

    The cluster is in this process and thread: so many engines on one store in memory, each on a loop of its own, in
    virtual time, and `program`, which plays the outside as a client. All chance (who goes on first, how long calls and
    steps take, what goes wrong) is the seed's. When the program has returned nothing goes wrong any more, all that it has
    started may go on for `limit`, and then the invariant is asked. Without being asked it is checked that nothing is
    blocked or stuck, no outcome is recorded twice, nobody writes for another, every acknowledgement was true, no
    at-most-once step begins twice, and the engine logs no fault of its own.

    Args:
        program: what the outside does, by the verbs of `World`, which are an engine's. What it raises fails the seed.
        flows: all flows that run, children included, as for `Engine`.
        seeds: which weathers; each says which faults there are and how many.
        invariant: asked at the end, with the same `World`: it raises, or returns False, if something is wrong. May be async.
        effects: what steps do to the world, as lists, dicts or sets: emptied before each seed, and `world.effects` then.
        faults: which kinds there may be: "crash" (a process is killed, and another starts later), "restart" (one is asked to
            end), "pause" (one is stopped and goes on), "slow" (a call arrives late, or its answer), "away" (the store cannot
            be reached), "unknown" (an answer is lost: the call was done, or not, or is done late), "wake-up" (nobody is told
            of a write), "message" (what the outside sends with a key is held up, or sent again), "clock" (wall clocks are
            moved).
        limit: virtual time that the program may take, and what goes on after it.
        may_block: whether an instance may be blocked.
        options: for the engines. `max_resident`, `max_running`, `unload_after` and `drain` are by chance unless given.

    Raises:
        SimulationFailed: with the seed, the promise, the fewest faults that break it, and what each process did.
        ValueError: an unknown kind of fault.
    """
    if unknown := sorted(set(faults) - set(KINDS)):
        raise ValueError(f"faults={unknown}: known are {', '.join(KINDS)}")
    setting = Setting(
        program=program, flows=tuple(registered(flows).values()), invariant=invariant, effects=Effects.of(effects),
        given=effects, replicas=replicas, kinds=frozenset(faults), limit=seconds(limit), may_block=may_block,
        options=options,
    )  # fmt: skip
    return await apart(lambda: _simulate(setting, seeds))


def _simulate(setting: Setting, seeds: Iterable[int]) -> Simulated:
    count, faults, passed = 0, 0, 0.0
    for seed in seeds:
        trial = tried(setting, seed)
        if trial.broken is not None:
            raise _failed(setting, trial) from trial.error
        count, faults, passed = count + 1, faults + len(trial.fired), passed + trial.seconds
    return Simulated(count, faults, passed)


def _failed(setting: Setting, first: Trial) -> SimulationFailed:
    """What is told of a trial, with as few faults as still break the same promise."""

    def breaks(keys: Sequence[str]) -> bool:
        return tried(setting, first.seed, only=frozenset(keys)).promise == first.promise

    keys = fewest([fault.key for fault in first.fired], breaks)
    last = tried(setting, first.seed, only=frozenset(keys), told=True)
    again = last if last.broken is not None else tried(setting, first.seed, told=True)
    if again.broken is None:
        return SimulationFailed(
            f"seed {first.seed}: {first.broken}\n\nIt was so the first time, and not when the same was done again: something "
            "outside the seed decides what the program, the flows or the steps do: real time, chance, the order of a "
            "set, or what an earlier seed has left in memory.",
            first,
        )
    return SimulationFailed("\n".join(_lines(again, len(first.fired))), again)


def fewest(items: Sequence[str], fails: Callable[[Sequence[str]], bool], tries: int = TRIES) -> Sequence[str]:
    """As few of the items as still fail, as far as so many tries find out: halves are left out, then smaller parts."""
    left, parts = list(dict.fromkeys(items)), 2
    if fails(()):
        return ()
    while len(left) > 1:
        size = -(-len(left) // parts)
        for start in range(0, len(left), size):
            if tries <= 0:
                return left
            tries -= 1
            without = left[:start] + left[start + size :]
            if without and fails(without):
                left, parts = without, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(2 * parts, len(left))
    return left


def _lines(trial: Trial, of: int) -> Iterator[str]:
    yield f"seed {trial.seed}: {trial.broken}"
    yield ""
    count = len(trial.fired)
    yield f"{count} of {of} faults are enough:" if count else "It needs no fault."
    for fault in trial.fired:
        yield f"  {fault}"
    yield ""
    yield "What happened" + (f", from the last {LINES} lines of it:" if len(trial.events) > LINES else ":")
    for event in trial.events[-LINES:]:
        yield f"  {event}"
    yield ""
    yield f"To see it again: simulate(..., seeds=[{trial.seed}])"
