"""The part of an engine that a lost lease replaces: replica, committer and scheduler, joined anew under a new id.

It puts them together, passes on what they tell, and watches the other replicas. A client has a committer only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from perdure.api.flow import FlowFunction
from perdure.api.info import Health, shown
from perdure.engine.committer import Committer, Outcome
from perdure.engine.editing import Editor
from perdure.engine.payloads import Payloads
from perdure.engine.replica import Replica
from perdure.engine.scheduler import Scheduler
from perdure.engine.settings import Settings
from perdure.engine.timers import EngineTime, Timers
from perdure.engine.waiters import Waiters
from perdure.errors import CommitUnknown, InstanceNotFound, LeaseLost, PerdureError, StoreRefused, StoreUnavailable
from perdure.model.writes import Write
from perdure.stores.contract import Store

logger = logging.getLogger("perdure")

REAP_SECONDS: Final = 0.25
"""So often the other replicas are looked at."""
JOIN_AGAIN_SECONDS: Final = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""So long it waits before it joins again: the first time not at all, then longer each time; the last one repeats. What
makes it lose the lease may be there again at once.
"""
LASTED_SECONDS: Final = 60.0
"""A membership that was lost later than that counts as the first one."""
JOINS_IN: Final = "the lease was lost soon after joining, once more: it joins again in %g s"
TRY_AGAIN_SECONDS: Final = 0.5
"""If the store does not let it join, it is tried again so soon."""
RETIRE: Final = 200
"""So many ended instances are removed at a time."""
RETIRE_SECONDS: Final = 60.0
"""So often it is looked for those that ended long enough ago."""


class Membership:
    """See the module. One per engine, from its start to its end."""

    def __init__(
        self, store: Store, payloads: Payloads, flows: Mapping[str, FlowFunction[..., Any]], settings: Settings
    ) -> None:
        self.real = asyncio.get_running_loop()
        self.time = EngineTime(store.system.clock)
        self.now = self.time.now
        self.waiters = Waiters(store, self.is_resident)
        self.committer = Committer(store, self, self.real)
        self.replica: Replica | None = None
        self._joining: Replica | None = None
        """What has begun to join: it leaves too if it is cut off."""
        self.scheduler: Scheduler | None = None
        self.paused: str | None = None
        """Why the store takes no writes now."""
        self.hung: tuple[int, ...] = ()
        """Processes that hold the database and do not go on."""
        self.lost_error: LeaseLost | None = None
        """The lease was lost, and joining again has not succeeded yet."""
        self._store = store
        self._payloads = payloads
        self._flows = flows
        self._settings = settings
        self.lane = settings.lane
        self._timers = Timers(self.now, self.real, store.system.clock)
        self.editor = Editor(store, self.now, self._look_elsewhere)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._joined_at = float("-inf")
        self._lost_soon = 0
        """How many memberships in a row have not lasted."""

    async def execute(self) -> None:
        """A member of the store that runs flows; joins again whenever the lease is lost."""
        await self._join()
        self._spawn(self._reap_always())
        if self._settings.retention is not None:
            self._spawn(self._retire_always(self._settings.retention))

    async def _join(self) -> None:
        settings = self._settings
        replica = Replica(
            self._store, self, self.time, lease=settings.lease, stall_limit=settings.stall_limit,
            flows=settings.lanes(self._flows),
            running=self._blocking,
        )  # fmt: skip
        self._joining = replica
        await replica.join()
        committer = Committer(self._store, self, self.real, replica.id, replica.epoch)
        self.replica, self.committer, self.lost_error, self.paused = replica, committer, None, None
        self._joining = None
        await self._reap()
        self.scheduler = Scheduler(
            self._store, committer, replica, self._timers, self.waiters, self._payloads, self._flows, settings,
            self.now, self._read,
        )  # fmt: skip
        self.scheduler.claims.start()
        self._joined_at = self._store.system.clock.monotonic()

    async def health(self, timeout: float) -> Health:
        """See `Engine.health`."""
        if self.lost_error is not None:
            raise self.lost_error
        clock = self._store.system.clock
        begun = clock.monotonic()
        await asyncio.sleep(0)
        lag = clock.monotonic() - begun
        try:
            async with asyncio.timeout(timeout):
                await self._store.check()
        except TimeoutError:
            if not self.hung:
                raise StoreUnavailable(f"the store has not answered within {timeout:g} s") from None
        except StoreUnavailable:
            if not self.hung:  # else what is seen says more: it names who holds the database
                raise
        replica, scheduler = self.replica, self.scheduler
        running, parked = scheduler.counts() if scheduler is not None else (0, 0)
        return Health(
            replica=replica.id if replica is not None else "client",
            lease_left=timedelta(seconds=replica.left() if replica is not None else 0.0),
            paused=self.paused,
            loop_lag=timedelta(seconds=lag),
            running=running,
            parked=parked,
            blocked=scheduler.leaving.blocked_count if scheduler is not None else 0,
            hung=self.hung,
        )

    def _blocking(self) -> str:
        return self.scheduler.blocking_step() if self.scheduler is not None else ""

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.Task(work, loop=self.real)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def is_resident(self, uid: bytes) -> bool:
        """Whether the instance is in this engine's memory."""
        return self.scheduler is not None and uid in self.scheduler.resident

    async def close(self, drain: float, error: PerdureError) -> None:
        """Running steps had up to `drain` seconds, everything is written and nobody's; who still waits gets the
        error.
        """
        if self.scheduler is not None and self.replica is not None and not self.replica.gone:
            await self.scheduler.drain(drain)
        if self.paused is None:
            await self.committer.drained(self._settings.lease)
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.committer.give_up()
        if self.scheduler is not None:
            self.scheduler.abandon()  # what could not be given back is left to others, but nothing to the collector
        self.committer.stop(error)
        self.waiters.close(error)
        self._timers.close()
        if self.scheduler is not None:
            self.scheduler.close()
        for replica in (self.replica, self._joining):
            if replica is not None:
                await self._leave(replica)

    async def _leave(self, replica: Replica) -> None:
        await replica.stop()
        if not replica.gone:
            try:
                await self._store.leave(replica.id)
            except PerdureError as away:  # it may also be that the answer was lost
                logger.warning("the store is away; others take over when the lease is over: %s", away)

    # ------------------------------------------------------------ what committer, replica and store tell

    def large_bytes(self) -> int:
        """See `CommitterHost`."""
        large, self._payloads.large = self._payloads.large, 0
        return large

    def committed(self, writes: list[Write], answers: Sequence[Outcome]) -> None:
        """See `CommitterHost`."""
        if self.scheduler is not None:
            self.scheduler.committed(writes, answers)

    def holding_changed(self, reason: str | None) -> None:
        """See `CommitterHost`."""
        if reason != self.paused:
            if reason is None:
                logger.info("the store takes writes again")
            else:
                logger.warning("paused: %s", reason)
        self.paused = reason
        if self.scheduler is not None:
            self.scheduler.holding_changed(holding=reason is not None)

    def refused(self, writes: list[Write], error: StoreRefused) -> list[list[Write]]:
        """See `CommitterHost`."""
        return self.scheduler.refused(writes, error) if self.scheduler is not None else []

    def renewed(self) -> None:
        """See `ReplicaHost`."""
        if self.scheduler is not None:
            self.scheduler.renewed()

    def changed_elsewhere(self) -> None:
        """Somebody else wrote to the store. Called from any thread."""
        try:
            self.real.call_soon_threadsafe(self._look_elsewhere)
        except RuntimeError:  # the loop is closed
            return

    def _look_elsewhere(self) -> None:
        if not self._closed:
            if self.scheduler is not None:
                self.scheduler.claims.notice()
            self.waiters.look()

    # ------------------------------------------------------------ a lost lease

    def lost(self, error: LeaseLost) -> None:
        """See `ReplicaHost` and `CommitterHost`: everything here is dropped, and the engine joins again under a new
        id.
        """
        if self.lost_error is not None or self._closed or self.replica is None:
            return
        logger.error("the lease was lost; all flows of this replica are dropped here and it joins again: %s", error)
        self.lost_error = error
        self.replica.gone = True
        self.committer.halt()
        steps = self.scheduler.abandon() if self.scheduler is not None else []
        self._spawn(self._join_again(self.committer, steps, self.replica, self.scheduler))

    async def _join_again(
        self,
        committer: Committer,
        steps: list[asyncio.Task[None]],
        old: Replica,
        scheduler: Scheduler | None,
    ) -> None:
        if steps:
            await asyncio.wait(steps, timeout=self._settings.stall_limit)
        await committer.give_up()  # a batch that is being tried again would take its outsiders along
        await old.stop()
        if scheduler is not None:
            scheduler.close()
        pause = self._pause()
        while True:
            try:
                await self._store.leave(old.id)  # nothing is left there if it was taken over
                await asyncio.sleep(pause)
                await self._join()
                break
            except PerdureError as error:
                logger.warning("joining again is tried until it succeeds: %s", error)
                await asyncio.sleep(TRY_AGAIN_SECONDS)
        for (
            write,
            told,
        ) in committer.take_outside():  # what outsiders asked for needs no lease: it is made good under the new id
            self.committer.write_and_tell(write, told)

    def _pause(self) -> float:
        """Seconds to wait before joining again: none, unless the last memberships were lost soon after they began."""
        if self._store.system.clock.monotonic() - self._joined_at >= LASTED_SECONDS:
            self._lost_soon = 0
        seconds = JOIN_AGAIN_SECONDS[min(self._lost_soon, len(JOIN_AGAIN_SECONDS) - 1)]
        self._lost_soon += 1
        if seconds:
            logger.warning(JOINS_IN, seconds)
        return seconds

    # ------------------------------------------------------------ the others

    async def _reap_always(self) -> None:
        while True:
            await asyncio.sleep(REAP_SECONDS * self._store.system.clock.calm)
            if self.lost_error is None:
                await self._reap()

    async def _reap(self) -> None:
        assert self.replica is not None  # noqa: S101
        try:
            reaped = await self._store.reap(self.replica.id, kill_hung=self._settings.kill_hung)
        except (StoreUnavailable, CommitUnknown) as error:
            logger.debug("other replicas cannot be looked at now: %s", error)
            return
        except Exception:
            logger.exception("looking at other replicas failed, tried again")
            return
        if reaped.taken:
            logger.warning("took over the instances of %s", ", ".join(reaped.taken))
            self._look_elsewhere()
        self._name_hung([(h.pid, h.replica) for h in reaped.hung])

    async def _retire_always(self, retention: float) -> None:
        """Instances that ended longer ago than that are removed, a few at a time."""
        pause = min(RETIRE_SECONDS, retention / 4) if retention else RETIRE_SECONDS
        while True:
            gone = 0
            if self.lost_error is None and self.paused is None and self.replica is not None:
                try:
                    now = self.now()
                    gone = await self._store.retire(
                        self.replica.id, self.committer.epoch, before=now - retention, now=now, limit=RETIRE
                    )
                except (StoreUnavailable, CommitUnknown, LeaseLost) as error:
                    logger.debug("nothing can be retired now: %s", error)
                except Exception:
                    logger.exception("retiring instances failed, tried again")
            if gone < RETIRE:
                await self._retire_pause(pause)

    async def _retire_pause(self, pause: float) -> None:
        rung = asyncio.Event()
        alarm = self._timers.at(self.now() + pause, rung.set)
        try:
            await rung.wait()
        finally:
            self._timers.put_off(alarm)

    def _name_hung(self, found: Sequence[tuple[int, str]]) -> None:
        for pid, replica in found:
            if pid not in self.hung:
                logger.error(
                    "process %d (replica %s) hangs and holds the database: nobody can write until it goes on or is killed "
                    "(kill_hung=True would do that)",
                    pid,
                    replica,
                )
        self.hung = tuple(pid for pid, _ in found)

    async def _read(self, what: str, flow: str, id: str, key: str | None) -> Any:
        """What the store knows of another instance, for a flow that journals it."""
        row = await self._store.instance(flow, id)
        if row is None:
            raise InstanceNotFound(flow, id)
        if what == "state":
            return shown(row)
        values = await self._store.exposed(row.uid)
        return {k: self._payloads.decode(v) for k, v in values.items() if key is None or k == key}
