"""The memory store: the contract in plain dicts. The reference for every other store, and durable in nothing."""

from __future__ import annotations

import heapq
import os
import threading
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.errors import ForkedEngine, LeaseLost
from perdure.model.records import Entry, Instance, Loaded, Message, MessageKind, Pending, State
from perdure.model.writes import (
    Answer,
    Batch,
    Create,
    Created,
    Existing,
    Finish,
    Finished,
    NotOwned,
    Release,
    Send,
    Sent,
    Unwatch,
    Update,
    Watch,
)
from perdure.stores.contract import Reaped, answer_mid, cancel_mid
from perdure.stores.folding import Folded, Image, by_entry_key
from perdure.stores.leases import Lease
from perdure.system import System

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_DUE = (State.SCHEDULED, State.SUSPENDED)


class _Life:
    """One instance and all that belongs to it."""

    __slots__ = ("children", "entries", "exposed", "inbox", "keys", "mids", "pending", "row", "seen")

    def __init__(self, row: Instance) -> None:
        self.row = row
        self.entries: dict[tuple[int, int], Entry] = {}
        self.pending: dict[tuple[int, str], Pending] = {}
        self.inbox: dict[bytes, Message] = {}
        """Untaken messages by mid, in the order of arrival."""
        self.mids: set[bytes] = set()
        self.keys: dict[str, bytes] = {}
        self.seen: set[bytes] = set()
        self.exposed: dict[str, bytes] = {}
        self.children: list[bytes] = []

    def unseen(self, kind: str | None = None) -> bool:
        """Whether a message (of the kind) is there that is neither taken nor seen."""
        return any(mid not in self.seen and kind in (None, m.kind) for mid, m in self.inbox.items())

    def put(self, message: Message) -> bool:
        """The message is in the inbox, or was (True); False if its key came with another message before."""
        if message.mid in self.mids:
            return True
        if message.kind == MessageKind.MESSAGE and message.key is not None:
            if message.key in self.keys:
                return False
            self.keys[message.key] = message.mid
        self.mids.add(message.mid)
        self.inbox[message.mid] = message
        return True

    def loaded(self) -> Loaded:
        entries = list(self.entries.values())
        by_entry_key(entries)
        pending = [self.pending[k] for k in sorted(self.pending)]
        return Loaded(self.row, entries, pending, list(self.inbox.values()))


class _Fence:
    __slots__ = ("alive", "epoch", "lease")

    def __init__(self, lease: Lease) -> None:
        self.epoch = 1
        self.alive = True
        self.lease = lease


class MemoryStore:
    """A store in this process's memory; engines that are given the same object share it, in turn or at once."""

    def __init__(self, system: System | None = None) -> None:
        self.system = system or System()
        self._pid = os.getpid()
        self._lock = threading.Lock()  # engines of one object may live on several loops, and `renew` on a thread
        self._lives: dict[bytes, _Life] = {}
        self._ids: dict[tuple[str, str], bytes] = {}
        self._early: dict[tuple[str, str], dict[bytes, Message]] = {}
        self._wakeups: dict[bytes, float] = {}
        """Since when each instance is called."""
        self._watches: dict[bytes, dict[bytes, Watch]] = {}
        """By target, then by the mid of the answer; kept until it is taken: a repeated finish tells it again."""
        self._asked: dict[bytes, bytes] = {}
        """The target of each watch, by the mid of its answer."""
        self._asker: dict[bytes, set[bytes]] = {}
        """The mids of an asker's watches."""
        self._due: dict[str, list[tuple[float, bytes]]] = {}
        """A heap for each flow type; a row counts only while its instance still says the same."""
        self._fences: dict[str, _Fence] = {}
        self._notify: list[Callable[[], None]] = []

    async def open(self) -> None:
        """See Store."""
        self._here()

    async def close(self) -> None:
        """See Store; what is stored stays for the next engine that is given this object."""
        self._here()

    # -- membership

    async def join(self, replica: str, lease: float) -> int:
        """See Store."""
        self._here()
        with self._lock:
            fence = self._fences.get(replica)
            if fence is None:
                fence = self._fences[replica] = _Fence(Lease(self.system.clock.boot(), lease))
            self._alive(replica)
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

    # -- writing

    async def commit(self, batch: Batch) -> list[Answer]:
        """See Store."""
        self._here()
        with self._lock:
            if batch.replica is not None:
                self._fenced(batch.replica, batch.epoch)
            answers: list[Answer] = [None] * len(batch.writes)
            fold = Folded(batch.writes)
            if fold.creates:
                self._create(batch, fold, answers)
            lives = self._lives
            for entry in fold.entries:
                if (life := lives.get(entry.uid)) is not None:
                    life.entries.setdefault((entry.run, entry.seq), entry)
            self._small_things(fold)
            finished: list[tuple[int, Finish]] = []
            for number, image in fold.images.values():
                answers[number] = self._image(batch, image)
                if type(image) is Finish and answers[number] is None:
                    finished.append((number, image))
            for number, watch in fold.watches.values():
                answers[number] = self._watch(batch, watch)
            for number, finish in finished:
                answers[number] = Finished(tuple(self._consequences(batch, finish)))
            for number, send in fold.sends:
                answers[number] = self._send(batch, send)
        self._changed(batch.replica)
        return answers

    async def claim(
        self, replica: str, epoch: int, *, flows: Sequence[str], now: float, limit: int, thorough: bool = False
    ) -> tuple[list[Instance], float | None]:
        """See Store."""
        self._here()
        with self._lock:
            self._fenced(replica, epoch)
            claimed: list[Instance] = []
            for uid in self._candidates(frozenset(flows), now, limit, thorough):
                life = self._lives[uid]
                claimed.append(life.row)
                life.row = replace(life.row, state=State.RUNNING, owner=replica, waiting=False, due_at=None)
                self._wakeups.pop(uid, None)
            due = [heap[0][0] for flow in flows if (heap := self._due_heap(flow))]
            return claimed, min(due, default=None)

    async def wakeups(self, replica: str) -> list[bytes]:
        """See Store."""
        self._here()
        if not self._wakeups:
            return []
        with self._lock:
            uids = [uid for uid in self._wakeups if self._lives[uid].row.owner == replica]
            for uid in uids:
                del self._wakeups[uid]
            return uids

    # -- reading

    async def load(self, uids: Sequence[bytes]) -> list[Loaded]:
        """See Store."""
        self._here()
        with self._lock:
            return [life.loaded() for uid in uids if (life := self._lives.get(uid)) is not None]

    async def inbox(self, uids: Sequence[bytes]) -> dict[bytes, list[Message]]:
        """See Store."""
        self._here()
        with self._lock:
            return {uid: list(life.inbox.values()) if (life := self._lives.get(uid)) else [] for uid in uids}

    async def instance(self, flow: str, id: str) -> Instance | None:
        """See Store."""
        self._here()
        uid = self._ids.get((flow, id))
        return None if uid is None else self._lives[uid].row

    async def instances(self, uids: Sequence[bytes]) -> list[Instance]:
        """See Store."""
        self._here()
        return [life.row for uid in uids if (life := self._lives.get(uid)) is not None]

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
            raise ForkedEngine("this process was forked after the store was made; make a store of its own in the child")

    def _changed(self, replica: str | None = None) -> None:
        # Who commits knows by its answers; with one listener there is nobody else to tell, unless a client wrote.
        if len(self._notify) > 1 or (replica is None and self._notify):
            for notify in tuple(self._notify):
                notify()

    def _alive(self, replica: str) -> _Fence:
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
            if row.waiting:
                life.row = replace(row, owner=None, state=State.SUSPENDED)
            else:
                life.row = replace(row, owner=None, state=State.SCHEDULED, due_at=now)
            self._freed(life, now)

    def _freed(self, life: _Life, now: float) -> None:
        """The instance, which nobody owns now, is found by the next claim if it has cause to go on."""
        row = life.row
        if row.due_at is not None:
            heapq.heappush(self._due.setdefault(row.flow, []), (row.due_at, row.uid))
        if life.unseen(None if row.state is State.SUSPENDED else MessageKind.CANCEL):
            self._wakeups.setdefault(row.uid, now)
        elif row.state is not State.SUSPENDED and not _cancelled(life):
            self._wakeups.pop(row.uid, None)

    def _create(self, batch: Batch, fold: Folded, answers: list[Answer]) -> None:
        refused: set[bytes] = set()
        for number, create in fold.creates:
            uid = self._ids.get((create.flow, create.id))
            if uid is None:
                self._born(batch, create)
            elif uid != create.uid:
                row = self._lives[uid].row
                answers[number] = Existing(uid, row.state, row.arguments, row.digest)
                refused.add(create.uid)
                continue
            answers[number] = Created(tuple(self._lives[create.uid].inbox.values()))
        if refused:
            fold.without(refused)

    def _born(self, batch: Batch, create: Create) -> None:
        due_at = None if create.owned else create.at if create.due_at is None else create.due_at
        life = self._lives[create.uid] = _Life(
            Instance(
                uid=create.uid,
                run=0,
                flow=create.flow,
                id=create.id,
                state=State.RUNNING if create.owned else State.SCHEDULED,
                owner=batch.replica if create.owned else None,
                waiting=False,
                due_at=due_at,
                arguments=create.arguments,
                digest=create.digest,
                parent=create.parent,
                outcome=None,
                reason=None,
                version=create.version,
                created_at=create.at,
                ended_at=None,
            )
        )
        self._ids[create.flow, create.id] = create.uid
        if create.begun is not None:
            life.entries[create.begun.run, create.begun.seq] = create.begun
        if create.parent is not None and (parent := self._lives.get(create.parent)) is not None:
            parent.children.append(create.uid)
        for message in self._early.pop((create.flow, create.id), {}).values():
            life.put(message)
        if not create.owned:
            self._freed(life, batch.now)

    def _small_things(self, fold: Folded) -> None:
        lives = self._lives
        for (uid, run, key), put in fold.puts.items():
            if uid in lives:
                lives[uid].pending[run, key] = put.pending
        for uid, run, key in fold.drops:
            if uid in lives:
                lives[uid].pending.pop((run, key), None)
        for take in fold.takes:
            if (life := lives.get(take.uid)) is not None:
                life.inbox.pop(take.mid, None)
                self._unwatch(take.mid)
        for (uid, key), expose in fold.exposes.items():
            if uid in lives:
                lives[uid].exposed[key] = expose.value

    def _image(self, batch: Batch, image: Image) -> Answer:
        life = self._lives.get(image.uid)
        if life is None:
            return NotOwned(image.uid)
        if life.row.owner != batch.replica or batch.replica is None:
            return None if _done_before(life.row, image) else NotOwned(image.uid)
        match image:
            case Update():
                state = State.SUSPENDED if image.waiting else State.RUNNING
                life.row = replace(life.row, state=state, waiting=image.waiting, due_at=image.due_at)
            case Finish():
                life.row = replace(
                    life.row, state=image.state, owner=None, waiting=False, due_at=None, outcome=image.outcome,
                    ended_at=image.at, reason=None,
                )  # fmt: skip
                self._wakeups.pop(image.uid, None)
                for mid in list(self._asker.get(image.uid, ())):
                    self._unwatch(mid)
            case Release():
                life.row = _released(life.row, image, batch.now)
                life.seen.update(mid for mid in image.seen if mid in life.inbox)
                self._freed(life, batch.now)
        return None

    def _watch(self, batch: Batch, watch: Watch | Unwatch) -> Answer:
        mid = answer_mid(watch.asker, watch.run, watch.key)
        if isinstance(watch, Unwatch):
            self._unwatch(mid)
            return None
        target = self._ids.get((watch.flow, watch.id))
        row = self._lives[target].row if target is not None else None
        if row is None:
            return self._answer(batch, watch, "not-found", None)
        if watch.digest is not None and watch.digest != row.digest:
            return self._answer(batch, watch, "already-started", None)
        if row.state.ended:
            return self._answer(batch, watch, row.state.value, row.outcome)
        self._unwatch(mid)
        self._watches.setdefault(row.uid, {})[mid] = watch
        self._asked[mid] = row.uid
        self._asker.setdefault(watch.asker, set()).add(mid)
        return None

    def _unwatch(self, mid: bytes) -> None:
        if (target := self._asked.pop(mid, None)) is not None:
            watch = self._watches[target].pop(mid)
            self._asker[watch.asker].discard(mid)

    def _answer(self, batch: Batch, watch: Watch, type: str, outcome: bytes | None) -> Sent:
        message = Message(
            mid=answer_mid(watch.asker, watch.run, watch.key),
            kind=MessageKind.ANSWER,
            key=watch.key,
            name=None,
            type=type,
            body=outcome,
            failed=type != State.SUCCEEDED.value,
            run=watch.run,
            sent_at=batch.now,
        )
        return self._deliver(batch, self._lives.get(watch.asker), message)

    def _consequences(self, batch: Batch, finish: Finish) -> Iterator[Sent]:
        for _, watch in sorted(self._watches.get(finish.uid, {}).items()):
            yield self._answer(batch, watch, finish.state.value, finish.outcome)
        if not finish.children:
            return
        for child in sorted(self._lives[finish.uid].children):
            mid = cancel_mid(finish.uid, child)
            life = self._lives[child]
            if not life.row.state.ended:
                message = Message(mid, MessageKind.CANCEL, None, None, "", None, False, -1, batch.now)
                yield self._deliver(batch, life, message)

    def _send(self, batch: Batch, send: Send) -> Sent:
        uid = send.uid or self._ids.get((send.flow, send.id))
        if uid is not None or send.message.kind != MessageKind.MESSAGE:
            return self._deliver(batch, self._lives.get(uid) if uid else None, send.message)
        waiting = self._early.setdefault((send.flow, send.id), {})
        mid, key = send.message.mid, send.message.key
        new = mid in waiting or key is None or all(m.key != key for m in waiting.values())
        if new:
            waiting.setdefault(mid, send.message)
        return Sent(None, None, send.message, new)

    def _deliver(self, batch: Batch, life: _Life | None, message: Message) -> Sent:
        """The message is in the inbox, and who must know and does not learn it by this answer is woken."""
        if life is None:
            return Sent(None, None, message, new=False)
        row = life.row
        if row.state.ended and message.kind != MessageKind.MESSAGE:
            return Sent(row.uid, row.owner, message, new=False)
        new = life.put(message)
        mine = row.owner is not None and row.owner == batch.replica
        if new and not mine and message.mid in life.inbox and _wakes(row, message.kind):
            self._wakeups.setdefault(row.uid, batch.now)
        return Sent(row.uid, row.owner, message, new)

    # -- claiming; the lock is held

    def _due_heap(self, flow: str) -> list[tuple[float, bytes]]:
        """The heap of the flow type, with a row on top that is true."""
        heap = self._due.get(flow, [])
        while heap:
            at, uid = heap[0]
            row = self._lives[uid].row
            if row.owner is None and row.due_at == at:
                break
            heapq.heappop(heap)
        return heap

    def _candidates(self, flows: frozenset[str], now: float, limit: int, thorough: bool) -> list[bytes]:
        found: dict[bytes, float] = {}
        for flow in flows:
            heap = self._due_heap(flow)
            kept: list[tuple[float, bytes]] = []
            while heap and heap[0][0] <= now and len(kept) < limit:
                kept.append(heapq.heappop(heap))
                found[kept[-1][1]] = kept[-1][0]
                heap = self._due_heap(flow)
            for item in kept:
                heapq.heappush(heap, item)
        for uid, at in self._wakeups.items():
            life = self._lives[uid]
            if life.row.owner is None and _claimable(life, flows):
                found[uid] = min(at, found.get(uid, at))
        if thorough:
            for uid, life in self._lives.items():
                row = life.row
                if row.owner is None and row.state is State.SUSPENDED and row.flow in flows and life.unseen():
                    at = min(m.sent_at for m in life.inbox.values() if m.mid not in life.seen)
                    found[uid] = min(at, found.get(uid, at))
        return sorted(found, key=lambda uid: (found[uid], uid))[:limit]


def _claimable(life: _Life, flows: frozenset[str]) -> bool:
    """Whether a wake-up row is cause enough to claim the instance."""
    if life.row.state is State.SUSPENDED and life.row.flow in flows:
        return True
    return _cancelled(life)


def _cancelled(life: _Life) -> bool:
    return any(m.kind == MessageKind.CANCEL for m in life.inbox.values())


def _wakes(row: Instance, kind: str) -> bool:
    # What is scheduled or blocked goes on for another cause, and looks into its inbox then; only a cancel ends it now.
    return not row.state.ended and (row.owner is not None or row.state is State.SUSPENDED or kind == MessageKind.CANCEL)


def _done_before(row: Instance, image: Image) -> bool:
    """Whether the row stands as the image, sent before, would have left it."""
    match image:
        case Finish():
            return row.state is image.state and row.ended_at == image.at
        case Release():
            return row.owner is None and row.state is image.state
        case Update():
            return False


def _released(row: Instance, image: Release, now: float) -> Instance:
    due_at = image.due_at
    if image.state is State.SCHEDULED and due_at is None:
        due_at = now
    return replace(
        row,
        state=image.state,
        owner=None,
        waiting=image.state is State.SUSPENDED,
        due_at=due_at if image.state in _DUE else None,
        reason=image.reason,
        version=image.version or row.version,
    )
