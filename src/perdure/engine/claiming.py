"""Finds what this replica may run: claims instances that nobody owns, reads what was sent to those it has.

It moves rows into the scheduler; what runs and when is not decided here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from perdure.engine.committer import Committer
from perdure.engine.timers import Timers
from perdure.errors import PerdureError, StoreUnavailable
from perdure.model.records import Instance, Loaded, Message, MessageKind, State
from perdure.model.writes import Finish, Release
from perdure.stores.contract import Store

if TYPE_CHECKING:
    from perdure.engine.execution import Execution
    from perdure.engine.scheduler import Scheduler

logger = logging.getLogger("perdure")

CLAIM: Final = 500
"""Instances claimed at a time."""
LOAD: Final = 100
"""Of these so many journals are in memory at a time before they run."""
POLL_SECONDS: Final = 1.0
"""So long until blocked instances that are left are looked at, and until what went wrong twice is tried again."""
RETRY_SECONDS: Final = 0.05
"""So soon it is asked again after its first failure."""
THOROUGH_SECONDS: Final = 10.0
"""So often the claim also looks for messages whose wake-up was lost."""
BLOCKED: Final = 50
"""So many blocked instances are looked at at a time."""
BLOCKED_SECONDS: Final = 5.0
"""When all were looked at, so long until they are again: others may have blocked more since."""


class Claims:
    """See the module. One per scheduler."""

    def __init__(self, scheduler: Scheduler, store: Store, committer: Committer, timers: Timers) -> None:
        self._scheduler = scheduler
        self._store = store
        self._committer = committer
        self._timers = timers
        self._now = scheduler.now
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._looks_at = float("inf")
        self._full = False
        self.unsure = False
        """An answer of the store was lost: what it gave may be unknown here."""
        self._again: set[bytes] = set()
        """Instances here whose inbox is to be read again."""
        self._withheld = False
        """Nothing was claimed the last time, for the lease may have been over."""
        self._unborn: set[bytes] = set()
        """Who was called and is not here: created by now, it may be, and the answer not here yet."""
        self.lanes = scheduler.settings.lanes(scheduler.flows)
        """What is served here: for each lane the identity of the code that runs its flow."""
        self._blocked_at = float("inf")
        self._blocked_after = b""
        """How far the blocked instances have been looked at."""
        self._pages: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Work is looked for, now and always."""
        self._task = asyncio.Task(self._look_for_work(), loop=self._scheduler.real)

    def stop(self) -> asyncio.Task[None] | None:
        """Nothing more is claimed, once the task that is given has ended."""
        self._changed.set()
        if self._task is not None:
            self._task.cancel()
        return self._task

    def notice(self) -> None:
        """Somebody has written something that may be work; called in the real loop only."""
        self._changed.set()

    def lease_holds(self) -> None:
        """The lease was renewed: what was not claimed for fear that it is over is claimed now. Blocked instances have no
        alarm of their own, which would always ring.
        """
        if self._withheld or self._now() >= self._blocked_at:
            self._changed.set()

    def born(self, uid: bytes) -> None:
        """The instance is in memory."""
        if uid in self._unborn:
            self._unborn.discard(uid)
            self.read_again(uid)

    def read_again(self, uid: bytes) -> None:
        """The instance's inbox is read soon: something may have come while it could not be told."""
        self._again.add(uid)
        self._changed.set()

    def read_on(self, execution: Execution) -> None:
        """The execution gets the next page of its journal."""
        page = asyncio.Task(self._read_page(execution), loop=self._scheduler.real)
        self._pages.add(page)
        page.add_done_callback(self._pages.discard)

    async def _read_page(self, execution: Execution) -> None:
        while not execution.stopped:
            try:
                entries, more = await self._store.entries(execution.uid, execution.number, execution.read)
                execution.page(entries, more=more)
                return
            except StoreUnavailable as error:
                logger.warning("%r: its journal cannot be read now, tried again: %s", execution, error)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception as error:
                if not execution.stopped:  # else the store was closed meanwhile
                    execution.block(error)
                return

    async def _look_for_work(self) -> None:
        thorough_at = self._now() + THOROUGH_SECONDS
        self._blocked_at = self._now()
        while not self._scheduler.draining:
            self._changed.clear()
            wait = self._store.poll * self._store.system.clock.calm
            try:
                if self.unsure:
                    await self._find_what_is_ours()
                await self._read_wakeups()
                thorough = self._now() >= thorough_at
                if thorough:
                    thorough_at = self._now() + THOROUGH_SECONDS
                claimed, next_due = await self._claim(thorough=thorough)
                if claimed:
                    continue
                if self._now() >= self._blocked_at:
                    self._blocked_at = self._now() + (BLOCKED_SECONDS if await self._claim_blocked() else POLL_SECONDS)
                if next_due is not None:
                    self.look_at(next_due)
                self._scheduler.leaving.sweep()
            except Exception as error:
                trace = None if isinstance(error, PerdureError) else error
                logger.warning("work cannot be looked for now, tried again: %s", error, exc_info=trace)
                wait = POLL_SECONDS if self.unsure else RETRY_SECONDS
                self.unsure = True
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _find_what_is_ours(self) -> None:
        """After a lost answer: what a claim may have given to this replica is here, and no message was overlooked."""
        scheduler, replica = self._scheduler, self._scheduler.replica.id
        await self._committer.settle()  # a claim whose answer was lost may be on its way still
        await self._read_inboxes(list(scheduler.resident))
        rows: list[Instance] = []
        ours: list[Instance] = []
        while True:
            rows = await self._store.find(
                flow=None, states=[State.RUNNING], since=None, after=rows[-1].uid if rows else None, limit=CLAIM
            )
            ours += [row for row in rows if row.owner == replica]
            if len(rows) < CLAIM:
                break
        written = self._committer.position
        while self._committer.durable < written:  # what is being given back is ours still  # noqa: ASYNC110
            await asyncio.sleep(RETRY_SECONDS)
        self.unsure = False
        lost = [row for row in ours if row.uid not in scheduler.resident]
        before = [State.BLOCKED if row.reason is not None else State.SCHEDULED for row in lost]
        await self._load([msgspec.structs.replace(r, state=s) for r, s in zip(lost, before, strict=True)])

    def look_at(self, when: float) -> None:
        """Work is looked for at this time at the latest. One alarm, however many instances are due at some time."""
        if when < self._looks_at:
            self._looks_at = when
            self._timers.at(when, self._look_now)

    def _look_now(self) -> None:
        self._looks_at = float("inf")
        self._changed.set()

    async def _claim_blocked(self) -> bool:
        """A few blocked instances that this code has not tried yet run, if there is nothing else to do: so many replicas
        that start at once do not replay all that is blocked at once. True: all were looked at.
        """
        scheduler = self._scheduler
        room = min(self._room(), BLOCKED)
        if room <= 0 or scheduler.holding or not scheduler.replica.safe_to_start():
            return False
        rows, self._blocked_after = await self._store.claim_blocked(
            scheduler.replica.id, self._committer.epoch, flows=self.lanes, process=self._store.system.process,
            after=self._blocked_after, limit=room,
        )  # fmt: skip
        if rows:
            logger.info("%d blocked instances are tried with the code of this replica", len(rows))
        await self._load(rows)
        return not self._blocked_after

    async def _read_wakeups(self) -> None:
        again, self._again = self._again, set()
        uids = [*await self._store.wakeups(self._scheduler.replica.id, self._committer.epoch), *again]
        if self._committer.durable == self._committer.position:
            self._unborn.clear()
        if uids:
            await self._read_inboxes(uids)

    async def _read_inboxes(self, uids: Iterable[bytes]) -> None:
        resident = self._scheduler.resident
        asked = {uid: resident.get(uid) for uid in uids}
        for uid, messages in (await self._store.inbox(list(asked))).items():
            execution = resident.get(uid)
            if execution is None:
                self._unborn.add(uid)
                continue
            if execution is not asked[uid]:
                self.read_again(uid)  # what was read may have been taken by then, in the run before
                continue
            if uid in self._scheduler.leaving.suspending:
                self._scheduler.leaving.missed.add(uid)
                continue
            for message in messages:
                execution.mailbox.admit(message)

    async def _claim(self, *, thorough: bool) -> tuple[int, float | None]:
        room = self._room()
        self._withheld = not self._scheduler.replica.safe_to_start()
        if room <= 0 or self._scheduler.holding or self._withheld:
            return 0, None
        rows, next_due = await self._store.claim(
            self._scheduler.replica.id,
            self._committer.epoch,
            flows=self.lanes,
            now=self._now(),
            limit=min(room, CLAIM),
            thorough=thorough,
        )
        await self._load(rows)
        return len(rows), next_due

    def _room(self) -> int:
        """How many more may run here. Who only waits keeps nobody out: beyond `max_resident` it leaves memory."""
        resident, limit = self._scheduler.resident, self._scheduler.settings.max_running
        room = limit - len(resident)
        if room <= 0:
            now = self._now()
            room = limit - sum(
                1 for run in resident.values() if not run.waiting or (run.due_at is not None and run.due_at <= now)
            )
        self._full = room <= 0
        return room

    def made_room(self) -> None:
        """An instance runs here no more; if others were left out for lack of room, they are claimed."""
        if self._full:
            self._full = False
            self._changed.set()

    async def _load(self, rows: Sequence[Instance]) -> None:
        """These instances, which this replica owns and which stood so before, are in memory and run."""
        before = {row.uid: row for row in rows}
        left = sorted(before)
        while left:
            asked = left[:LOAD]
            leaving = set(filter(self._is_leaving, asked))  # by the time that the answer comes they may have left
            found = await self._store.load(asked)
            # Of long journals only a part comes at a time: what is not there yet is asked for again.
            done = found[-1].instance.uid if found else asked[-1]
            left = left[asked.index(done) + 1 :]
            parents = await self._names([loaded.instance.parent for loaded in found])
            for loaded in found:
                uid = loaded.instance.uid
                if loaded.more:
                    loaded = await self._up_to_its_beginning(loaded)
                if loaded.instance.owner == self._scheduler.replica.id:
                    if uid in leaving or self._is_leaving(uid):
                        # Claimed before the answer has come by which it was let go: it is found when that is here.
                        self.unsure = True
                        self._changed.set()
                    elif uid not in self._scheduler.resident:
                        self._run_claimed(before[uid], loaded, parents)
                self._scheduler.early.pop(uid, None)
            await asyncio.sleep(0)  # they run before more journals are read

    def _is_leaving(self, uid: bytes) -> bool:
        here = self._scheduler.resident.get(uid)
        return uid in self._scheduler.leaving.suspending or (here is not None and here.stopped)

    async def _up_to_its_beginning(self, loaded: Loaded) -> Loaded:
        """With a page more, if all that came was put there beforehand: else it would not be known whether it has begun."""
        while loaded.more and loaded.entries[-1].seq < 0:
            row = loaded.instance
            entries, more = await self._store.entries(row.uid, row.run, loaded.entries[-1].seq)
            loaded = msgspec.structs.replace(loaded, entries=[*loaded.entries, *entries], more=more)
        return loaded

    async def _names(self, uids: Iterable[bytes | None]) -> dict[bytes, tuple[str, str]]:
        """Flow and id of these instances, for `current().parent`."""
        wanted = {uid for uid in uids if uid is not None}
        return {row.uid: (row.flow, row.id) for row in await self._store.instances(list(wanted))} if wanted else {}

    def _run_claimed(self, before: Instance, loaded: Loaded, parents: Mapping[bytes, tuple[str, str]]) -> None:
        flow = self._scheduler.flows[before.flow] if before.lane in self.lanes else None
        cancel = next((m for m in loaded.inbox if m.kind == MessageKind.CANCEL), None)
        begun = loaded.more or (bool(loaded.entries) and loaded.entries[-1].seq >= 0)
        if cancel is not None and (flow is None or before.state is State.BLOCKED or not begun):
            self._cancel_without_code(loaded.instance, cancel)
            return
        if flow is None:
            release = Release(
                before.uid, loaded.instance.term, before.state, before.due_at, (), before.reason, before.version
            )
            self._scheduler.leaving.give_back(release)
            return
        if not begun:
            entry = self._scheduler.begun(
                before.uid, before.run, before.flow, self._scheduler.version_of(before.flow), self._now()
            )
            number = self._committer.write(entry)
            loaded = Loaded(loaded.instance, [*loaded.entries, entry], loaded.pending, loaded.inbox)
            self._scheduler.spawn(loaded, flow, parents.get(before.parent or b"")).gate = number
            return
        execution = self._scheduler.spawn(loaded, flow, parents.get(before.parent or b""))
        execution.restarted = True
        execution.had_waited = before.state is State.SUSPENDED

    def _cancel_without_code(self, instance: Instance, request: Message) -> None:
        self._committer.write(
            Finish(instance.uid, instance.term, State.CANCELLED, request.body, self._now(), children=True)
        )
