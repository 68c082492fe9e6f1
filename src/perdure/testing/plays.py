"""One play of a script: a flow, run in a cluster of one process at a time, which is killed or hindered where it is told.

It says what came of it; whether that is right is for others.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar, cast

import msgspec

from perdure.api.current import Current
from perdure.api.flow import AnyFlow
from perdure.api.handle import Handle
from perdure.api.outgoing import Outgoing
from perdure.engine.engine import MAX_RESIDENT, Engine
from perdure.engine.execution import Execution
from perdure.engine.payloads import Payloads
from perdure.engine.steps import Attempt
from perdure.errors import CommitUnknown, FlowCancelled, FlowFailed
from perdure.model.records import Entry, Kind, State
from perdure.model.writes import Batch
from perdure.testing.blame import Change, changes, waits_at
from perdure.testing.cluster import Calm, Cluster, Killed, Process
from perdure.testing.reach import flows_of

T = TypeVar("T")

Mode = Literal["before", "after", "unknown", "lease"]
"""Killed before the commit; killed after it; it is done and reported as unknown; the lease is lost right before it."""

ID: Final = "crashed"
CENTURY: Final = 100 * 365 * 86400.0
CALM: Final = 1e6
PATIENCE: Final = 2_000
"""So many turns in which nothing is written, and then nothing is expected any more."""


class Stuck(AssertionError):
    """The flow does not end, and nothing that could make it will happen."""


class Fault(msgspec.Struct, frozen=True):
    """What goes wrong at which commit (from 1) of which life (from 1)."""

    life: int
    point: int
    mode: Mode


class Effects:
    """What the steps have done to the world, as the test keeps it."""

    def __init__(self, reset: Callable[[], object], look: Callable[[], Any]) -> None:
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
            return cls(lambda: None, lambda: None)
        if len(parts) == 2 and all(callable(part) for part in parts):
            return cls(*parts)
        for part in parts:
            if not hasattr(part, "clear"):
                raise TypeError(f"effects={part!r} cannot be emptied: give a list, dict or set, or (reset, look)")

        def reset() -> None:
            for part in parts:
                part.clear()

        everything: Any = cast("Any", given)
        return cls(reset, lambda: everything)

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
    duplicates: bool


@dataclass
class Event:
    """Something that happened, for the timeline: when, in which life, what, and at which line of the flow."""

    at: float
    life: int
    text: str
    line: str = ""


@dataclass
class Play:
    """What came of it."""

    commits: list[int] = field(default_factory=lambda: [0])
    """How many there were in each life."""
    state: str = ""
    result: Any = None
    error: BaseException | None = None
    exposed: dict[str, Any] = field(default_factory=dict[str, Any])
    effects: Any = None
    stuck: str | None = None
    """Why it does not end, if it does not."""
    events: list[Event] = field(default_factory=list[Event])
    """Of a traced play."""
    changes: list[Change] = field(default_factory=list[Change])
    """Of a traced play: which lines have changed the effects."""
    calls: list[tuple[str, str, tuple[Any, ...]]] = field(default_factory=list[tuple[str, str, tuple[Any, ...]]])
    """Every attempt of a step that was begun: name, idempotency key, arguments."""
    unsaid: BaseException | None = None
    """What the outside raised."""
    ended: bool = False


def play(script: Script, faults: tuple[Fault, ...], *, unload: bool = False, traced: bool = False) -> Play:
    """The script was played, with these faults; `unload`: whatever waits leaves memory. Not in a running loop.

    Raises:
        what the script's `drive` raises.
    """
    script.effects.reset()
    return _Player(script, faults, unload, traced).play()


class _Player(Calm):
    """One play; it is the weather of its cluster."""

    def __init__(self, script: Script, faults: tuple[Fault, ...], unload: bool, traced: bool) -> None:
        self._script = script
        self._faults = {(fault.life, fault.point): fault.mode for fault in faults}
        self._resident = 0 if unload else MAX_RESIDENT
        self._traced = traced
        self._play = Play()
        self._cluster = Cluster(self, calm=CALM)
        self._flows = flows_of(script.flow)
        self._payloads = Payloads(None, 1 << 30)

    def play(self) -> Play:
        outcome = self._play
        try:
            with (
                _quiet(),
                changes(self._script.effects.look) if self._traced else nullcontext(outcome.changes) as changed,
            ):
                self._run()
            outcome.changes = changed
            outcome.effects = self._script.effects.look()
        finally:
            with _quiet():
                self._cluster.end()
        if outcome.unsaid is not None:
            raise outcome.unsaid
        return outcome

    def _run(self) -> None:
        outcome, cluster = self._play, self._cluster
        process = cluster.start(self._program)
        idle, written = 0, 0
        while not outcome.ended and outcome.stuck is None:
            if process not in cluster.processes:
                outcome.commits.append(0)
                self._note(f"process {len(outcome.commits)} starts")
                process = cluster.start(self._program)
            turned = cluster.turn()
            if process.outcome.done() and process in cluster.processes:
                outcome.unsaid = process.outcome.exception()
                return
            row = at_once(cluster.store.instance(self._script.flow.name, ID))
            if row is not None and row.state is State.BLOCKED and row.owner is None:
                outcome.stuck = f"it is blocked: {row.reason}"
            idle = 0 if sum(outcome.commits) > written else idle + 1
            written = sum(outcome.commits)
            if turned is None or idle > PATIENCE:
                outcome.stuck = self._waits_for(process)

    # ------------------------------------------------------------ inside the process

    async def _program(self, process: Process) -> None:
        script = self._script
        engine = process.engine = Engine(
            process.store, flows=self._flows, lease=CENTURY, drain=0, version="played", max_resident=self._resident,
            step_middleware=[self._observe],
        )  # fmt: skip
        async with engine:
            handle = await engine.start(script.flow, *script.args, id=ID)
            for number, item in enumerate(script.messages):
                message = item if isinstance(item, Outgoing) else Outgoing(ID, item)
                key = message.key or (None if script.duplicates else f"message {number}")
                await handle.send(message.message, key=key, name=message.name)
            if script.drive is not None:
                driving = asyncio.ensure_future(script.drive(handle))
                driving.add_done_callback(self._driven)
            await self._ended(handle)
            await asyncio.Event().wait()

    def _driven(self, driving: asyncio.Future[object]) -> None:
        if not driving.cancelled() and (error := driving.exception()) is not None:
            self._play.unsaid, self._play.ended = error, True

    async def _ended(self, handle: Handle[Any]) -> None:
        outcome = self._play
        try:
            outcome.result = await handle.result()
            outcome.state = "succeeded"
        except FlowFailed as failed:
            outcome.state, outcome.error = "failed", failed.__cause__ or failed
        except FlowCancelled as cancelled:
            outcome.state, outcome.error = "been cancelled", cancelled
        outcome.exposed = dict(await handle.exposed())
        outcome.ended = True

    async def _observe(self, info: Current, args: tuple[Any, ...], next: Callable[..., Awaitable[Any]]) -> Any:
        name = info.step or ""
        self._play.calls.append((name, info.key, args))
        if not self._traced:
            return await next(*args)
        op = cast("Attempt", info).op
        again = f" (attempt {info.attempt})" if info.attempt > 1 else ""
        self._note(f"step {name} runs{again}", _asked_at(op.run, op.future))
        try:
            value = await next(*args)
        except BaseException as error:
            self._note(f"step {name} raises {error!r}")
            raise
        self._note(f"step {name} gives {value!r}")
        return value

    # ------------------------------------------------------------ the weather

    async def call(self, process: Process, method: str, args: Any, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """See `Weather`: commits are counted, and the faults happen."""
        if method != "commit":
            return await work()
        commits = self._play.commits
        commits[-1] += 1
        mode = self._faults.get((len(commits), commits[-1]))
        if mode == "before":
            self._kill(process, f"killed before commit {commits[-1]}")
        if mode == "lease" and process.replica is not None:
            self._note(f"the lease is lost before commit {commits[-1]}")
            self._cluster.store.bury(process.replica)
        answer = await work()
        if self._traced:
            self._note_entries(args[0])
        if mode == "after":
            self._kill(process, f"killed after commit {commits[-1]}")
        if mode == "unknown":
            self._note(f"the outcome of commit {commits[-1]} is reported as unknown")
            raise CommitUnknown("the answer was lost")
        return answer

    def _kill(self, process: Process, why: str) -> None:
        self._note(why)
        self._cluster.kill(process)
        raise Killed

    # ------------------------------------------------------------ for people

    def _note(self, text: str, line: str = "") -> None:
        if self._traced:
            self._play.events.append(Event(self._cluster.time.now, len(self._play.commits), text, line))

    def _note_entries(self, batch: Batch) -> None:
        number = self._play.commits[-1]
        for write in batch.writes:
            if isinstance(write, Entry) and write.kind not in (Kind.BEGUN, Kind.STEP):
                self._note(f"{write.kind} {write.name}".rstrip())
        self._note(f"commit {number}")

    def _waits_for(self, process: Process) -> str:
        member = process.engine._member if process.engine is not None else None  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
        scheduler = member.scheduler if member is not None else None
        waits: list[str] = []
        for execution in scheduler.resident.values() if scheduler is not None else ():
            asked = ", ".join(op.why_outstanding() for op in execution.ops.values()) or "nothing that the engine knows"
            lines = sorted({waits_at(task) for task in execution.loop.tasks if not task.done()} - {""})
            waits.append(f"{execution!r} waits for {asked}" + (f" at {', '.join(lines)}" if lines else ""))
        return "; ".join(waits) or "nothing of it is in memory, and nothing wakes it"


def _asked_at(run: Execution, future: asyncio.Future[Any]) -> str:
    """The line at which the flow's code waits for this."""
    for task in run.loop.tasks:
        if getattr(task, "_fut_waiter", None) is future:
            return waits_at(task)
    return waits_at(run.main) if run.main is not None else ""


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


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives that waits for nothing, as those of the store in memory do."""
    try:
        work.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    work.close()
    raise RuntimeError(f"{work!r} waits for something")
