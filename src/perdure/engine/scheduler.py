"""Which instances are in memory: wakes, parks and unloads them, and is the host of their executions.

It moves facts between store, committer and executions; how an instance goes on is the execution's, how a batch is
written the committer's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from typing import Any, Final, cast

from msgspec.structs import replace

from perdure.api.flow import FlowFunction
from perdure.engine import ending
from perdure.engine.claiming import Claims
from perdure.engine.committer import Committer, Outcome, whose
from perdure.engine.execution import Execution
from perdure.engine.first_replay import FirstReplays
from perdure.engine.leaving import Leaving
from perdure.engine.loop import FlowLoop
from perdure.engine.operations import ReadOp, begun
from perdure.engine.payloads import NO_DIGEST, Payloads
from perdure.engine.replica import Replica
from perdure.engine.settings import Settings
from perdure.engine.steps import THREADS, StepRunner
from perdure.engine.timers import Timers
from perdure.engine.transacting import TransactionOp, transact
from perdure.engine.waiters import Waiters
from perdure.errors import StoreRefused
from perdure.model.records import PUSHED, Entry, Instance, Kind, Loaded, Message, MessageKind, State
from perdure.model.retry import Retry
from perdure.model.writes import (
    Answer,
    Continue,
    Continued,
    Create,
    Created,
    Finish,
    Finished,
    NotOwned,
    PendingDrop,
    Release,
    Sent,
    Take,
    Write,
)
from perdure.stores.contract import Store

logger = logging.getLogger("perdure")

TRANSACTION_SECONDS: Final = 0.5
"""A transaction may take so long, and at most half a lease: nobody else writes meanwhile."""


class Scheduler:
    """See the module. One per membership: after a lost lease a new one is made."""

    def __init__(  # noqa: PLR0913  it is where everything of a membership meets
        self,
        store: Store,
        committer: Committer,
        replica: Replica,
        timers: Timers,
        waiters: Waiters,
        payloads: Payloads,
        flows: Mapping[str, FlowFunction[..., Any]],
        settings: Settings,
        now: Callable[[], float],
        read: Callable[[str, str, str, str | None], Any],
    ) -> None:
        self.real = asyncio.get_running_loop()
        self.base_context = Context()
        self.holding = False
        self.queues = settings.queues is not None
        self.payloads = payloads
        self.stall_limit = settings.stall_limit
        self.transaction_limit = min(TRANSACTION_SECONDS, settings.lease / 2)
        self.resident: dict[bytes, Execution] = {}
        self.draining = False
        self.stuck: list[Any] = []
        """Tasks of unloaded flows that swallow their cancellation: held, so that no collector finalises them."""
        self.now = now
        self._store = store
        self._committer = committer
        self.replica = replica
        self._timers = timers
        self._waiters = waiters
        self.flows = flows
        self.settings = settings
        self._read = read
        threads = store.system.threads(THREADS)
        self._steps = StepRunner(self, threads, settings.step_middleware)
        self._first_replays = FirstReplays(self.real, threads.run)
        self.start_step = self._steps.start
        self.cancel_step = self._steps.cancel
        self.random = store.system.random
        self.new_uid = store.system.new_uid
        self.write = committer.write
        """See `execution.Host`."""
        self.schedule = self._schedule  # one bound method for all executions, which keep it
        self._ready_loops: list[FlowLoop] = []
        self._gated: list[Execution] = []
        self.early: dict[bytes, list[Message]] = {}
        """Messages for instances that are this replica's and not in memory yet."""
        self.claims = Claims(self, store, committer, timers)
        self.leaving = Leaving(self, committer, self._steps, store.system.process)
        self.settled = self.leaving.settled
        self.hand_over = self.leaving.hand_over
        self.blocked = self.leaving.blocked

    # ------------------------------------------------------------ host of executions

    def _schedule(self, loop: FlowLoop, /) -> None:
        """The flow's loop runs in the next turn of the real loop, together with all others that are ready."""
        self._ready_loops.append(loop)
        if len(self._ready_loops) == 1:
            self.real.call_soon(self._run_ready)

    def _run_ready(self) -> None:
        loops, self._ready_loops = self._ready_loops[::-1], []
        try:
            while loops:
                loop = loops.pop()
                try:
                    loop.run()
                except (SystemExit, KeyboardInterrupt):
                    self._interrupted(cast("Execution", loop.owner))
                    raise
        finally:
            if loops:  # one of them raised SystemExit or KeyboardInterrupt
                self._ready_loops += loops
                self.real.call_soon(self._run_ready)

    def _interrupted(self, execution: Execution) -> None:
        """What a signal's handler raises is no outcome of the flow that it hit: that goes on from its journal."""
        execution.interrupted()
        self.leaving.try_release(execution, anyway=True)

    def gate(self, execution: Execution) -> None:
        """`gate_open` is called as soon as the execution's writes are durable: now, if they are."""
        if execution.stopped:
            execution.gated = False
        elif self._committer.durable < execution.gate or self.holding:
            self._gated.append(execution)
        elif not execution.to_go:
            execution.gated = False
            execution.gate_open()
        elif self.draining or execution.leaving is not None:
            execution.gated = False
            execution.caught_up()
            self.leaving.try_release(execution)
        elif self.replica.safe_to_start():
            execution.gated = False
            execution.gate_open()
        else:
            self._gated.append(execution)  # looked at again when the lease is renewed; if it is lost, never

    def arm(self, execution: Execution, when: float) -> None:
        """See `execution.Host`."""
        if execution.alarm is not None:
            self._timers.put_off(execution.alarm)
        execution.alarm = self._timers.at(when, self._fire, execution)

    def _fire(self, execution: Execution) -> None:
        execution.fire(self.now())

    def call_at(self, when: float, callback: Callable[[], None]) -> Callable[[], None]:
        """The callback is called at that time, unless the function that is returned was called before."""
        alarm = self._timers.at(when, callback)
        return lambda: self._timers.put_off(alarm)

    async def read_for(self, op: ReadOp) -> Any:
        """What the store knows of another instance."""
        return await self._read(op.what, op.flow, op.id, op.key_wanted)

    def read_on(self, execution: Execution) -> None:
        """See `execution.Host`."""
        self.claims.read_on(execution)

    async def transact_for(self, op: TransactionOp) -> Entry:
        """See `transacting.transact`."""
        return await transact(op, self._store, self._committer, self.replica.id, self.transaction_limit)

    def default_retry(self) -> Retry | None:
        """The engine's rule for steps that do not say."""
        return self.settings.default_retry

    def new_instance(
        self, uid: bytes, flow: str, id: str, queue: str, arguments: bytes, digest: bytes, parent: bytes | None
    ) -> Create:
        """The write that creates an instance: owned by this replica while there is room and its lane is served here."""
        now, lane = self.now(), self.settings.lane(flow, queue)
        owned = lane in self.claims.lanes and len(self.resident) < self.settings.max_running and not self.draining
        version = self.version_of(flow) if owned else ""
        begun = self.begun(uid, 0, flow, version, now) if owned else None
        return Create(
            uid, flow, id, lane, arguments, digest, parent, owned, None if owned else now, version, now, begun
        )

    def version_of(self, flow: str) -> str:
        """The identity of the code that runs the flow here."""
        function = self.flows.get(flow)
        return (function.version if function is not None else None) or self.settings.version

    def begun(self, uid: bytes, run: int, flow: str, version: str, now: float) -> Entry:
        return Entry(uid, run, 0, "", Kind.BEGUN, flow, begun(version), NO_DIGEST, False, None, 0, now, now)

    def finished(self, execution: Execution, finish: Finish | Continue) -> None:
        """The run has ended; others learn of it when that is durable, and the next run begins then."""
        if isinstance(finish, Continue):
            self.leaving.suspending[execution.uid] = finish
        self._committer.write(finish)

    # ------------------------------------------------------------ what the committer tells

    def committed(self, writes: list[Write], answers: Sequence[Outcome]) -> None:
        """A batch is durable: what it did to instances here is done to them, and gates open."""
        for write, answer in zip(writes, answers, strict=True):
            kind = type(write)
            if kind is Entry:
                continue
            if isinstance(answer, StoreRefused):
                continue
            if answer is not None:
                self._answered(write, answer)
            elif kind is Release:
                self.leaving.released(write)  # type: ignore[arg-type]
                self._waiters.look()
            elif kind is Finish:
                self._ended(write)  # type: ignore[arg-type]  # long ago: it is begun anew, and claimed
                self.claims.unsure = True
        self._open_gates()

    def _answered(self, write: Write, answer: Answer) -> None:
        if isinstance(answer, Created):
            if isinstance(write, Create) and write.owned and write.begun is not None:
                self._spawn_new(write, answer)
            elif isinstance(write, Create) and write.due_at is not None:
                self.claims.look_at(write.due_at)
        elif isinstance(answer, Sent):
            self._route(answer)
        elif isinstance(answer, Finished):
            assert isinstance(write, Finish)  # noqa: S101
            for sent in answer.sent:
                self._route(sent)
            self._ended(write)
        elif isinstance(answer, Continued):
            assert isinstance(write, Continue)  # noqa: S101
            for sent in answer.sent:
                self._route(sent)
            self._next_run(write, answer)
        elif isinstance(answer, NotOwned):
            self.evict(answer.uid, "the store says that another owns it")

    def _next_run(self, write: Continue, answer: Continued) -> None:
        uid = write.uid
        old = self.resident.get(uid)
        if old is None:
            return
        before, parent, to = old.instance, old.parent, old.leaving
        self.leaving.suspending.pop(uid, None)
        self.forget(uid)
        if self.draining or to is not None:
            self.leaving.give_back(Release(uid, before.term, State.SCHEDULED, self.now(), to=to))
            return
        row = replace(
            before, run=write.run, arguments=write.arguments, first=before.first or before.arguments, edited_seq=-1,
            failed_seq=None, version=write.version,
        )  # fmt: skip
        execution = self.spawn(Loaded(row, [write.begun], [], list(answer.inbox)), self.flows[row.flow], parent)
        self.leaving.read_what_was_missed(uid)
        for message in answer.inbox:
            if message.kind == MessageKind.EVICT:  # the row that would have told of it went with the old run
                execution.mailbox.admit(message)

    def _spawn_new(self, write: Create, answer: Created) -> None:
        if write.uid in self.resident:
            return
        instance = Instance(
            write.uid, 0, write.flow, write.id, write.lane, State.RUNNING, self.replica.id, False, None, write.arguments,
            write.digest, write.parent, None, None, write.version, write.at, None,
        )  # fmt: skip
        assert write.begun is not None  # noqa: S101
        if len(self.resident) >= self.settings.max_running:  # more were created at once than there is room for
            self.leaving.give_back(Release(write.uid, 0, State.SCHEDULED, self.now()))
            return
        parent = self.resident.get(write.parent) if write.parent is not None else None
        name = (parent.instance.flow, parent.instance.id) if parent is not None else None
        entries = [*sorted(write.initial, key=lambda e: e.seq), write.begun] if write.initial else [write.begun]
        self.spawn(Loaded(instance, entries, [], list(answer.inbox)), self.flows[write.flow], name)

    def spawn(self, loaded: Loaded, flow: FlowFunction[..., Any], parent: tuple[str, str] | None = None) -> Execution:
        """The instance is resident and runs, from the next turn on."""
        execution = Execution(self, self.payloads, flow, loaded, parent)
        if execution.restarted and self._store.system.reads_sources:
            self._first_replays.look(flow)
        self.resident[execution.uid] = execution
        for message in self.early.pop(execution.uid, ()):
            execution.mailbox.admit(message)
        self.claims.born(execution.uid)
        execution.loop.wake()
        return execution

    def _route(self, sent: Sent) -> None:
        """A row that was written into an inbox reaches the instance if it is resident here, else the claim is made
        at once.
        """
        if sent.uid is None or not sent.new:
            return
        execution = self.resident.get(sent.uid)
        if sent.uid in self.leaving.suspending and not self.leaving.withdrawn(sent.uid):
            self.leaving.missed.add(sent.uid)
        elif execution is not None:
            execution.mailbox.admit(sent.message)
        elif sent.owner is None:
            self.claims.notice()
        elif (
            sent.owner == self.replica.id
        ):  # created by the same batch, or claimed and being loaded: `spawn` is to come
            self.early.setdefault(sent.uid, []).append(sent.message)

    def _ended(self, finish: Finish) -> None:
        self._waiters.tell(finish.uid, finish.state, finish.outcome)
        self.forget(finish.uid)

    def forget(self, uid: bytes) -> None:
        """The instance is not in memory any more."""
        execution = self.resident.pop(uid, None)
        if execution is None:
            return
        self.leaving.gone(execution)
        self.claims.made_room()
        if execution.running:
            self._steps.cut_off(execution)
        if execution.alarm is not None:
            self._timers.put_off(execution.alarm)
        left = ending.unload(execution)
        if left:
            self.stuck.extend(left)
            logger.warning(
                "%r was unloaded, and %d of its tasks swallow their cancellation (%s); they are kept, and never run again",
                execution, len(left), ", ".join(t.get_name() for t in left),
            )  # fmt: skip

    def _open_gates(self) -> None:
        gated, self._gated = self._gated, []
        for execution in gated:
            self.gate(execution)

    def renewed(self) -> None:
        """The lease holds again: steps that waited for that start, and what is due is claimed."""
        self._open_gates()
        self.claims.lease_holds()

    def holding_changed(self, *, holding: bool) -> None:
        """While the store takes no commits nothing is delivered."""
        self.holding = holding
        if not holding:
            self._open_gates()

    def refused(self, writes: list[Write], error: StoreRefused) -> list[list[Write]]:
        """The store will never take these writes of one instance: that operation has failed, by this error, and the
        instance goes on from there. What was no operation's, and no end of the flow, sets it aside.
        """
        uid = whose(writes[0])
        execution = self.resident.get(uid) if isinstance(uid, bytes) else None
        if execution is None:
            return []
        execution.stopped = True
        logger.error("%r: the store refuses its data: %s", execution, error)
        self._steps.cut_off(execution)
        self._committer.discard(execution.uid)
        self.leaving.suspending.pop(execution.uid, None)
        reason = self.payloads.encode_error(StoreRefused(str(error)), execution.flow.name)
        aside = self.leaving.aside(execution, f"StoreRefused: {error}")
        for write in writes:
            if isinstance(write, Entry) and write.kind not in PUSHED:
                failed = replace(write, arguments=None, failed=True, outcome=reason)
                done = [w for w in writes if isinstance(w, PendingDrop | Take)]
                return [
                    [failed, *done, Release(execution.uid, execution.instance.term, State.SCHEDULED, self.now())],
                    [aside],
                ]
            if isinstance(write, Finish):
                return [[replace(write, state=State.FAILED, outcome=reason)], [aside]]
        return [[aside]]

    def evict(self, uid: bytes, why: str) -> None:
        """The instance is another's: dropped from memory, nothing is written."""
        execution = self.resident.get(uid)
        self.leaving.evicted(uid)
        if execution is not None:
            logger.warning("%r is dropped: %s", execution, why)
            execution.stopped = True
            self.forget(uid)
            self._waiters.look()

    # ------------------------------------------------------------ the end

    async def drain(self, seconds: float) -> None:
        """Nothing new starts; running steps may end and are recorded; then everything is nobody's, durably."""
        self.draining = True
        if (looking := self.claims.stop()) is not None:
            await asyncio.gather(looking, return_exceptions=True)
        await self.leaving.drain(seconds)

    def abandon(self) -> list[asyncio.Task[None]]:
        """The lease is lost: every execution and step here is dropped, nothing is written. Gives the steps' tasks."""
        self.draining = True
        self.claims.stop()
        tasks = self._steps.cut_off()
        for uid in list(self.resident):
            self.resident[uid].stopped = True
            self.forget(uid)
        self._waiters.look()
        return tasks

    def close(self) -> None:
        """Threads are left alone."""
        self._steps.close()

    def blocking_step(self) -> str:
        """For people: which step runs on the loop right now. Called from another thread."""
        try:
            task = asyncio.current_task(self.real)
            attempt = next((a for a in list(self._steps.running) if a.task is task), None) if task is not None else None
            turning = next((e for e in list(self.resident.values()) if e.loop.turning), None)
        except RuntimeError:  # a set changed while it was looked at; the next look finds it
            return ""
        if attempt is not None:
            return f"step {attempt.step} of {attempt.flow} {attempt.id!r}"
        return f"the body of flow {turning!r}" if turning is not None else ""

    def counts(self) -> tuple[int, int]:
        """How many instances run here, and how many are parked."""
        parked = sum(1 for e in self.resident.values() if e.waiting)
        return len(self.resident) - parked, parked
