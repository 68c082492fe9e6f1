"""What goes wrong in a simulated cluster, and when: every fault by chance from the seed, each with a key of its own.

It knows processes, calls of the store and time. What a fault has broken is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol, TypeVar, cast

import msgspec

from perdure.errors import CommitUnknown, PerdureError, StoreUnavailable
from perdure.testing.cluster import Cluster, Process

T = TypeVar("T")

KINDS: Final = ("crash", "restart", "pause", "slow", "away", "unknown", "wake-up", "message", "clock")
"""See `simulate`."""
_BY_CALL: Final = ("crash", "pause", "slow", "away", "unknown")
_BY_TIME: Final = ("crash", "restart", "pause", "away", "clock")
_WRITES: Final = frozenset(
    {"commit", "edit", "claim", "claim_blocked", "wakeups", "raise_epoch", "join", "leave", "reap", "retire", "forget"}
)
_RATES: Final = {
    "commit": 0.05, "raise_epoch": 0.1, "join": 0.1, "leave": 0.1, "edit": 0.1, "claim": 0.01, "wakeups": 0.01, "load": 0.02,
    "inbox": 0.02, "find": 0.03, "reap": 0.002, "renew": 0.02, "wake-up": 0.1, "message": 0.3, "results": 0.003,
}  # fmt: skip
"""How often a call meets a fault, where the weather is middling."""
_OTHER_RATE: Final = 0.01
_UNEVEN: Final = (0.2, 1.0, 1.0, 5.0)
"""By so much calls of one method are slower than others in a seed, or meet more faults."""
_AT_ONCE: Final = {"reap": 0.8, "wakeups": 0.5, "claim": 0.5, "claim_blocked": 0.5, "results": 0.7}
"""This part of the calls takes no time."""
_OTHERS_AT_ONCE: Final = 0.3
PLAN_SECONDS: Final = 8.0
"""Faults that no call brings about come so often, where the weather is middling."""
WRONG_CLOCK: Final = 0.1
"""So many processes start with a wall clock that is wrong."""
OFF: Final = 0.35
"""Each kind of fault is left out of so many of the seeds: what is rare beside others is common without them."""


class Fault(msgspec.Struct, frozen=True):
    """Something that went wrong: by which key it can be left out, when, whose trouble it was, and what."""

    key: str
    at: float
    who: str
    text: str

    def __str__(self) -> str:
        return f"{self.at:9.3f}  {self.who}: {self.text}"


class Stage(Protocol):
    """What a storm can do to processes."""

    cluster: Cluster
    slots: tuple[str, ...]
    """The places at which a replica runs."""

    def at(self, slot: str) -> Process | None:
        """The process that runs there now."""
        ...

    def crash(self, process: Process, *, known: bool, back_in: float) -> None:
        """The process is killed, and another takes its place so many seconds later."""
        ...

    def restart(self, process: Process, *, back_in: float) -> None:
        """The process is asked to end; when it has, another takes its place so many seconds later."""
        ...

    def arrived(self, process: Process, method: str, args: Any, answer: Any, error: BaseException | None) -> None:
        """A call has been at the store, and this came of it."""
        ...


class _Line:
    """One process's calls of one method: their own streams of chance, so that others do not disturb them."""

    __slots__ = ("at_once", "chance", "faults", "number", "rate", "slowness")

    def __init__(self, seed: int, process: str, method: str, intensity: float, slowness: float) -> None:
        weather = random.Random(f"{seed}/{method}")
        self.chance = random.Random(f"{seed}/{process}/{method}")
        self.faults = random.Random(f"{seed}/{process}/{method}/faults")
        self.number = 0
        self.rate = intensity * weather.choice(_UNEVEN) * _RATES.get(method, _OTHER_RATE)
        self.at_once = _AT_ONCE.get(method, _OTHERS_AT_ONCE)
        self.slowness = slowness * weather.choice(_UNEVEN)

    def delays(self) -> tuple[float, float]:
        """How long the next call is on its way to the store, and its answer back."""
        chance = self.chance.random
        if chance() < self.at_once:
            return 0.0, 0.0
        longest = self.slowness * (20.0 if chance() < 0.05 else 1.0)
        return 0.0002 + longest * chance(), 0.0002 + longest * chance()


class Storm:
    """The weather of a simulated cluster, as a seed has it.

    Args:
        kinds: which kinds of faults there may be.
        only: the keys of the faults that happen; None: all that chance brings.
    """

    def __init__(
        self, stage: Stage, seed: int, kinds: frozenset[str], client: str, only: frozenset[str] | None = None
    ) -> None:
        self._stage = stage
        self._seed = seed
        self._client = client
        self._only = only
        chance = random.Random(f"{seed}/weather")
        left = [kind for kind in KINDS if kind in kinds]
        self._kinds = frozenset([kind for kind in left if chance.random() >= OFF] or left)
        self._intensity = 10 ** chance.uniform(-0.7, 0.5)
        self._slowness = 0.005 * 10 ** (1.5 * chance.random() ** 2)
        """How long a call is on its way, mostly at most."""
        self._lines: dict[tuple[str, str], _Line] = {}
        self._away: dict[str, float] = {}
        """Until when a process, or everybody (""), cannot reach the store."""
        self._telling: set[str] = set()
        """To whom a notification is on its way."""
        self.fired: list[Fault] = []
        self.blowing = True
        """Whether there are faults still."""

    def rise(self) -> None:
        """From now on things go wrong by themselves."""
        self._plan(0)

    def started(self, process: Process) -> None:
        """The process has begun: its wall clock may be wrong."""
        key = f"{process.name} clock"
        chance = random.Random(f"{self._seed}/{key}")
        if chance.random() < WRONG_CLOCK and "clock" in self._kinds and self._allowed(key):
            self._step_clock(key, chance, process, ours=True)

    def calm_down(self) -> None:
        """Nothing goes wrong any more, and what is stopped goes on."""
        self.blowing = False
        self._away.clear()
        for process in self._stage.cluster.processes:
            process.asleep_until = 0.0

    # ------------------------------------------------------------ calls

    async def call(self, process: Process, method: str, args: Any, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """See `Weather`."""
        line = self._line(process, method)
        line.number += 1
        there, back = line.delays()
        fault = ""
        if line.faults.random() < line.rate:
            fault = f"{process.name} {method} {line.number}"
        kind, chance = self._which(process, method, fault) if fault else ("", line.chance)
        call = _Call(self._stage, process, method, args, work)
        if self._away and self._cut_off(process, method):
            return await call.exchange(there, back, refused="the store cannot be reached")
        if not kind:
            if there == 0.0:
                return call.result()
            return await call.exchange(there, back)
        return await self._hit(kind, fault, chance, call, (there, back))

    async def _hit(self, kind: str, key: str, chance: random.Random, call: _Call, delays: tuple[float, float]) -> Any:
        """The answer to a call that this befalls."""
        process, (there, back) = call.process, delays
        what = f"its call of {key.removeprefix(process.name + ' ')}"
        if kind == "slow":
            seconds = _long(chance, 0.1, 30.0)
            if chance.random() < 0.5:
                self._fire(key, process.name, f"{what} arrives after {seconds:.3f} s")
                return await call.exchange(seconds, back)
            self._fire(key, process.name, f"{what} is answered after {seconds:.3f} s")
            return await call.exchange(there, seconds)
        if kind == "away":
            self._fire(key, process.name, f"{what} fails: the store is away")
            return await call.exchange(there, back, refused="the store is away")
        if kind == "pause":
            seconds = _long(chance, 0.5, 40.0)
            self._fire(key, process.name, f"stopped for {seconds:.3f} s, with {what} under way")
            self._stage.cluster.later(0.0, partial(self._stop, process, seconds))
            return await call.exchange(there, back)
        arrives, how = self._arrival(chance, there)
        if kind == "unknown":
            self._fire(key, process.name, f"the answer to {what} is lost, which {how}")
            return await call.exchange(arrives, there + back, lost=True)
        self._kill(key, chance, process, f"with {what} under way, which {how}")
        call.send(arrives)
        return await process.loop.create_future()

    def _arrival(self, chance: random.Random, there: float) -> tuple[float | None, str]:
        draw = chance.random()
        if draw < 0.35:
            return there, "is done"
        if draw < 0.5:
            return None, "is not done"
        seconds = _long(chance, 0.01, 15.0)
        return seconds, f"arrives after {seconds:.3f} s"

    def renew(self, process: Process, work: Callable[[], float]) -> float:
        """See `Weather`."""
        line = self._line(process, "renew")
        line.number += 1
        key = f"{process.name} renew {line.number}"
        hit = line.faults.random() < line.rate and "away" in self._kinds
        if hit and self._allowed(key):
            self._fire(key, process.name, "its lease cannot be renewed this time: the store is away")
            raise StoreUnavailable("the store is away")
        if self._away and self._cut_off(process, "renew"):
            raise StoreUnavailable("the store cannot be reached")
        return work()

    def notified(self, process: Process, notify: Callable[[], None]) -> None:
        """See `Weather`."""
        if process.name in self._telling:
            return  # what is on its way tells of this, too
        line = self._line(process, "wake-up")
        line.number += 1
        hit = line.faults.random() < line.rate and "wake-up" in self._kinds
        key = f"{process.name} wake-up {line.number}"
        if hit and self._allowed(key):
            self._fire(key, process.name, "it is not told that somebody else has written")
            return
        self._telling.add(process.name)
        self._stage.cluster.later(0.02 * line.chance.random(), partial(self._tell, process, notify))

    def _tell(self, process: Process, notify: Callable[[], None]) -> None:
        self._telling.discard(process.name)
        if process.alive:
            notify()

    def message(self, number: int) -> tuple[float, float | None]:
        """How long the outside keeps its message of this number before it sends it, and after how many seconds it sends
        it again, if it does.
        """
        key = f"message {number}"
        chance = random.Random(f"{self._seed}/{key}")
        rate = _RATES["message"] * min(1.0, self._intensity)
        if chance.random() >= rate or "message" not in self._kinds or not self._allowed(key):
            return 0.0, None
        late = _long(chance, 0.01, 5.0) if chance.random() < 0.5 else 0.0
        again = _long(chance, 0.01, 30.0) if not late or chance.random() < 0.5 else None
        words = [f"held up for {late:.3f} s"] if late else []
        words += [f"sent again {again:.3f} s later"] if again is not None else []
        self._fire(key, self._client, f"its message {number} is {', and '.join(words)}")
        return late, again

    # ------------------------------------------------------------ what comes by itself

    def _plan(self, number: int) -> None:
        chance = random.Random(f"{self._seed}/plan {number}")
        wait = chance.expovariate(self._intensity / PLAN_SECONDS)
        self._stage.cluster.later(wait, partial(self._planned, number, chance))

    def _planned(self, number: int, chance: random.Random) -> None:
        if not self.blowing:
            return
        self._plan(number + 1)
        kinds = [kind for kind in _BY_TIME if kind in self._kinds]
        key = f"plan {number}"
        if not kinds or not self._allowed(key):
            return
        kind = chance.choice(kinds)
        slot = chance.choice(self._stage.slots)
        process = self._stage.at(slot)
        if kind == "away":
            self._cut(key, chance, slot)
        elif kind == "clock":
            self._step_clock(key, chance, process)
        elif kind == "crash" and chance.random() < 0.2:
            for each in filter(None, map(self._stage.at, self._stage.slots)):
                self._kill(key, chance, each, "with all others")
        elif process is None:
            return
        elif kind == "crash":
            self._kill(key, chance, process, "")
        elif kind == "restart":
            back_in = _long(chance, 0.05, 5.0)
            self._fire(key, process.name, f"asked to end; another starts {back_in:.3f} s after that")
            self._stage.restart(process, back_in=back_in)
        else:
            seconds = _long(chance, 0.5, 40.0)
            self._fire(key, process.name, f"stopped for {seconds:.3f} s")
            self._stop(process, seconds)

    def _cut(self, key: str, chance: random.Random, slot: str) -> None:
        seconds = _long(chance, 0.1, 25.0)
        until = self._stage.cluster.time.now + seconds
        if chance.random() < 0.5:
            self._fire(key, "the store", f"away for {seconds:.3f} s")
            self._away[""] = max(until, self._away.get("", 0.0))
        elif (process := self._stage.at(slot)) is not None:
            self._fire(key, process.name, f"it cannot reach the store for {seconds:.3f} s")
            self._away[process.name] = max(until, self._away.get(process.name, 0.0))

    def _step_clock(self, key: str, chance: random.Random, process: Process | None, *, ours: bool = False) -> None:
        if process is None or (not ours and chance.random() < 0.3):
            step = chance.choice((-1, 1)) * _long(chance, 0.1, 60.0)
            self._fire(key, "the store", f"its wall clock is moved by {step:+.3f} s")
            self._stage.cluster.skew += step
        else:
            step = chance.choice((-1, 1)) * _long(chance, 1.0, 7200.0)
            self._fire(key, process.name, f"its wall clock is moved by {step:+.3f} s")
            process.skew += step

    def _kill(self, key: str, chance: random.Random, process: Process, how: str) -> None:
        known, back_in = chance.random() < 0.5, _long(chance, 0.05, 20.0)
        seen = "at once" if known else "by its lease"
        words = f"killed{f', {how}' if how else ''}; others learn of it {seen}; another starts after {back_in:.3f} s"
        self._fire(key, process.name, words)
        self._stage.cluster.later(0.0, partial(self._stage.crash, process, known=known, back_in=back_in))

    def _stop(self, process: Process, seconds: float) -> None:
        if self.blowing:
            process.asleep_until = max(process.asleep_until, self._stage.cluster.time.now + seconds)

    # ------------------------------------------------------------ inside

    def _line(self, process: Process, method: str) -> _Line:
        line = self._lines.get((process.name, method))
        if line is None:
            line = self._lines[process.name, method] = _Line(
                self._seed, process.name, method, self._intensity, self._slowness
            )
        return line

    def _allowed(self, key: str) -> bool:
        return self.blowing and (self._only is None or key in self._only)

    def _which(self, process: Process, method: str, key: str) -> tuple[str, random.Random]:
        """What befalls the call with that key, if anything may, and the chance that says the rest."""
        chance = random.Random(f"{self._seed}/{key}")
        if process.name == self._client:
            kinds = ("slow", "away", "unknown") if method == "commit" else ("slow",)
        else:
            kinds = _BY_CALL if method in _WRITES else ("crash", "pause", "slow", "away")
        left = [kind for kind in kinds if kind in self._kinds]
        kind = chance.choice(left) if left else ""
        return (kind if kind and self._allowed(key) else ""), chance

    def _cut_off(self, process: Process, method: str) -> bool:
        """Whether the process cannot reach the store now. A client asks for what it reads until it gets it."""
        now = self._stage.cluster.time.now
        if process.name == self._client and method != "commit":
            return False
        return now < max(self._away.get("", 0.0), self._away.get(process.name, 0.0))

    def _fire(self, key: str, who: str, text: str) -> None:
        self.fired.append(Fault(key, self._stage.cluster.time.now, who, text))


class _Call:
    """One call of the store by a process."""

    __slots__ = ("_args", "_stage", "_work", "method", "process")

    def __init__(
        self, stage: Stage, process: Process, method: str, args: Any, work: Callable[[], Coroutine[Any, Any, Any]]
    ) -> None:
        self._stage = stage
        self.method = method
        self._args = args
        self._work = work
        self.process = process

    def result(self) -> Any:
        """What the store answers now."""
        answer, error = self._arrive()
        if error is not None:
            raise error
        return answer

    def exchange(
        self, there: float | None, back: float, *, refused: str = "", lost: bool = False
    ) -> asyncio.Future[Any]:
        """What the store answers, when that is back. `refused`: it is not reached. `lost`: the process is told after
        `back` seconds that nobody knows; the call arrives after `there` seconds all the same, or never (None).
        """
        future: asyncio.Future[Any] = self.process.loop.create_future()
        later, settle = self._stage.cluster.later, self.process.settle
        if lost:
            self.send(there)
            later(back, partial(settle, future, None, CommitUnknown("the answer was lost")))
        elif refused:
            later((there or 0.0) + back, partial(settle, future, None, StoreUnavailable(refused)))
        else:

            def arrive() -> None:
                later(back, partial(settle, future, *self._arrive()))

            later(there or 0.0, arrive)
        return future

    def send(self, there: float | None) -> None:
        """The call arrives after so many seconds (None: never), and nobody waits for the answer."""
        if there is not None:
            self._stage.cluster.later(there, lambda: self._arrive() and None)

    def _arrive(self) -> tuple[Any, BaseException | None]:
        answer, error = None, None
        try:
            answer = _at_once(self._work())
        except PerdureError as raised:
            error = raised
        self._stage.arrived(self.process, self.method, self._args, answer, error)
        return answer, error


def _long(chance: random.Random, least: float, most: float) -> float:
    """So many seconds, short ones as likely as long ones."""
    return least * (most / least) ** chance.random()


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives that waits for nothing, as those of the store in memory do."""
    try:
        work.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    work.close()
    raise RuntimeError(f"{work!r} waits for something")
