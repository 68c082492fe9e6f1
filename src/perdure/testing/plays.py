"""One play of a script: a flow, run in a cluster of one process at a time, which is killed or hindered where it is told.

It says what came of it; whether that is right is for others.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeVar, cast

import msgspec

from perdure.api.current import Current
from perdure.api.flow import AnyFlow
from perdure.api.handle import Handle
from perdure.api.outgoing import Outgoing
from perdure.api.scope import running_loop
from perdure.engine.engine import MAX_RESIDENT, Engine
from perdure.engine.execution import Execution
from perdure.engine.scheduler import Scheduler
from perdure.engine.steps import Attempt
from perdure.errors import CommitUnknown, FlowCancelled, FlowFailed, LeaseLost, OutcomeUnknown
from perdure.model.records import Entry, Kind, State
from perdure.model.writes import Batch, Continue, Create, Expose, Finish, PendingPut, Release, Send
from perdure.testing.blame import Change, Watch, waits_at
from perdure.testing.cluster import Calm, Cluster, Killed, Process
from perdure.testing.inside import FlowsStore, Inside
from perdure.testing.reach import Memory
from perdure.testing.referred import referred
from perdure.testing.stage import ID, ROOT, Fact, SteadySystem, Waiting, hang_up
from perdure.testing.stubs import Stubs

T = TypeVar("T")

Mode = Literal["before", "after", "unknown", "lease", "inside"]
"""Killed before the commit; killed after it; it is done and reported as unknown; the lease is lost right before it.
`inside`: killed while a step waits, and then the point is which of the steps' waits.
"""

CENTURY: Final = 100 * 365 * 86400.0
CALM: Final = 1e9
PATIENCE: Final = 20_000
"""So many turns in which nothing is written, and then nothing is expected any more."""
COMMITS: Final = 5_000
"""Who has made so many commits does not end."""


class Fault(msgspec.Struct, frozen=True):
    """What goes wrong at which point (from 1) of which life (from 1)."""

    life: int
    point: int
    mode: Mode

    def __str__(self) -> str:
        return f"a crash ({self.mode}) at point {self.point} of process {self.life}"


class Effects:
    """What the steps have done to the world, as the test keeps it."""

    def __init__(self, given: Any, reset: Callable[[], object], look: Callable[[], Any]) -> None:
        self.given = given
        self.reset = reset
        self._look = look

    @classmethod
    def of(cls, given: Any) -> Effects:
        """From what `crash_everywhere` was given.

        Raises:
            TypeError: it can be neither emptied nor called.
        """
        parts: tuple[Any, ...] = cast("tuple[Any, ...]", given) if isinstance(given, tuple) else (given,)
        if given is None:
            return cls((), lambda: None, lambda: None)
        if len(parts) == 2 and all(callable(part) for part in parts):
            return cls(parts, *parts)
        for part in parts:
            if not hasattr(part, "clear"):
                raise TypeError(f"effects={part!r} cannot be emptied: give a list, dict or set, or (reset, look)")

        def reset() -> None:
            for part in parts:
                part.clear()

        everything: Any = cast("Any", given)
        return cls(parts, reset, lambda: everything)

    def look(self) -> Any:
        """What there is now, as a copy."""
        return copy.deepcopy(self._look())


@dataclass(frozen=True)
class Script:
    """What is played: the flow, its arguments, and what the outside does."""

    flow: AnyFlow
    args: tuple[Any, ...]
    messages: tuple[Any, ...]
    drive: Callable[[Handle[Any]], Awaitable[object]] | None
    effects: Effects
    stubs: Stubs | None
    duplicates: bool
    memory: Memory


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    state: State
    result: Any
    """Of a flow that succeeded."""
    error: BaseException | None
    """What it raised, if it failed or was cancelled."""
    exposed: dict[str, Any]
    effects: Any
    """A copy of what `effects` held."""


@dataclass
class Event:
    """Something that happened, for the timeline: when, in which life, what, and at which line of the flow."""

    at: float
    life: int
    text: str
    line: str = ""


@dataclass(slots=True)
class Call:
    """An attempt of a step that was begun."""

    name: str
    key: str
    digest: bytes
    """Of the arguments."""
    args: tuple[Any, ...]
    at_most_once: bool
    asked_at: str = ""
    """In a traced play: the line of the flow that waits for it."""
    gave: str = ""
    """In a traced play: what it gave or raised."""


class Delivered(NamedTuple):
    """An outcome that the flow got."""

    what: str
    outcome: bytes | None
    asked_at: str


@dataclass
class Play:
    """What came of it."""

    commits: list[int] = field(default_factory=lambda: [0])
    """How many there were in each life."""
    waits: list[int] = field(default_factory=lambda: [0])
    """How often steps waited in each life."""
    ending: Ending | None = None
    stuck: str | None = None
    """Why it does not end, if it does not."""
    swallows: str = ""
    """Where a task waits that was unloaded and did not end."""
    calls: list[Call] = field(default_factory=list[Call])
    unknown: set[str] = field(default_factory=set[str])
    """Keys of steps of which the flow was told that their outcome is unknown."""
    faults: list[str] = field(default_factory=list[str])
    """What has gone wrong on purpose, in words."""
    changes: list[Change] = field(default_factory=list[Change])
    """Which code has changed the effects and what the flow keeps in memory, as far as that was watched."""
    events: list[Event] = field(default_factory=list[Event])
    """Of a traced play."""
    entries: dict[str, Delivered] = field(default_factory=dict[str, Delivered])
    """Of a traced play: what was delivered, by its key."""


def play(
    script: Script,
    faults: tuple[Fault, ...] = (),
    *,
    unload: bool = False,
    watch: Watch | None = None,
    loud: bool = False,
) -> Play:
    """The script was played, with these faults. Not in a running loop.

    Args:
        unload: whatever waits leaves memory.
        watch: looks on; if it looks at every line, a timeline is kept as well.
        loud: what the engine logs is not kept back.

    Raises:
        what the script's `drive` raises.
    """
    script.memory.forget()
    script.effects.reset()
    return _Player(script, faults, unload, watch, loud).play()


class _Player(Calm):
    """One play; it is the weather of its cluster."""

    def __init__(
        self, script: Script, faults: tuple[Fault, ...], unload: bool, watch: Watch | None, loud: bool
    ) -> None:
        self._script = script
        self._faults = {(fault.life, fault.mode == "inside", fault.point): fault.mode for fault in faults}
        self._counts_waits = not faults or any(fault.mode == "inside" for fault in faults)
        self._resident = 0 if unload else MAX_RESIDENT
        self._watch = watch
        self._traced = watch is not None and watch.lines
        if watch is not None:
            watch.told = self._changed
        self._loud = loud
        self._play = Play()
        self._created = Fact()
        self._cluster = Cluster(self, calm=CALM, store=FlowsStore)
        self._flows = referred(script.flow)
        self._stubbed: Scheduler | None = None
        self._outside: Process | None = None
        self._driving: asyncio.Task[object] | None = None

    def play(self) -> Play:
        outcome = self._play
        quiet: AbstractContextManager[None] = nullcontext() if self._loud else _quiet()
        try:
            with quiet, self._watch or nullcontext():
                self._run()
            if outcome.ending is not None:
                outcome.ending = dataclasses.replace(outcome.ending, effects=self._script.effects.look())
            if self._watch is not None:
                outcome.changes = self._watch.found
        finally:
            self._watch, self._traced = None, False  # what runs now is no part of the play any more
            for process in self._cluster.processes:
                hang_up(process.loop)
            with _quiet():
                self._cluster.end()
        return outcome

    def _run(self) -> None:
        outcome, cluster = self._play, self._cluster
        process = self._start()
        outside = self._outside = (
            self._cluster.start(self._drive, "outside") if self._script.drive is not None else None
        )
        idle, written = 0, 0
        while (outcome.ending is None or self._drives()) and outcome.stuck is None:
            if process not in cluster.processes:
                hang_up(process.loop)
                outcome.commits.append(0)
                outcome.waits.append(0)
                self._script.memory.forget()
                if self._watch is not None:
                    self._watch.refresh()
                self._note(f"process {len(outcome.commits)} starts")
                process = self._start()
            turned = cluster.turn()
            for one in (process, outside):
                if one is not None and one.outcome.done() and one in cluster.processes:
                    one.outcome.result()  # raises what `drive` has raised
            total = sum(outcome.commits)
            idle = 0 if total > written else idle + 1
            written = total
            if total > COMMITS:
                outcome.stuck = f"it has made {total} commits and goes on: let `drive` end it, by a message or cancel()"
            elif (turned is None or idle > PATIENCE) and outcome.stuck is None:
                outcome.stuck = self._waits_for(process)
        if outcome.stuck is not None:
            outcome.ending = None
        if (scheduler := _scheduler(process)) is not None and scheduler.stuck:
            outcome.swallows = waits_at(scheduler.stuck[0]) or repr(scheduler.stuck[0])

    def _start(self) -> Process:
        process = self._cluster.start(self._program)
        process.system = process.connection.system = SteadySystem(
            self._cluster, process, None if self._created.true else ROOT
        )
        return process

    def _drives(self) -> bool:
        return self._outside is not None and not self._outside.outcome.done()

    # ------------------------------------------------------------ inside the processes

    async def _program(self, process: Process) -> None:
        """The process that is killed."""
        script = self._script
        engine = process.engine = Engine(
            process.store, flows=self._flows, lease=CENTURY, drain=0, version="played", max_resident=self._resident,
            step_middleware=[self._observe, *([script.stubs.middleware] if script.stubs else [])],
        )  # fmt: skip
        async with engine:
            handle = await engine.start(script.flow, *script.args, id=ID)
            for number, item in enumerate(script.messages):
                message = item if isinstance(item, Outgoing) else Outgoing(ID, item)
                key = message.key or (None if script.duplicates else f"message {number}")
                await handle.send(message.message, key=key, name=message.name)
            self._play.ending = await _ending(handle)
            await asyncio.Event().wait()

    async def _drive(self, process: Process) -> None:
        """What the outside does, in a process of its own."""
        drive = self._script.drive
        assert drive is not None  # noqa: S101  or there is no such process
        engine = process.engine = Engine(process.store, execute=False)
        async with engine:
            await self._created.wait()
            self._driving = asyncio.current_task()
            await drive(engine.handle(self._script.flow, ID))

    async def _observe(self, info: Current, args: tuple[Any, ...], inner: Callable[..., Awaitable[Any]]) -> Any:
        op = cast("Attempt", info).op
        name = op.name
        call = Call(name, info.key, op.digest, args, op.spec.at_most_once)
        self._play.calls.append(call)
        work = inner(*args)
        if self._counts_waits:
            work = Waiting(work, functools.partial(self._waits, name))
        if self._watch is None:
            return await work
        call.asked_at = next((line for asked, line in self._watch.asked if asked is op), "")
        self._watch.blame("", "a library")
        again = f" (attempt {info.attempt})" if info.attempt > 1 else ""
        self._note(f"step {name} runs{again}", call.asked_at)
        try:
            value = await work
        except BaseException as error:
            self._gave(call, f"raises {error!r}")
            raise
        self._gave(call, f"gives {value!r}")
        return value

    def _gave(self, call: Call, what: str) -> None:
        if self._watch is not None:  # else the play is over
            call.gave = what
            self._watch.blame(call.asked_at, f"step {call.name}")
            self._note(f"step {call.name} {what}")

    def _waits(self, step: str, work: Any) -> None:
        """An attempt is about to wait."""
        waits = self._play.waits
        waits[-1] += 1
        if (len(waits), True, waits[-1]) in self._faults:
            process = next(p for p in self._cluster.processes if p.loop is running_loop())
            # in a callback of its own: raised here, it would run through the step
            process.loop.call_soon(self._kill, process, f"killed while step {step} waits", work)

    # ------------------------------------------------------------ the weather

    async def call(self, process: Process, method: str, args: Any, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """See `Weather`: commits are counted, and the faults happen."""
        self._stub_transactions(process)
        if process is self._outside:
            return await self._call_from_outside(method, args, work)
        if method not in ("commit", "transact"):
            return await work()
        commits = self._play.commits
        commits[-1] += 1
        number = commits[-1]
        mode = self._faults.get((len(commits), False, number))
        what = f"commit {number}" + (f" ({said})" if self._traced and (said := _said(method, args)) else "")
        if mode == "before":
            self._kill(process, f"killed before {what}")
        if mode == "lease" and process.replica is not None:
            self._fault(process, f"the lease is lost before {what}")
            self._cluster.store.bury(process.replica)
            if method == "transact":  # a database would have looked at the fence first
                raise LeaseLost("the lease was lost")
        answer = await work()
        if method == "commit":
            self._look_at(args[0])
        if method == "commit" and self._traced:
            self._note_entries(args[0], what)
        else:
            self._note(what)
        if mode == "after":
            self._kill(process, f"killed after {what}")
        if mode == "unknown":
            self._fault(process, f"{what} is done and reported as unknown")
            raise CommitUnknown("the answer was lost")
        return answer

    async def _call_from_outside(self, method: str, args: Any, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        answer = await work()
        if method == "commit":
            self._look_at(args[0])
            self._note(f"from outside: {_said(method, args)}")
        return answer

    def _stub_transactions(self, process: Process) -> None:
        """Of each scheduler: after a lost lease there is another one."""
        member, stubs = process.engine._member if process.engine is not None else None, self._script.stubs  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
        if stubs is None or member is None or member.scheduler is None or member.scheduler is self._stubbed:
            return
        self._stubbed = member.scheduler
        Inside(member).on_transaction(stubs.of_transaction)

    def _look_at(self, batch: Batch) -> None:
        for write in batch.writes:
            if isinstance(write, Create) and write.uid == ROOT:
                self._created.come_true()
            elif isinstance(write, Release) and write.state is State.BLOCKED:
                self._play.stuck = f"it is blocked: {write.reason}"
            elif (
                isinstance(write, Entry) and write.failed and OutcomeUnknown.__name__.encode() in (write.outcome or b"")
            ):
                self._play.unknown.add(_key(write.uid, write.run, write.key))

    def _kill(self, process: Process, why: str, step: Any = None) -> None:
        self._fault(process, why, step)
        self._cluster.kill(process)
        raise Killed

    def _fault(self, process: Process, what: str, step: Any = None) -> None:
        self._play.faults.append(what)
        if self._traced:
            self._note(what, ", ".join(_lines(process)) if step is None else waits_at(step))

    # ------------------------------------------------------------ for people

    def _note(self, text: str, line: str = "") -> None:
        if self._traced:
            self._play.events.append(Event(self._cluster.time.now, len(self._play.commits), text, line))

    def _changed(self, change: Change) -> None:
        what = "memory" if self._traced and change.in_memory else "effects"
        self._note(f"{change.who} changes the {what}", change.where)

    def _note_entries(self, batch: Batch, what: str) -> None:
        """Each entry of a batch has a line of the flow, that of the operation whose outcome it is."""
        lines = {_key(op.run.uid, op.run.number, op.key): line for op, line in self._watch.asked} if self._watch else {}
        entries = [write for write in batch.writes if isinstance(write, Entry) and write.key]
        for entry in entries:
            key = _key(entry.uid, entry.run, entry.key)
            self._play.entries.setdefault(key, Delivered(_named(entry), entry.outcome, lines.get(key, "")))
        found = [line for e in entries if (line := lines.get(_key(e.uid, e.run, e.key)))]
        self._note(what, found[0] if found else "")

    def _waits_for(self, process: Process) -> str:
        if self._play.ending is not None and self._driving is not None:
            return f"the flow has ended, and `drive` has not: it waits at {waits_at(self._driving)}"
        waits: list[str] = []
        for execution in _resident(process):
            asked = ", ".join(op.why_outstanding() for op in execution.ops.values()) or "nothing that the engine knows"
            lines = _lines_of(execution)
            waits.append(f"{execution!r} waits for {asked}" + (f" at {', '.join(lines)}" if lines else ""))
        return "; ".join(waits) or "nothing of it is in memory, and nothing wakes it"


async def _ending(handle: Handle[Any]) -> Ending:
    """How the instance ended; the effects are for later."""
    state, result, error = State.SUCCEEDED, None, None
    try:
        result = await handle.result()
    except FlowFailed as failed:
        state, error = State.FAILED, failed.__cause__ or failed
    except FlowCancelled as cancelled:
        state, error = State.CANCELLED, cancelled
    return Ending(state, result, error, dict(await handle.exposed()), None)


def _key(uid: bytes, run: int, key: str) -> str:
    """As `current().key` of the step."""
    return f"{uid.hex()}.{run}.{key}"


def _named(entry: Entry) -> str:
    return entry.kind if entry.name in ("", entry.kind) else f"{entry.kind} {entry.name}"


def _said(method: str, args: Any) -> str:
    """What a call of the store writes, in words."""
    if method == "transact":
        return "transaction"
    batch: Batch = args[0]
    found: list[str] = []
    for write in batch.writes:
        if isinstance(write, Entry):
            if write.kind not in (Kind.BEGUN, Kind.START):
                found.append(_named(write))
        elif isinstance(write, Create):
            found.append(f"start {write.flow}")
        elif isinstance(write, Send):
            found.append(f"{write.message.kind} for {write.flow}")
        elif isinstance(write, PendingPut):
            row = write.pending
            found.append(f"attempt {row.attempt + 1} of {row.name} begins" if row.intent else f"{row.name} has failed")
        elif isinstance(write, Continue):
            found.append("next run")
        elif isinstance(write, Expose):
            found.append(f"exposed {write.key}")
        elif isinstance(write, Finish):
            found.append("end")
    return ", ".join(dict.fromkeys(found))


def _scheduler(process: Process) -> Scheduler | None:
    member = process.engine._member if process.engine is not None else None  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
    return member.scheduler if member is not None else None


def _resident(process: Process) -> list[Execution]:
    scheduler = _scheduler(process)
    return list(scheduler.resident.values()) if scheduler is not None else []


def _lines(process: Process) -> list[str]:
    """Where the flows in memory wait."""
    return [line for execution in _resident(process) for line in _lines_of(execution)]


def _lines_of(execution: Execution) -> list[str]:
    return sorted({waits_at(task) for task in execution.loop.tasks if not task.done()} - {""})


@contextmanager
def _quiet() -> Generator[None]:
    """The engine says nothing of what is done to it on purpose."""
    logger = logging.getLogger("perdure")
    logger.addFilter(_nothing)
    try:
        yield
    finally:
        logger.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False
