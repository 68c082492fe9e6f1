"""What the memory store holds, and what a batch or an edit does to it. The caller holds the lock and proved the fence."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perdure.model.records import Instance, Message, MessageKind, State
from perdure.model.writes import (
    Answer,
    Batch,
    Continue,
    Continued,
    Create,
    Created,
    Edit,
    Edited,
    Existing,
    Finish,
    Finished,
    NotOwned,
    Outdated,
    OwnedBy,
    Release,
    Send,
    Sent,
    Unwatch,
    Update,
    Watch,
)
from perdure.stores.contract import answer_mid, cancel_mid
from perdure.stores.folding import Folded, Image
from perdure.stores.memory.life import Gone, Life

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perdure.stores.leases import Lease

_DUE = (State.SCHEDULED, State.SUSPENDED)


class Fence:
    """Whether a replica may write, and until when others must wait for it."""

    __slots__ = ("alive", "epoch", "flows", "lease")

    def __init__(self, lease: Lease) -> None:
        self.epoch = 1
        self.alive = True
        self.lease = lease
        self.flows: dict[str, str] = {}


class Tables:
    """See the module."""

    def __init__(self) -> None:
        self.lives: dict[bytes, Life] = {}
        self.ids: dict[tuple[str, str], bytes] = {}
        self.gone: dict[tuple[str, str], Gone] = {}
        self.fences: dict[str, Fence] = {}
        self.wakeups: dict[bytes, float] = {}
        """Since when each instance is called."""
        self.due: dict[str, list[tuple[float, bytes]]] = {}
        """A heap for each lane; a row counts only while its instance still says the same."""
        self._early: dict[tuple[str, str], dict[bytes, Message]] = {}
        self._children: dict[bytes, set[bytes]] = {}
        self._watches: dict[bytes, dict[bytes, Watch]] = {}
        """By target, then by the mid of the answer; kept until it is taken: a repeated finish tells it again."""
        self._asked: dict[bytes, bytes] = {}
        """The target of each watch, by the mid of its answer."""
        self._asker: dict[bytes, set[bytes]] = {}
        """The mids of an asker's watches."""

    # -- batches

    def write(self, batch: Batch) -> list[Answer]:
        """The batch is written, in the order that `perdure.model.writes` gives; one answer for each write."""
        answers: list[Answer] = [None] * len(batch.writes)
        fold = Folded(batch.writes)
        if fold.creates:
            self._create(batch, fold, answers)
        lives = self.lives
        for entry in fold.entries:
            if (life := lives.get(entry.uid)) is not None:
                life.record(entry)
        self._small_things(fold)
        finished: list[tuple[int, Finish]] = []
        continued: list[tuple[int, Continue]] = []
        for number, image in fold.images.values():
            answers[number] = self._image(batch, image)
            if answers[number] is None:
                if type(image) is Finish:
                    finished.append((number, image))
                elif type(image) is Continue:
                    continued.append((number, image))
        for number, watch in fold.watches.values():
            answers[number] = self._watch(batch, watch)
        for number, image in finished:
            told = self._tell(batch, image.uid, image.state.value, image.outcome)
            answers[number] = Finished((*told, *self._cancel_children(batch, image.uid, image.children)))
        cancels = [tuple(self._cancel_children(batch, image.uid, image.children)) for _, image in continued]
        for number, send in fold.sends:
            answers[number] = self._send(batch, send)
        for (number, image), sent in zip(continued, cancels, strict=True):
            # Read last, so that nothing that this batch sent is told to the old run alone.
            answers[number] = Continued(tuple(lives[image.uid].inbox.values()), sent)
        return answers

    def _create(self, batch: Batch, fold: Folded, answers: list[Answer]) -> None:
        refused: set[bytes] = set()
        for number, create in fold.creates:
            place = (create.flow, create.id)
            uid = self.ids.get(place)
            existing: Existing | NotOwned | None = None
            if uid is None:
                gone = self.gone.get(place)
                if gone is not None and gone.state is not None:
                    existing = Existing(b"", gone.state, b"", gone.digest)
                elif gone is not None and gone.uid == create.uid:
                    existing = NotOwned(create.uid)
                else:
                    self._born(batch, create)
            elif uid != create.uid:
                row = self.lives[uid].row
                existing = Existing(uid, row.state, row.arguments if row.first is None else row.first, row.digest)
            if existing is not None:
                answers[number] = existing
                refused.add(create.uid)
            else:
                answers[number] = Created(tuple(self.lives[create.uid].inbox.values()))
        if refused:
            fold.without(refused)

    def _born(self, batch: Batch, create: Create) -> None:
        due_at = None if create.owned else create.at if create.due_at is None else create.due_at
        life = self.lives[create.uid] = Life(
            Instance(
                uid=create.uid,
                run=0,
                flow=create.flow,
                id=create.id,
                lane=create.lane,
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
        self.ids[create.flow, create.id] = create.uid
        for entry in create.initial:
            life.entries[entry.run, entry.seq] = entry
        if create.begun is not None:
            life.entries[create.begun.run, create.begun.seq] = create.begun
        if create.parent is not None:
            self._children.setdefault(create.parent, set()).add(create.uid)
        for message in create.inbox:
            life.put(message)
        for message in self._early.pop((create.flow, create.id), {}).values():
            life.put(message)
        if not create.owned:
            self.freed(life, batch.now)

    def _small_things(self, fold: Folded) -> None:
        lives = self.lives
        for (uid, run, key), put in fold.puts.items():
            if uid in lives:
                lives[uid].pending[run, key] = put.pending
        for uid, run, key in fold.drops:
            if uid in lives:
                lives[uid].pending.pop((run, key), None)
        for take in fold.takes:
            if (life := lives.get(take.uid)) is not None:
                life.take(take.mid)
                self._unwatch(take.mid)
        for (uid, key), expose in fold.exposes.items():
            if uid in lives:
                lives[uid].exposed[key] = expose.value

    def _image(self, batch: Batch, image: Image) -> Answer:
        life = self.lives.get(image.uid)
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
                    ended_at=image.at, reason=None, failed_seq=image.failed_seq,
                )  # fmt: skip
                self._asks_no_more(image.uid)
            case Release():
                self._release(batch, life, image)
            case Continue():
                return self._continue(life, image)
        return None

    def _release(self, batch: Batch, life: Life, image: Release) -> None:
        fence = self.fences.get(image.to) if image.to is not None else None
        owner = image.to if fence is not None and fence.alive else None
        life.row = _released(life.row, image, owner, batch.now)
        life.seen.update(mid for mid in image.seen if mid in life.inbox)
        if image.state is State.BLOCKED:
            life.tried(life.row.version, image.process)
        if owner is None:
            self.freed(life, batch.now)

    def _continue(self, life: Life, image: Continue) -> Answer:
        made_before = life.row.run == image.run
        if not made_before and life.row.run != image.run - 1:
            return NotOwned(image.uid)
        life.begin(image)  # made before too: the batch has written the old run's entries again
        if not made_before:
            life.go_on(image)
        self._asks_no_more(image.uid, image.run)
        return None

    def _asks_no_more(self, uid: bytes, run: int | None = None) -> None:
        """Nobody is called for the instance, and it waits for nobody (in runs before this one)."""
        self.wakeups.pop(uid, None)
        for mid in list(self._asker.get(uid, ())):
            if run is None or self._watches[self._asked[mid]][mid].run < run:
                self._unwatch(mid)

    def freed(self, life: Life, now: float) -> None:
        """The instance, which nobody owns now, is found by the next claim if it has cause to go on."""
        row = life.row
        if life.drop_requests() and not life.unseen() and not life.cancelled():
            self.wakeups.pop(row.uid, None)  # who was called only to hand it over has no cause to go on
        if row.state.ended:
            return
        if row.due_at is not None:
            heapq.heappush(self.due.setdefault(row.lane, []), (row.due_at, row.uid))
        if life.unseen(None if row.state is State.SUSPENDED else MessageKind.CANCEL):
            self.wakeups.setdefault(row.uid, now)
        elif row.state is not State.SUSPENDED and not life.cancelled():
            self.wakeups.pop(row.uid, None)

    # -- messages

    def _watch(self, batch: Batch, watch: Watch | Unwatch) -> Answer:
        mid = answer_mid(watch.asker, watch.run, watch.key)
        if isinstance(watch, Unwatch):
            self._unwatch(mid)
            return None
        target = self.ids.get((watch.flow, watch.id))
        row = self.lives[target].row if target is not None else None
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
            self._asker.get(watch.asker, set()).discard(mid)

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
        return self._deliver(batch, self.lives.get(watch.asker), message)

    def _tell(self, batch: Batch, uid: bytes, type: str, outcome: bytes | None) -> Iterator[Sent]:
        """Who waits for the instance has this answer."""
        for _, watch in sorted(self._watches.get(uid, {}).items()):
            yield self._answer(batch, watch, type, outcome)

    def _cancel_children(self, batch: Batch, uid: bytes, children: bool = True) -> Iterator[Sent]:
        """The unfinished attached children, if there may be any, have a cancel request."""
        for child in sorted(self._children.get(uid, ())) if children else ():
            life = self.lives[child]
            if not life.row.state.ended:
                mid = cancel_mid(uid, child)
                message = Message(mid, MessageKind.CANCEL, None, None, "", None, False, -1, batch.now)
                yield self._deliver(batch, life, message)

    def _send(self, batch: Batch, send: Send) -> Sent:
        place, message = (send.flow, send.id), send.message
        uid = send.uid or self.ids.get(place)
        if uid is not None or message.kind != MessageKind.MESSAGE:
            return self._deliver(batch, self.lives.get(uid) if uid else None, message)
        if (gone := self.gone.get(place)) is not None and gone.drops(message):
            return Sent(None, None, message, new=False)
        waiting = self._early.setdefault(place, {})
        new = message.mid in waiting or message.key is None or all(m.key != message.key for m in waiting.values())
        if new:
            waiting.setdefault(message.mid, message)
        return Sent(None, None, message, new)

    def _deliver(self, batch: Batch, life: Life | None, message: Message) -> Sent:
        """The message is in the inbox, and who must know and does not learn it by this answer is woken."""
        if life is None:
            return Sent(None, None, message, new=False)
        row = life.row
        if not _is_for(row, message):
            return Sent(row.uid, row.owner, message, new=False)
        new = life.put(message)
        mine = row.owner is not None and row.owner == batch.replica
        if new and not mine and message.mid in life.inbox and _wakes(row, message.kind):
            self.wakeups.setdefault(row.uid, batch.now)
        return Sent(row.uid, row.owner, message, new)

    # -- edits and deletions

    def edit(self, replica: str | None, epoch: int, edit: Edit) -> Edited | OwnedBy | Outdated:
        """See Store."""
        life = self.lives.get(edit.uid)
        if life is None:
            return Edited() if any(gone.edit == edit.id for gone in self.gone.values()) else Outdated()
        before = life.row
        if before.edit == edit.id:
            return Edited()
        if before.owner is not None and before.owner != replica:
            return OwnedBy(before.owner)
        if not life.stands(edit):
            return Outdated()
        row = edit.row
        if row is None:
            self._remove(life, Gone(edit.at, edit.uid, edit=edit.id))
        else:
            life.mend(edit, row)
            self.freed(life, edit.at)
        sent: tuple[Sent, ...] = ()
        if (row is None or row.state.ended) and not before.state.ended:
            self._asks_no_more(edit.uid)
            type, outcome = ("not-found", None) if row is None else (row.state.value, row.outcome)
            as_batch = Batch(replica, epoch, [], edit.at)
            told = self._tell(as_batch, edit.uid, type, outcome)
            sent = (*told, *self._cancel_children(as_batch, edit.uid))
        if row is None:
            self._forget(edit.uid)
        return Edited(sent)

    def retire(self, before: float, now: float, limit: int) -> int:
        """See Store."""
        over = [
            (row.ended_at, row.uid)
            for row in (life.row for life in self.lives.values())
            if row.ended_at is not None and row.ended_at < before and row.state.ended and row.owner is None
            and not self._has_unfinished_parent(row)
        ]  # fmt: skip
        for _, uid in sorted(over)[:limit]:
            life = self.lives[uid]
            self._remove(life, Gone(now, uid, life.row.state, life.row.digest))
            self._forget(uid)
        return min(len(over), limit)

    def forget(self, flow: str, id: str) -> bool:
        """See Store."""
        gone = self.gone.get((flow, id))
        if gone is None or gone.state is None:
            return False
        self.gone[flow, id] = Gone(gone.at, gone.uid)
        return True

    def _has_unfinished_parent(self, row: Instance) -> bool:
        parent = self.lives.get(row.parent) if row.parent is not None else None
        return parent is not None and not parent.row.state.ended

    def _remove(self, life: Life, gone: Gone) -> None:
        """The instance is not there any more; who waits for it and its children are known still."""
        row = life.row
        del self.lives[row.uid]
        del self.ids[row.flow, row.id]
        self.gone[row.flow, row.id] = gone
        self._asks_no_more(row.uid)
        if row.parent is not None:
            self._children.get(row.parent, set()).discard(row.uid)

    def _forget(self, uid: bytes) -> None:
        for mid in list(self._watches.get(uid, ())):
            self._unwatch(mid)
        self._watches.pop(uid, None)
        self._children.pop(uid, None)


def _is_for(row: Instance, message: Message) -> bool:
    """Whether the instance as it stands can have any use for the message."""
    match message.kind:
        case MessageKind.MESSAGE:
            return True
        case MessageKind.ANSWER:
            return not row.state.ended and message.run == row.run
        case MessageKind.EVICT:
            return not row.state.ended and row.owner is not None
        case _:
            return not row.state.ended


def _wakes(row: Instance, kind: str) -> bool:
    # What is scheduled or blocked goes on for another cause, and looks into its inbox then; only a cancel ends it now.
    return not row.state.ended and (row.owner is not None or row.state is State.SUSPENDED or kind == MessageKind.CANCEL)


def _done_before(row: Instance, image: Image) -> bool:
    """Whether the row stands as the image, sent before, would have left it."""
    match image:
        case Finish():
            return row.state is image.state and row.ended_at == image.at
        case Release():
            return row.owner in (None, image.to) and row.state is image.state
        case _:
            return False


def _released(row: Instance, image: Release, owner: str | None, now: float) -> Instance:
    due_at = image.due_at
    if image.state is State.SCHEDULED and due_at is None:
        due_at = now
    return replace(
        row,
        state=image.state,
        owner=owner,
        waiting=image.state is State.SUSPENDED,
        due_at=due_at if image.state in _DUE else None,
        reason=image.reason,
        version=image.version or row.version,
    )
