"""One trial of a program: replicas and a client on one store go through one seed's weather, until all is settled.

It says which promise was broken, if one was. Which seeds are tried, and what is told of them, is `simulating`'s.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn, cast

from perdure.api.current import Current
from perdure.api.flow import AnyFlow
from perdure.clock import seconds
from perdure.engine.engine import MAX_RESIDENT, Engine
from perdure.engine.payloads import Payloads
from perdure.engine.steps import Attempt
from perdure.errors import FlowWarning, PerdureError
from perdure.model.records import Instance, Kind, State
from perdure.testing.chronicle import Chronicle, Event
from perdure.testing.cluster import Cluster, Process
from perdure.testing.faults import Fault, Storm
from perdure.testing.plays import Effects
from perdure.testing.timeline import timeline
from perdure.testing.watching import WatchedStore
from perdure.testing.world import World

CLIENT: Final = "client"
CALM: Final = 4.0
"""Looking for what may have been overlooked is so many times rarer than in real life: see `Clock.calm`."""
CALMER_SECONDS: Final = 15.0
"""In good weather it is rarer still: so much by the number of times that nothing was written for so long."""
AGAIN_SECONDS: Final = 1.0
"""A process that cannot start is started again after so long."""
QUIET_SECONDS: Final = 60.0
"""When nothing was written for so long after the weather calmed down, nothing more is expected."""
LAST_SECONDS: Final = 60.0
"""So long a fresh process has to go on with what nobody goes on with."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all trials have in common."""

    program: Callable[[World], Awaitable[object]]
    flows: tuple[AnyFlow, ...]
    invariant: Callable[[World], object] | None
    effects: Effects
    given: Any
    """The effects, as the program sees them."""
    replicas: int
    kinds: frozenset[str]
    limit: float
    """So many virtual seconds the program may take, and after it what it has started."""
    may_block: bool
    options: Mapping[str, Any]
    """Of the engines."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of it."""

    seed: int
    broken: str | None
    """Which promise was broken, in words; None: none was."""
    promise: str
    """The same in one word."""
    fired: tuple[Fault, ...]
    events: tuple[Event, ...]
    """If they were wanted."""
    seconds: float
    """Virtual ones."""
    error: BaseException | None = None
    """What the program or the invariant raised, if it was that."""


class _Broken(Exception):
    """A promise is broken; nobody but `tried` sees it."""

    def __init__(self, promise: str, text: str) -> None:
        super().__init__(text)
        self.promise = promise


def tried(setting: Setting, seed: int, *, only: frozenset[str] | None = None, told: bool = False) -> Trial:
    """The seed was gone through. Not in a running loop.

    Args:
        only: the keys of the faults that happen; None: all that the seed brings.
        told: every event is kept.
    """
    return _Trying(setting, seed, only, told).run()


class _Trying:
    """One trial; it is the stage of its storm."""

    def __init__(self, setting: Setting, seed: int, only: frozenset[str] | None, told: bool) -> None:
        self._setting = setting
        self._seed = seed
        self.slots = tuple(_letters(setting.replicas))
        self._here: dict[str, Process] = {}
        self._started: Counter[str] = Counter()
        self._ending: dict[Process, tuple[asyncio.Event, list[float]]] = {}
        """How each replica is asked to end, and after how many seconds another follows."""
        self._storm = Storm(self, seed, setting.kinds, CLIENT, only)
        self.cluster = Cluster(
            self._storm, seed, CALM, lambda system: WatchedStore(system, may_block=setting.may_block)
        )
        self._store = cast("WatchedStore", self.cluster.store)
        self._chronicle = Chronicle(lambda: self.cluster.time.now, self._store.named, wanted=told)
        chance = random.Random(f"{seed}/settings")
        self._chance = chance
        self._options: dict[str, Any] = {
            "max_resident": chance.choice((MAX_RESIDENT, MAX_RESIDENT, 0, 1, 3)),
            "unload_after": chance.choice((None, None, 0.5, 5.0)),
            "max_running": chance.choice((MAX_RESIDENT, MAX_RESIDENT, 2, 5)),
            "drain": chance.choice((0.0, 1.0, 5.0)),
            "stall_limit": 5.0,
            "version": "simulated",
            **setting.options,
        }
        self._calmest = 1.6 * seconds(self._options["stall_limit"])
        """Half a second so many times is how often an engine tells its lease that the loop turns."""
        self._attempts: Counter[tuple[str, int]] = Counter()
        self._commits = 0
        self._written_at = 0.0
        self._complaint: str | None = None
        self._world: World | None = None
        self._stage = "the program"
        self._program_over = False
        self._settled = asyncio.Event()
        self._error: BaseException | None = None
        self._payloads = Payloads(None, 1 << 30)

    def run(self) -> Trial:
        broken, promise = None, ""
        self._setting.effects.reset()
        with _listening(self._complain):
            try:
                self._go_through()
            except _Broken as error:
                broken, promise = str(error), error.promise
            finally:
                fired, events = tuple(self._storm.fired), list(self._chronicle.events)
                self.cluster.end()
        events += [Event(f.at, f.who, f"-- {f.text}") for f in fired if self._chronicle.wanted]
        events.sort(key=lambda event: event.at)
        return Trial(
            seed=self._seed, broken=broken, promise=promise, fired=fired, events=tuple(events),
            seconds=self.cluster.time.now, error=self._error,
        )  # fmt: skip

    # ------------------------------------------------------------ the course of it

    def _go_through(self) -> None:
        for slot in self.slots:
            self.cluster.later(self._chance.choice((0.0, 0.5 * self._chance.random())), partial(self._start, slot))
        client = self.cluster.start(self._outside, CLIENT)
        client.loop.set_exception_handler(partial(self._unhandled, CLIENT))
        self._storm.rise()
        self.cluster.later(10 ** self._chance.uniform(0.7, 2.0), self._storm.calm_down)
        if not self._until(lambda: self._program_over, self._setting.limit):
            self._stuck(f"the program has not ended after {self._setting.limit:g} s")
        self._storm.calm_down()
        self._settle()
        self._stage = "the invariant"
        if self._world is not None and (lie := self._world.deceived()) is not None:
            self._break("acknowledged", lie)
        client.loop.call_soon_threadsafe(self._settled.set)
        if not self._until(client.outcome.done, self._setting.limit):
            self._break("invariant", f"the invariant has not ended after {self._setting.limit:g} s")

    async def _outside(self, process: Process) -> None:
        setting, chance = self._setting, random.Random(f"{self._seed}/outside")
        options = {name: setting.options[name] for name in ("codec", "payload_limit") if name in setting.options}
        world = World(process.store, self._store, self._storm, chance, setting.given, flows=setting.flows, **options)
        self._world = process.engine = world
        async with world:
            await setting.program(world)
            self._program_over = True
            await self._settled.wait()
            if setting.invariant is not None:
                holds = setting.invariant(world)
                if inspect.isawaitable(holds):
                    holds = await holds
                if holds is False:
                    raise AssertionError("it gave False")

    def _settle(self) -> None:
        """All instances have ended, or wait for what will not come, or for long."""
        cluster = self.cluster
        end = cluster.time.now + self._setting.limit
        commits, quiet_at = self._commits, cluster.time.now + QUIET_SECONDS
        while not self._all_ended():
            if self._commits > commits:
                commits, quiet_at = self._commits, cluster.time.now + QUIET_SECONDS
            if cluster.time.now > quiet_at and not self._is_due(end):
                break
            self._turn()
        else:
            return
        self._nobody_is_stuck()

    def _all_ended(self) -> bool:
        world = self._world
        return not (world is not None and world.sending) and all(row.state.ended for row in self._store.rows())

    def _is_due(self, end: float) -> bool:
        """Whether something will go on by itself before the end."""
        now = self._store.system.clock.wall()
        last = now + end - self.cluster.time.now
        return any(row.due_at is not None and now < row.due_at < last for row in self._store.rows())

    def _nobody_is_stuck(self) -> None:
        """What has not ended waits for a reason: started anew, it waits still."""
        left = [row for row in self._store.rows() if not row.state.ended]
        for row in left:
            if row.state is State.RUNNING:
                self._stuck(f"{row.flow} {row.id!r} does not go on", row)
        before = {row.uid: self._standing(row) for row in left}
        for slot in self.slots:
            if (process := self.at(slot)) is not None:
                self.cluster.kill(process)
        self._start("Z")
        self._until(lambda: False, LAST_SECONDS)
        for row in left:
            now = self._store.row(row.uid)
            if now is not None and self._standing(now) != before[row.uid]:
                self._stuck(f"{row.flow} {row.id!r} went on only when all processes had been started anew", row)

    def _standing(self, row: Instance) -> Any:
        entries = [e for e in self._store.loaded(row.uid).entries if e.kind != Kind.TIMER]
        return row.run, row.state.ended, len(entries)

    def _until(self, over: Callable[[], bool], within: float) -> bool:
        """Turns are taken until it is over; False: it was not within so many virtual seconds."""
        end = self.cluster.time.now + within
        while not over():
            if self.cluster.time.now > end:
                return False
            self._turn()
        return True

    def _turn(self) -> None:
        cluster = self.cluster
        if not self._storm.blowing:
            cluster.calm = max(CALM, min(self._calmest, (cluster.time.now - self._written_at) / CALMER_SECONDS))
        turned = cluster.turn()
        if turned is None:
            self._stuck("nothing will ever happen again")
        if self._store.broken is not None or self._complaint is not None:
            self._break("recorded" if self._store.broken else "complaint", self._store.broken or self._complaint or "")
        if isinstance(turned, Process) and turned.outcome.done():
            self._ended(turned)

    def _ended(self, process: Process) -> None:
        """The process's program is over, as it was asked to be; or it should not be."""
        error = None if process.outcome.cancelled() else process.outcome.exception()
        if process.name == CLIENT:
            if error is not None:
                self._error = error
                self._break(self._stage, f"{self._stage} raised {_words(error)}")
            if not self._program_over:
                self._break("the program", "the program was cancelled")
            self.cluster.kill(process)
            return
        if error is not None:
            self._error = error
            self._break("engine", f"{process.name} ended with {_words(error)}")
        self._chronicle.note(process.name, "has ended")
        self._gone(process, max(self._ending[process][1], default=0.0))
        self.cluster.kill(process)

    # ------------------------------------------------------------ the stage

    def at(self, slot: str) -> Process | None:
        """See `Stage`."""
        process = self._here.get(slot)
        return process if process is not None and process.alive else None

    def crash(self, process: Process, *, known: bool, back_in: float) -> None:
        """See `Stage`."""
        if process.alive:
            self._chronicle.note(process.name, "is dead")
            self.cluster.kill(process, known=known)
            self._gone(process, back_in)

    def restart(self, process: Process, *, back_in: float) -> None:
        """See `Stage`."""
        asked, pauses = self._ending[process]
        pauses.append(back_in)
        process.loop.call_soon_threadsafe(asked.set)

    def arrived(self, process: Process, method: str, args: Any, answer: Any, error: BaseException | None) -> None:
        """See `Stage`."""
        if method == "commit":
            self._commits += 1
            self._written_at = self.cluster.time.now
        self._chronicle.arrived(process.name, method, args, answer, error)

    def _gone(self, process: Process, back_in: float) -> None:
        self._ending.pop(process, None)
        self.cluster.later(back_in, partial(self._start, process.name.rstrip("0123456789")))

    def _start(self, slot: str) -> None:
        self._started[slot] += 1
        name = f"{slot}{self._started[slot]}"
        self._chronicle.note(name, "starts")
        process = self._here[slot] = self.cluster.start(self._replica, name)
        process.loop.set_exception_handler(partial(self._unhandled, name))
        self._ending[process] = (asyncio.Event(), [])
        self._storm.started(process)

    async def _replica(self, process: Process) -> None:
        asked, _ = self._ending[process]
        while not asked.is_set():
            middleware = [partial(self._attempt, process), *self._options.get("step_middleware", ())]
            options: dict[str, Any] = self._options | {"step_middleware": middleware}
            engine = process.engine = Engine(process.store, flows=self._setting.flows, **options)
            try:
                async with engine:
                    await asked.wait()
            except PerdureError as error:
                self._chronicle.note(process.name, f"could not run: {type(error).__name__}: {error}")
                await asyncio.sleep(AGAIN_SECONDS)

    # ------------------------------------------------------------ steps

    async def _attempt(
        self, process: Process, info: Current, args: tuple[Any, ...], next: Callable[..., Awaitable[Any]], /
    ) -> Any:
        """An attempt of a step, which takes its time before and after."""
        attempt = cast("Attempt", info)
        op = attempt.op
        run, step = op.run, f"step {op.name} of {op.run!r} ({op.key})"
        why = self._store.may_begin(run.uid, run.number, op.key, process.replica)
        if why is not None:
            self._complain(f"{step} {why}")
        number = (info.key, info.attempt)
        self._attempts[number] += 1
        if op.spec.at_most_once and self._attempts[number] > 1:
            self._complain(f"{step} is at-most-once, and begins again")
        chance = random.Random(f"{self._seed}/{number}/{self._attempts[number]}")
        self._chronicle.note(process.name, f"{step} begins" + (f", attempt {info.attempt}" if info.attempt > 1 else ""))
        if chance.random() < 0.4:
            await asyncio.sleep(_a_while(chance))
        try:
            value = await next(*args)
        except BaseException as error:
            self._chronicle.note(process.name, f"{step} raises {error!r}")
            raise
        self._chronicle.note(process.name, f"{step} gives {value!r}")
        if chance.random() < 0.4:
            await asyncio.sleep(_a_while(chance))
        return value

    # ------------------------------------------------------------ what breaks it

    def _break(self, promise: str, why: str) -> NoReturn:
        raise _Broken(promise, why)

    def _stuck(self, why: str, row: Instance | None = None) -> None:
        rows = [row] if row is not None else [r for r in self._store.rows() if not r.state.ended]
        lines = [why]
        for each in rows:
            lines += timeline(self._store.loaded(each.uid), self._payloads)
        self._break("stuck", "\n".join(lines))

    def _complain(self, what: str) -> None:
        if self._complaint is None:
            self._complaint = what

    def _unhandled(self, name: str, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something in a process raised where nobody catches it."""
        error = context.get("exception")
        if not isinstance(error, FlowWarning):
            trace = "\n" + "".join(traceback.format_exception(error)) if error is not None else ""
            self._complain(f"in {name}: {context.get('message', 'unhandled')}{trace}")


def _a_while(chance: random.Random) -> float:
    """How long a step takes: mostly little."""
    return 0.001 * 3000 ** chance.random()


def _words(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(_words, cast("BaseExceptionGroup[BaseException]", error).exceptions))
    return f"{type(error).__name__}: {error}"


def _letters(count: int) -> list[str]:
    return [chr(ord("A") + i) for i in range(count)]


@contextmanager
def _listening(complain: Callable[[str], None]) -> Generator[None]:
    """The engine logs nothing of what is done to it on purpose; faults of its own are complaints."""

    def listen(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if record.levelno >= logging.CRITICAL or (error is not None and not isinstance(error, PerdureError)):
            trace = "\n" + "".join(traceback.format_exception(error)) if error is not None else ""
            complain(f"the engine says: {record.getMessage()}{trace}")
        return False

    logger = logging.getLogger("perdure")
    logger.addFilter(listen)
    try:
        yield
    finally:
        logger.removeFilter(listen)
