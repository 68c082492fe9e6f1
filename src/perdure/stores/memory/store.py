"""`MemoryStore`: the store's coroutines over `Tables`, under one lock."""

from __future__ import annotations

import heapq
import os
import threading
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from perdure.errors import ForkedEngine, LeaseLost, NotSupported
from perdure.model.records import Entry, Instance, Loaded, Message, State
from perdure.stores.contract import BUDGET, Reaped
from perdure.stores.leases import Lease
from perdure.stores.memory.life import Life, page
from perdure.stores.memory.tables import Fence, Tables
from perdure.system import System

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from perdure.model.tx import Tx
    from perdure.model.writes import Answer, Batch, Edit, Edited, Outdated, OwnedBy


class MemoryStore:
    """A store in this process's memory; engines that are given the same object share it, in turn or at once."""

    transactions = False
    poll = 1.0

    def __init__(self, system: System | None = None) -> None:
        self.system = system or System()
        self._pid = os.getpid()
        self._lock = threading.Lock()  # engines of one object may live on several loops, and `renew` on a thread
        self._tables = Tables()
        self._lives = self._tables.lives
        self._fences = self._tables.fences
        self._notify: list[Callable[[], None]] = []

    async def open(self) -> None:
        """See Store."""
        self._here()

    async def close(self) -> None:
        """See Store; what is stored stays for the next engine that is given this object."""
        self._here()

    # -- membership

    async def join(self, replica: str, lease: float, flows: Mapping[str, str] | None = None) -> int:
        """See Store."""
        self._here()
        with self._lock:
            if replica not in self._fences:
                self._fences[replica] = Fence(Lease(self.system.clock.boot(), lease))
            fence = self._alive(replica)
            fence.flows = dict(flows or {})
            return fence.epoch

    def renew(self, replica: str, lease: float) -> float:
        """See Store."""
        self._here()
        now = self.system.clock.wall()
        with self._lock:
            self._alive(replica).lease.renewed(self.system.clock.boot(), lease)
        return now

    async def raise_epoch(self, replica: str, epoch: int) -> int:
        """See Store."""
        self._here()
        with self._lock:
            fence = self._alive(replica)
            fence.epoch = max(fence.epoch, epoch) + 1
            return fence.epoch

    async def leave(self, replica: str) -> None:
        """See Store."""
        self._here()
        with self._lock:
            self._free(replica)
            self._fences.pop(replica, None)
        self._changed()

    async def reap(self, me: str, *, kill_hung: bool, limit: int = 1000) -> Reaped:
        """See Store; nobody is ever hung here, and only the lease tells who is dead."""
        self._here()
        taken: list[str] = []
        with self._lock:
            now = self.system.clock.boot()
            mine = self._fences.get(me)
            may_judge = mine is not None and mine.alive and mine.lease.may_judge(now)
            for replica, fence in list(self._fences.items()):
                if replica == me or (fence.alive and not (may_judge and now > fence.lease.until)):
                    continue
                fence.alive = False
                fence.epoch += 1
                self._free(replica)
                del self._fences[replica]
                taken.append(replica)
        if taken:
            self._changed()
        return Reaped(tuple(taken))

    def bury(self, replica: str) -> None:
        """The replica is known to be dead, as the system knows of its own processes: others take over at once."""
        with self._lock:
            if (fence := self._fences.get(replica)) is not None:
                fence.alive = False
        self._changed()

    # -- writing

    async def commit(self, batch: Batch) -> list[Answer]:
        """See Store."""
        self._here()
        with self._lock:
            if batch.replica is not None:
                self._fenced(batch.replica, batch.epoch)
            answers = self._tables.write(batch)
        self._changed(batch.replica)
        return answers

    async def edit(self, replica: str | None, epoch: int, edit: Edit) -> Edited | OwnedBy | Outdated:
        """See Store."""
        self._here()
        with self._lock:
            if replica is not None:
                self._fenced(replica, epoch)
            answer = self._tables.edit(replica, epoch, edit)
        self._changed()
        return answer

    async def retire(self, replica: str, epoch: int, *, before: float, now: float, limit: int) -> int:
        """See Store."""
        self._here()
        with self._lock:
            self._fenced(replica, epoch)
            return self._tables.retire(before, now, limit)

    async def forget(self, flow: str, id: str) -> bool:
        """See Store."""
        self._here()
        with self._lock:
            return self._tables.forget(flow, id)

    async def transact(
        self, replica: str, epoch: int, work: Callable[[Tx], Coroutine[Any, Any, Entry]], *, limit: float
    ) -> Entry:
        """See Store."""
        raise NotSupported("a store in memory has no transactions; use sqlite://")

    async def claim(
        self,
        replica: str,
        epoch: int,
        *,
        flows: Mapping[str, str],
        now: float,
        limit: int,
        thorough: bool = False,
    ) -> tuple[list[Instance], float | None]:
        """See Store."""
        self._here()
        with self._lock:
            self._fenced(replica, epoch)
            others = [fence.flows for name, fence in self._fences.items() if fence.alive and name != replica]
            pins = _pins(others, flows)
            elsewhere = frozenset[str]().union(*others) - flows.keys()
            found = self._candidates(pins, elsewhere, now, limit, thorough)
            claimed = [self._claim(replica, uid, flows) for uid in found]
            due = [at for lane, pin in pins.items() for at, _ in self._first_due(lane, pin, None, 1)]
            return claimed, min(due, default=None)

    async def claim_blocked(
        self, replica: str, epoch: int, *, flows: Mapping[str, str], process: str, after: bytes, limit: int
    ) -> tuple[list[Instance], bytes]:
        """See Store."""
        self._here()
        with self._lock:
            self._fenced(replica, epoch)
            if limit <= 0:
                return [], after
            blocked = sorted(
                (uid, flows[life.row.lane])
                for uid, life in self._lives.items()
                if life.row.state is State.BLOCKED and life.row.owner is None and life.row.lane in flows and uid > after
            )
            seen = blocked[:limit]
            may = [uid for uid, version in seen if self._lives[uid].may_be_tried(version, process)]
            last = seen[-1][0] if len(seen) < len(blocked) else b""
            return [self._claim(replica, uid, flows) for uid in may], last

    async def wakeups(self, replica: str, epoch: int) -> list[bytes]:
        """See Store."""
        self._here()
        called = self._tables.wakeups
        if not called:
            return []
        with self._lock:
            uids = [uid for uid in called if self._lives[uid].row.owner == replica]
            if uids:
                self._fenced(replica, epoch)
            for uid in uids:
                del called[uid]
            return uids

    # -- reading

    async def load(self, uids: Sequence[bytes], *, budget: int = BUDGET) -> list[Loaded]:
        """See Store."""
        self._here()
        found: list[Loaded] = []
        left, begun = budget, False
        with self._lock:
            for uid in sorted(uids):
                if (life := self._lives.get(uid)) is None:
                    continue
                if begun and left <= 0:
                    break
                journal = life.journal(life.row.run)
                entries, left = page(journal, left)
                begun = begun or bool(entries)
                more = len(entries) < len(journal)
                found.append(Loaded(life.row, entries, life.operations(), list(life.inbox.values()), more))
        return found

    async def entries(self, uid: bytes, run: int, after: int, *, budget: int = BUDGET) -> tuple[list[Entry], bool]:
        """See Store."""
        self._here()
        with self._lock:
            life = self._lives.get(uid)
            journal = life.journal(run, after) if life is not None else []
        entries, _ = page(journal, budget)
        return entries, len(entries) < len(journal)

    async def inbox(self, uids: Sequence[bytes]) -> dict[bytes, list[Message]]:
        """See Store."""
        self._here()
        with self._lock:
            return {uid: list(life.inbox.values()) if (life := self._lives.get(uid)) else [] for uid in uids}

    async def instance(self, flow: str, id: str) -> Instance | None:
        """See Store."""
        self._here()
        with self._lock:
            uid = self._tables.ids.get((flow, id))
            return None if uid is None else self._lives[uid].row

    async def instances(self, uids: Sequence[bytes]) -> list[Instance]:
        """See Store."""
        self._here()
        return [life.row for uid in uids if (life := self._lives.get(uid)) is not None]

    async def results(self, uids: Sequence[bytes]) -> dict[bytes, Instance | None]:
        """See Store."""
        self._here()
        rows = {uid: life.row if (life := self._lives.get(uid)) is not None else None for uid in uids}
        return {uid: row for uid, row in rows.items() if row is None or row.state.ended or row.state is State.BLOCKED}

    async def exposed(self, uid: bytes) -> Mapping[str, bytes]:
        """See Store."""
        self._here()
        life = self._lives.get(uid)
        return dict(life.exposed) if life else {}

    async def find(
        self, *, flow: str | None, states: Sequence[State] | None, since: float | None, after: bytes | None, limit: int
    ) -> list[Instance]:
        """See Store."""
        self._here()
        with self._lock:
            found = sorted(
                (
                    life.row
                    for life in self._lives.values()
                    if (flow is None or life.row.flow == flow)
                    and (states is None or life.row.state in states)
                    and (since is None or life.row.created_at >= since)
                    and (after is None or life.row.uid > after)
                ),
                key=lambda row: row.uid,
            )
        return found[:limit]

    # -- noticing

    def on_change(self, notify: Callable[[], None]) -> None:
        """See Store."""
        self._notify.append(notify)

    async def check(self) -> None:
        """See Store."""
        self._here()

    # -- inside; the lock is held

    def _here(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedEngine(
                "this process was forked after the store was made; fork first, and open the engine in the child"
            )

    def _changed(self, replica: str | None = None) -> None:
        # Who commits knows by its answers; with one listener there is nobody else to tell, unless a client wrote.
        if len(self._notify) > 1 or (replica is None and self._notify):
            for notify in tuple(self._notify):
                notify()

    def _alive(self, replica: str) -> Fence:
        fence = self._fences.get(replica)
        if fence is None or not fence.alive:
            raise LeaseLost(f"replica {replica} was taken over, or never joined")
        return fence

    def _fenced(self, replica: str, epoch: int) -> None:
        if self._alive(replica).epoch != epoch:
            raise LeaseLost(f"replica {replica} writes with epoch {epoch}, which is over")

    def _free(self, replica: str) -> None:
        now = self.system.clock.wall()
        for life in self._lives.values():
            row = life.row
            if row.owner != replica:
                continue
            life.row = replace(row, owner=None)
            if row.state is State.RUNNING and not row.waiting:
                life.row = replace(life.row, state=State.SCHEDULED, due_at=now)
            self._tables.freed(life, now)

    # -- claiming; the lock is held

    def _claim(self, replica: str, uid: bytes, flows: Mapping[str, str]) -> Instance:
        """The instance is the replica's, and run by its code; gives its row as it was."""
        life = self._lives[uid]
        before = life.row
        version = flows.get(before.lane) or before.version
        life.row = replace(
            before,
            state=State.RUNNING,
            owner=replica,
            waiting=False,
            due_at=None,
            version=version,
            term=before.term + 1,
        )
        self._tables.wakeups.pop(uid, None)
        return before

    def _first_due(
        self, lane: str, pin: frozenset[str], now: float | None, limit: int
    ) -> list[tuple[float, bytes]]:  # fmt: skip
        """The instances of the lane that are due first (of those due by now), and not left to others."""
        heap = self._tables.due.get(lane, [])
        passed: list[tuple[float, bytes]] = []
        found: dict[bytes, float] = {}
        while heap and len(found) < limit and (now is None or heap[0][0] <= now):
            at, uid = heapq.heappop(heap)
            life = self._lives.get(uid)
            if life is None or life.row.owner is not None or life.row.due_at != at:
                continue
            passed.append((at, uid))
            if life.row.version not in pin:
                found[uid] = at
        for item in dict.fromkeys(passed):
            heapq.heappush(heap, item)
        return [(at, uid) for uid, at in found.items()]

    def _candidates(
        self, pins: Mapping[str, frozenset[str]], elsewhere: frozenset[str], now: float, limit: int, thorough: bool
    ) -> list[bytes]:  # fmt: skip
        found: dict[bytes, float] = {}
        for lane, pin in pins.items():
            found.update((uid, at) for at, uid in self._first_due(lane, pin, now, limit))
        for uid, at in self._tables.wakeups.items():
            life = self._lives[uid]
            cancelled = life.row.lane not in elsewhere and life.cancelled()
            if life.row.owner is None and (cancelled or _goes_on(life, pins)):
                found[uid] = min(at, found.get(uid, at))
        for uid, life in self._lives.items() if thorough else ():
            if life.row.owner is None and _goes_on(life, pins) and life.unseen():
                at = min(m.sent_at for m in life.inbox.values() if m.mid not in life.seen)
                found[uid] = min(at, found.get(uid, at))
        return sorted(found, key=lambda uid: (found[uid], uid))[:limit]


def _pins(others: Sequence[Mapping[str, str]], flows: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """By lane: the code for it that other live replicas have and that is not the one here. To them is left what it last
    ran.
    """
    return {lane: frozenset(o.get(lane, "") for o in others) - {"", version} for lane, version in flows.items()}


def _goes_on(life: Life, pins: Mapping[str, frozenset[str]]) -> bool:
    """Whether a message is cause enough to claim the instance."""
    row = life.row
    return row.state is State.SUSPENDED and row.lane in pins and row.version not in pins[row.lane]
