"""What the fixture knows of an engine's insides: whether anything can happen in it by itself, and what is under way.

All that is private elsewhere and needed here is named in this file.
"""
# pyright: reportPrivateUsage=false
# ruff: noqa: SLF001

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, cast

from perdure.engine import differences
from perdure.engine.transacting import TransactionOp
from perdure.errors import NotSupported
from perdure.model.records import Entry, Instance, Loaded
from perdure.model.writes import Batch
from perdure.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perdure.engine.membership import Membership
    from perdure.engine.operations import Op
    from perdure.engine.steps import Attempt
    from perdure.model.tx import Tx

T = TypeVar("T")


class Inside:
    """See the module. One per engine that runs."""

    def __init__(self, member: Membership) -> None:
        self._member = member
        self.timers = member._timers
        self.payloads = member._payloads

    def busy(self, asleep: Collection[Attempt]) -> bool:
        """Whether something happens, or is about to, without time passing. Attempts that are `asleep` do nothing."""
        member = self._member
        committer, scheduler, waiters = member.committer, member.scheduler, member.waiters
        if scheduler is None or member.lost_error is not None:
            return True
        claims, steps = scheduler.claims, scheduler._steps
        return bool(
            committer._writes
            or committer._task is not None
            or committer.durable != committer.position
            or scheduler._ready_loops
            or scheduler._gated
            or scheduler.leaving.suspending
            or scheduler.leaving._unloading
            or claims._changed.is_set()
            or claims._again
            or claims._pages
            or (waiters._task is not None and waiters._changed.is_set())
            or steps._reads
            or any(attempt not in asleep for attempt in steps.running)
            or self._overdue()
        )

    def _overdue(self) -> bool:
        when = self.next_at()
        return when is not None and when <= self._member.now()

    def all_wait(self) -> bool:
        """Whether every instance in memory waits, or has a step that is asleep."""
        scheduler = self._member.scheduler
        return scheduler is not None and all(run.waiting or run.running for run in scheduler.resident.values())

    def next_at(self) -> float | None:
        """When the next timer is due; None: there is none."""
        timers = self.timers
        while timers._heap and timers._heap[0].callback is None:
            heapq.heappop(timers._heap)
            timers._off -= 1
        return timers._heap[0].when if timers._heap else None

    def attempts(self) -> list[Attempt]:
        """The attempts of steps that run now."""
        scheduler = self._member.scheduler
        return list(scheduler._steps.running) if scheduler is not None else []

    async def cut_off(self, limit: float) -> None:
        """No step runs or begins any more; those that did not end had so many real seconds for it."""
        scheduler = self._member.scheduler
        if scheduler is None:
            return
        scheduler.draining = True
        if tasks := scheduler._steps.cut_off():
            await asyncio.wait(tasks, timeout=limit)

    def longest(self) -> str:
        """The instance in memory with the longest journal."""
        scheduler = self._member.scheduler
        runs = list(scheduler.resident.values()) if scheduler is not None else []
        return repr(max(runs, key=lambda run: run.seq)) if runs else "the engine"

    def now(self) -> float:
        """The engine's time, in epoch seconds."""
        return self._member.now()

    def writes(self) -> int:
        """How much has happened so far, in writes."""
        return self._member.committer.position

    def blocked(self) -> int:
        """How many instances were set aside so far."""
        scheduler = self._member.scheduler
        return scheduler.leaving.blocked_count if scheduler is not None else 0

    def flows(self) -> set[str]:
        """The names of the flows that run here."""
        scheduler = self._member.scheduler
        return set(scheduler.flows) if scheduler is not None else set()

    def know(self, flow: str) -> None:
        """The flow, which was added to the engine's, is claimed from now on, too."""
        scheduler = self._member.scheduler
        if scheduler is not None:
            scheduler.claims.lanes[flow] = scheduler.version_of(flow)
            scheduler.claims.notice()

    def waits_for(self, uid: bytes) -> str:
        """What the instance waits for, and at which line of its code; empty: it is not in memory, or does not wait."""
        scheduler = self._member.scheduler
        run = scheduler.resident.get(uid) if scheduler is not None else None
        if run is None or not run.ops:
            return ""
        asked = ", ".join(_said(op) for op in run.ops.values())
        return f"{asked}, at {differences._main_line(run)}"

    def on_transaction(self, stubbed: Callable[[str], Callable[..., Any] | None]) -> None:
        """The work of a transaction is what `stubbed` gives for its name, if that gives something."""
        scheduler = self._member.scheduler
        assert scheduler is not None  # noqa: S101  the engine executes
        start = scheduler.start_step

        def start_step(op: Any) -> None:
            if isinstance(op, TransactionOp) and (instead := stubbed(op.name)) is not None:
                op.work = instead
            start(op)

        scheduler.start_step = start_step


def _said(op: Op) -> str:
    return f"{op.kind} ({op.key})" if op.name in ("", op.kind) else f"{op.kind} {op.name} ({op.key})"


class FlowsStore(MemoryStore):
    """A store in memory that can be read without waiting, and whose transactions have no database."""

    transactions = True

    async def transact(
        self, replica: str, epoch: int, work: Callable[[Tx], Coroutine[Any, Any, Entry]], *, limit: float
    ) -> Entry:
        """See Store."""
        entry = await work(cast("Tx", _NoDatabase()))
        await self.commit(Batch(replica, epoch, [entry], self.system.clock.wall()))
        return entry

    def rows(self) -> list[Instance]:
        """All instances, in the order in which they were created."""
        return _at_once(self.find(flow=None, states=None, since=None, after=None, limit=len(self._lives)))

    def row(self, uid: bytes) -> Instance | None:
        """The instance as its row says it."""
        return next(iter(_at_once(self.instances([uid]))), None)

    def all_of(self, row: Instance) -> Loaded:
        """The instance with its whole journal."""
        (loaded,) = _at_once(self.load([row.uid]))
        entries, more = list(loaded.entries), loaded.more
        while more:
            page, more = _at_once(self.entries(row.uid, row.run, entries[-1].seq))
            entries += page
        return Loaded(loaded.instance, entries, loaded.pending, loaded.inbox)


class _NoDatabase:
    """The database of a transaction where there is none."""

    async def execute(self, sql: str, /, *args: object) -> None:
        self._refuse()

    async def fetch(self, sql: str, /, *args: object) -> Sequence[Any]:
        self._refuse()
        return ()

    def _refuse(self) -> None:
        raise NotSupported(
            "a transaction uses its database, and the flows of a test have none: stub it, flows.stub(work, returns=...), "
            "or test it with an Engine on sqlite://"
        )


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits, as those of a store in memory."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()
    raise RuntimeError(f"{work!r} waits")
