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
from perdure.engine.loop import FlowLoop
from perdure.engine.operations import ASKED, ReadOp, begun
from perdure.engine.payloads import NO_DIGEST, Payloads
from perdure.engine.replica import Replica
from perdure.engine.settings import Settings
from perdure.engine.stepping import StepOp
from perdure.engine.steps import THREADS, StepRunner
from perdure.engine.timers import Timers
from perdure.engine.transacting import TransactionOp, transact
from perdure.engine.waiters import Waiters
from perdure.errors import PerdureError, StoreRefused
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
        self._steps = StepRunner(self, store.system.threads(THREADS), settings.step_middleware)
        self.start_step = self._steps.start
        self.cancel_step = self._steps.cancel
        self.random = store.system.random
        self.new_uid = store.system.new_uid
        self.write = committer.write
        """See `execution.Host`."""
        self._ready_loops: list[FlowLoop] = []
        self._gated: list[Execution] = []
        self._parked: dict[Execution, None] = {}
        self.suspending: dict[bytes, Release | Continue] = {}
        """Frozen until this write is durable."""
        self.missed: set[bytes] = set()
        self.early: dict[bytes, list[Message]] = {}
        """Messages for instances that are this replica's and not in memory yet."""
        self.claims = Claims(self, store, committer, timers)
        self._unloading = False
        self._cutting: set[asyncio.Task[None]] = set()
        self._released: asyncio.Event | None = None
        self.blocked_count = 0

    # ------------------------------------------------------------ host of executions

    def schedule(self, loop: FlowLoop, /) -> None:
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
        self._try_release(execution, anyway=True)

    def gate(self, execution: Execution) -> None:
        """`gate_open` is called as soon as the execution's writes are durable: now, if they are."""
        if self._committer.durable < execution.gate or self.holding:
            self._gated.append(execution)
        elif not execution.to_go:
            execution.gated = False
            execution.gate_open()
        elif self.draining or execution.leaving is not None:
            execution.gated = False
            execution.end_dropped()
            self._try_release(execution)
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
        self, uid: bytes, flow: str, id: str, arguments: bytes, digest: bytes, parent: bytes | None
    ) -> Create:
        """The write that creates an instance: owned by this replica while there is room and the flow is known here."""
        now = self.now()
        owned = flow in self.flows and len(self.resident) < self.settings.max_running and not self.draining
        version = self.version_of(flow) if owned else ""
        begun = self.begun(uid, 0, flow, version, now) if owned else None
        return Create(uid, flow, id, arguments, digest, parent, owned, None if owned else now, version, now, begun)

    def version_of(self, flow: str) -> str:
        """The identity of the code that runs the flow here."""
        function = self.flows.get(flow)
        return (function.version if function is not None else None) or self.settings.version

    def begun(self, uid: bytes, run: int, flow: str, version: str, now: float) -> Entry:
        return Entry(uid, run, 0, "", Kind.BEGUN, flow, begun(version), NO_DIGEST, False, None, 0, now, now)

    def settled(self, execution: Execution) -> None:
        """The execution waits and could be unloaded."""
        parked = self._parked
        parked.pop(execution, None)
        parked[execution] = None
        execution.parked_at = self.now()
        self.claims.made_room()
        if self.draining or execution.leaving is not None:
            self._try_release(execution)
        elif len(self.resident) > self.settings.max_resident and not self._unloading:
            self._unloading = True
            self.real.call_soon(self._unload_longest_waiting)

    def finished(self, execution: Execution, finish: Finish | Continue) -> None:
        """The run has ended; others learn of it when that is durable, and the next run begins then."""
        if isinstance(finish, Continue):
            self.suspending[execution.uid] = finish
        self._committer.write(finish)

    def blocked(self, execution: Execution, error: BaseException) -> None:
        """The instance is set aside, visibly, with the reason; nothing of it is lost."""
        uid = execution.uid
        if uid in self.suspending or uid not in self.resident:
            return
        trace = None if isinstance(error, PerdureError) else error
        logger.error("%r is blocked: %s", execution, error, exc_info=trace)
        self.blocked_count += 1
        execution.stopped = True
        reason = f"{type(error).__name__}: {error}"
        version = self.version_of(execution.instance.flow)
        release = Release(uid, State.BLOCKED, None, (), reason, version, self._store.system.process, execution.leaving)
        self.suspending[uid] = release
        self._steps.cut_off(execution)
        self._committer.write(release)

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
                self._dropped(write.uid, write)  # type: ignore[union-attr, arg-type]
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
        self.suspending.pop(uid, None)
        self._forget(uid)
        if self.draining or to is not None:
            self._committer.write(Release(uid, State.SCHEDULED, self.now(), to=to))
            return
        row = replace(
            before, run=write.run, arguments=write.arguments, first=before.first or before.arguments, edited_seq=-1,
            failed_seq=None, version=write.version,
        )  # fmt: skip
        execution = self.spawn(Loaded(row, [write.begun], [], list(answer.inbox)), self.flows[row.flow], parent)
        if uid in self.missed:
            self.missed.discard(uid)
            self.claims.read_again(uid)
        for message in answer.inbox:
            if message.kind == MessageKind.EVICT:  # the row that would have told of it went with the old run
                execution.mailbox.admit(message)

    def _spawn_new(self, write: Create, answer: Created) -> None:
        if write.uid in self.resident:
            return
        instance = Instance(
            write.uid, 0, write.flow, write.id, State.RUNNING, self.replica.id, False, None, write.arguments,
            write.digest, write.parent, None, None, write.version, write.at, None,
        )  # fmt: skip
        assert write.begun is not None  # noqa: S101
        if len(self.resident) >= self.settings.max_running:  # more were created at once than there is room for
            self._committer.write(Release(write.uid, State.SCHEDULED, self.now()))
            return
        parent = self.resident.get(write.parent) if write.parent is not None else None
        name = (parent.instance.flow, parent.instance.id) if parent is not None else None
        entries = [*sorted(write.initial, key=lambda e: e.seq), write.begun] if write.initial else [write.begun]
        self.spawn(Loaded(instance, entries, [], list(answer.inbox)), self.flows[write.flow], name)

    def spawn(self, loaded: Loaded, flow: FlowFunction[..., Any], parent: tuple[str, str] | None = None) -> Execution:
        """The instance is resident and runs, from the next turn on."""
        execution = Execution(self, self.payloads, flow, loaded, parent)
        self.resident[execution.uid] = execution
        for message in self.early.pop(execution.uid, ()):
            execution.mailbox.admit(message)
        execution.loop.wake()
        return execution

    def _route(self, sent: Sent) -> None:
        """A row that was written into an inbox reaches the instance if it is resident here, else the claim is made
        at once.
        """
        if sent.uid is None or not sent.new:
            return
        execution = self.resident.get(sent.uid)
        if sent.uid in self.suspending and not self._withdrawn(sent.uid):
            self.missed.add(sent.uid)
        elif execution is not None:
            execution.mailbox.admit(sent.message)
        elif sent.owner is None:
            self.claims.notice()
        elif (
            sent.owner == self.replica.id
        ):  # created by the same batch, or claimed and being loaded: `spawn` is to come
            self.early.setdefault(sent.uid, []).append(sent.message)

    def _withdrawn(self, uid: bytes) -> bool:
        """Whether the instance, which waited and was to leave memory, stays: its release is in no batch yet."""
        release = self.suspending[uid]
        execution = self.resident.get(uid)
        if (
            execution is None
            or self.draining
            or execution.leaving is not None
            or not isinstance(release, Release)
            or release.state is not State.SUSPENDED
            or not self._committer.withdraw(release)
        ):
            return False
        del self.suspending[uid]
        execution.stopped = False
        execution.fire(self.now())  # what rang while it was frozen
        if uid in self.missed:
            self.missed.discard(uid)
            self.claims.read_again(uid)
        self.settled(execution)  # it leaves after all, if what came does not wake it
        return True

    def hand_over(self, execution: Execution, to: str) -> None:
        """The instance is given to that replica, to be edited there: as drain, for this one alone."""
        if execution.leaving is not None:
            return
        execution.leaving = to
        self._try_release(execution)
        if execution.uid in self.suspending:
            return

        self.real.call_later(self.settings.drain, self._cut_off, execution)

    def _cut_off(self, execution: Execution) -> None:
        """The steps of who is asked for have had their time: they are ended, and it goes when they have."""

        async def release() -> None:
            tasks = self._steps.cut_off(execution)
            if tasks:
                await asyncio.wait(tasks, timeout=self.stall_limit)
            if self.resident.get(execution.uid) is execution:
                self._try_release(execution, anyway=True)

        if self.resident.get(execution.uid) is execution:
            task = asyncio.Task(release(), loop=self.real)
            self._cutting.add(task)
            task.add_done_callback(self._cutting.discard)

    def _ended(self, finish: Finish) -> None:
        self._waiters.tell(finish.uid, finish.state, finish.outcome)
        self._forget(finish.uid)

    def _dropped(self, uid: bytes, release: Release) -> None:
        if self.suspending.get(uid) is release:
            del self.suspending[uid]
        self._forget(uid)
        if release.due_at is not None:
            self.claims.look_at(release.due_at)
        if uid in self.missed:
            self.missed.discard(uid)
            self.claims.notice()
        self._waiters.look()

    def _forget(self, uid: bytes) -> None:
        execution = self.resident.pop(uid, None)
        if execution is None:
            return
        self._parked.pop(execution, None)
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
        if self._released is not None and not self.resident:
            self._released.set()

    def _open_gates(self) -> None:
        gated, self._gated = self._gated, []
        for execution in gated:
            self.gate(execution)

    def renewed(self) -> None:
        """The lease holds again: steps that waited for that start, and what is due is claimed."""
        self._open_gates()
        self.claims.notice()

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
        self.suspending.pop(execution.uid, None)
        reason = self.payloads.encode_error(StoreRefused(str(error)), execution.flow.name)
        version, process = self.version_of(execution.instance.flow), self._store.system.process
        aside = Release(
            execution.uid, State.BLOCKED, None, (), f"StoreRefused: {error}", version, process, execution.leaving
        )
        for write in writes:
            if isinstance(write, Entry) and write.kind not in PUSHED:
                failed = replace(write, arguments=None, failed=True, outcome=reason)
                done = [w for w in writes if isinstance(w, PendingDrop | Take)]
                return [[failed, *done, Release(execution.uid, State.SCHEDULED, self.now())], [aside]]
            if isinstance(write, Finish):
                return [[replace(write, state=State.FAILED, outcome=reason)], [aside]]
        return [[aside]]

    # ------------------------------------------------------------ unloading

    def _unload_longest_waiting(self) -> None:
        self._unloading = False
        excess = len(self.resident) - len(self.suspending) - self.settings.max_resident
        for execution in list(self._parked):
            if excess <= 0:
                break
            if self.suspend(execution):
                excess -= 1

    def suspend(self, execution: Execution) -> bool:
        """The waiting instance is handed to the committer as nobody's; frozen from now on. False: it is not waiting."""
        uid = execution.uid
        if not execution.waiting or execution.stopped or uid in self.suspending or execution.completed:
            return False
        if execution.due_at is not None and execution.due_at <= self.now():
            return False  # claimed for this and not fired yet: unloaded now, it would be claimed and unloaded for ever
        execution.stopped = True
        version = self.version_of(execution.instance.flow)
        release = Release(uid, State.SUSPENDED, execution.due_at, execution.mailbox.untaken(), version=version)
        self.suspending[uid] = release
        self._parked.pop(execution, None)
        self._committer.write(release)
        return True

    def evict(self, uid: bytes, why: str) -> None:
        """The instance is another's: dropped from memory, nothing is written."""
        execution = self.resident.get(uid)
        self.suspending.pop(uid, None)
        self.missed.discard(uid)
        if execution is not None:
            logger.warning("%r is dropped: %s", execution, why)
            execution.stopped = True
            self._forget(uid)
            self._waiters.look()

    def sweep(self) -> None:
        """Instances that have waited longer than `unload_after` leave memory."""
        after = self.settings.unload_after
        if after is None:
            return
        limit = self.now() - after
        for execution in list(self._parked):
            if execution.parked_at > limit:
                break
            self.suspend(execution)

    # ------------------------------------------------------------ the end

    async def drain(self, seconds: float) -> None:
        """Nothing new starts; running steps may end and are recorded; then everything is nobody's, durably."""
        self.draining = True
        if (looking := self.claims.stop()) is not None:
            await asyncio.gather(looking, return_exceptions=True)
        self._released = asyncio.Event()
        if not self.resident:
            return
        for execution in list(self.resident.values()):
            self._try_release(execution)
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._released.wait()
        except TimeoutError:
            pass
        tasks = self._steps.cut_off()
        if tasks:
            logger.warning(
                "drain: %d steps did not end within %g s; they are cut off and begin again elsewhere",
                len(tasks),
                seconds,
            )
            await asyncio.wait(tasks, timeout=self.stall_limit)
        for execution in list(self.resident.values()):
            self._try_release(execution, anyway=True)
        await self._committer.drained(self.settings.lease)

    def _try_release(self, execution: Execution, *, anyway: bool = False) -> None:
        """An instance without a running step is nobody's, to go on where its row says."""
        uid = execution.uid
        if uid in self.suspending or execution.stopped or (not anyway and (execution.running or execution.completed)):
            return
        for op in execution.to_go:
            if isinstance(op, StepOp) and op.row and op.state == ASKED:
                op.put_row()  # an intent of which it is known that nothing was begun
        execution.stopped = True
        waiting = execution.waiting and not execution.completed
        state = State.SUSPENDED if waiting else State.SCHEDULED
        seen = execution.mailbox.untaken() if waiting else ()
        version = self.version_of(execution.instance.flow)
        release = Release(
            uid, state, execution.due_at if waiting else self.now(), seen, version=version, to=execution.leaving
        )
        self.suspending[uid] = release
        self._committer.write(release)

    def abandon(self) -> list[asyncio.Task[None]]:
        """The lease is lost: every execution and step here is dropped, nothing is written. Gives the steps' tasks."""
        self.draining = True
        self.claims.stop()
        tasks = self._steps.cut_off()
        for uid in list(self.resident):
            self.resident[uid].stopped = True
            self._forget(uid)
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
