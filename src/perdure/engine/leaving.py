"""Who leaves memory, and how: who has waited longest, who is asked for elsewhere, who is blocked; at a drain all.

An instance that leaves is frozen until its release is durable, and stays if it can be woken before. How memory is freed
is the scheduler's and `ending.unload`'s.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from perdure.engine.committer import Committer
from perdure.engine.operations import ASKED
from perdure.engine.stepping import StepOp
from perdure.engine.steps import StepRunner
from perdure.errors import PerdureError
from perdure.model.records import State
from perdure.model.writes import Continue, Release

if TYPE_CHECKING:
    from perdure.engine.execution import Execution
    from perdure.engine.scheduler import Scheduler

logger = logging.getLogger("perdure")


class Leaving:
    """See the module. One per scheduler."""

    def __init__(self, scheduler: Scheduler, committer: Committer, steps: StepRunner, process: str) -> None:
        self._scheduler = scheduler
        self._committer = committer
        self._steps = steps
        self._process = process
        self._settings = scheduler.settings
        self.suspending: dict[bytes, Release | Continue] = {}
        """Frozen until this write is durable."""
        self.missed: set[bytes] = set()
        """Something came for these while they were frozen."""
        self._parked: dict[Execution, None] = {}
        """Who waits, the longest first."""
        self._unloading = False
        self._cutting: set[asyncio.Task[None]] = set()
        self._emptied: asyncio.Event | None = None
        self.blocked_count = 0

    # ------------------------------------------------------------ who waits

    def settled(self, execution: Execution) -> None:
        """The execution waits and could be unloaded."""
        scheduler, parked = self._scheduler, self._parked
        parked.pop(execution, None)
        parked[execution] = None
        execution.parked_at = scheduler.now()
        scheduler.claims.made_room()
        if scheduler.draining or execution.leaving is not None:
            self.try_release(execution)
        elif len(scheduler.resident) > self._settings.max_resident and not self._unloading:
            self._unloading = True
            scheduler.real.call_soon(self._unload_longest_waiting)

    def _unload_longest_waiting(self) -> None:
        self._unloading = False
        excess = len(self._scheduler.resident) - len(self.suspending) - self._settings.max_resident
        for execution in list(self._parked):
            if excess <= 0:
                break
            if self.suspend(execution):
                excess -= 1

    def sweep(self) -> None:
        """Instances that have waited longer than `unload_after` leave memory."""
        after = self._settings.unload_after
        if after is None:
            return
        limit = self._scheduler.now() - after
        for execution in list(self._parked):
            if execution.parked_at > limit:
                break
            self.suspend(execution)

    def suspend(self, execution: Execution) -> bool:
        """The waiting instance is handed to the committer as nobody's; frozen from now on. False: it is not waiting."""
        uid = execution.uid
        if not execution.waiting or execution.stopped or uid in self.suspending or execution.completed:
            return False
        if execution.due_at is not None and execution.due_at <= self._scheduler.now():
            return False  # claimed for this and not fired yet: unloaded now, it would be claimed and unloaded for ever
        version = self._scheduler.version_of(execution.instance.flow)
        self._freeze(
            execution,
            Release(
                uid,
                execution.instance.term,
                State.SUSPENDED,
                execution.due_at,
                execution.mailbox.untaken(),
                version=version,
            ),
        )
        self._parked.pop(execution, None)
        return True

    def withdrawn(self, uid: bytes) -> bool:
        """Whether the instance, which waited and was to leave memory, stays: its release is in no batch yet."""
        release = self.suspending[uid]
        execution = self._scheduler.resident.get(uid)
        if (
            execution is None
            or self._scheduler.draining
            or execution.leaving is not None
            or not isinstance(release, Release)
            or release.state is not State.SUSPENDED
            or not self._committer.withdraw(release)
        ):
            return False
        del self.suspending[uid]
        execution.stopped = False
        execution.fire(self._scheduler.now())  # what rang while it was frozen
        self.read_what_was_missed(uid)
        self.settled(execution)  # it leaves after all, if what came does not wake it
        return True

    def read_what_was_missed(self, uid: bytes) -> None:
        """What came while the instance was frozen, which is not any more, is read soon."""
        if uid in self.missed:
            self.missed.discard(uid)
            self._scheduler.claims.read_again(uid)

    # ------------------------------------------------------------ who goes elsewhere

    def hand_over(self, execution: Execution, to: str) -> None:
        """The instance is given to that replica, to be edited there: as drain, for this one alone."""
        if execution.leaving is not None:
            return
        execution.leaving = to
        self.try_release(execution)
        if execution.uid not in self.suspending:
            self._scheduler.real.call_later(self._settings.drain, self._cut_off, execution)

    def _cut_off(self, execution: Execution) -> None:
        """The steps of who is asked for have had their time: they are ended, and it goes when they have."""
        resident = self._scheduler.resident

        async def release() -> None:
            tasks = self._steps.cut_off(execution)
            if tasks:
                await asyncio.wait(tasks, timeout=self._settings.stall_limit)
            if resident.get(execution.uid) is execution:
                self.try_release(execution, anyway=True)

        if resident.get(execution.uid) is execution:
            task = asyncio.Task(release(), loop=self._scheduler.real)
            self._cutting.add(task)
            task.add_done_callback(self._cutting.discard)

    def try_release(self, execution: Execution, *, anyway: bool = False) -> None:
        """An instance without a running step is nobody's, to go on where its row says."""
        uid = execution.uid
        if uid in self.suspending or execution.stopped or (not anyway and (execution.running or execution.completed)):
            return
        for op in execution.to_go:
            if isinstance(op, StepOp) and op.row and op.state == ASKED:
                op.put_row()  # an intent of which it is known that nothing was begun
        waiting = execution.waiting and not execution.completed
        state = State.SUSPENDED if waiting else State.SCHEDULED
        due_at = execution.due_at if waiting else self._scheduler.now()
        seen = execution.mailbox.untaken() if waiting else ()
        version = self._scheduler.version_of(execution.instance.flow)
        self._freeze(
            execution, Release(uid, execution.instance.term, state, due_at, seen, version=version, to=execution.leaving)
        )

    def blocked(self, execution: Execution, error: BaseException) -> None:
        """The instance is set aside, visibly, with the reason; nothing of it is lost."""
        uid = execution.uid
        if uid in self.suspending or uid not in self._scheduler.resident:
            return
        trace = None if isinstance(error, PerdureError) else error
        logger.error("%r is blocked: %s", execution, error, exc_info=trace)
        self.blocked_count += 1
        self._steps.cut_off(execution)
        self._freeze(execution, self.aside(execution, f"{type(error).__name__}: {error}"))

    def aside(self, execution: Execution, reason: str) -> Release:
        """The write that sets the instance aside."""
        version = self._scheduler.version_of(execution.instance.flow)
        return Release(
            execution.uid,
            execution.instance.term,
            State.BLOCKED,
            None,
            (),
            reason,
            version,
            self._process,
            execution.leaving,
        )

    def _freeze(self, execution: Execution, release: Release) -> None:
        execution.stopped = True
        self.give_back(release)

    def give_back(self, release: Release) -> None:
        """An instance of this replica's is to be nobody's: until it is, it is not brought into memory here."""
        self.suspending[release.uid] = release
        self._committer.write(release)

    async def drain(self, seconds: float) -> None:
        """Running steps had so long to end and to be recorded; then everything is nobody's, durably."""
        self._emptied = asyncio.Event()
        resident = self._scheduler.resident
        if not resident:
            return
        for execution in list(resident.values()):
            self.try_release(execution)
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._emptied.wait()
        except TimeoutError:
            pass
        tasks = self._steps.cut_off()
        if tasks:
            logger.warning(
                "drain: %d steps did not end within %g s; they are cut off and begin again elsewhere",
                len(tasks),
                seconds,
            )
            await asyncio.wait(tasks, timeout=self._settings.stall_limit)
        for execution in list(resident.values()):
            self.try_release(execution, anyway=True)
        await self._committer.drained(self._settings.lease)

    # ------------------------------------------------------------ who has left

    def released(self, release: Release) -> None:
        """The release is durable: the instance is nobody's, or another's."""
        uid, claims = release.uid, self._scheduler.claims
        if self.suspending.get(uid) is release:
            del self.suspending[uid]
        self._scheduler.forget(uid)
        if release.due_at is not None:
            claims.look_at(release.due_at)
        if uid in self.missed:
            self.missed.discard(uid)
            claims.notice()

    def evicted(self, uid: bytes) -> None:
        """The instance is another's, and nothing of it is written here any more."""
        self.suspending.pop(uid, None)
        self.missed.discard(uid)

    def gone(self, execution: Execution) -> None:
        """The instance is not in memory any more."""
        self._parked.pop(execution, None)
        if self._emptied is not None and not self._scheduler.resident:
            self._emptied.set()
