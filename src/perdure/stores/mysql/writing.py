"""A batch as SQL. Everything here runs inside one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import astuple

from perdure.errors import LeaseLost
from perdure.model.records import Kind, State
from perdure.model.writes import (
    Answer,
    Batch,
    Continue,
    Continued,
    Create,
    Created,
    Existing,
    Finish,
    Finished,
    NotOwned,
    Release,
    Sent,
    Unwatch,
    Update,
    Watch,
)
from perdure.stores.contract import REPEAT_SECONDS, answer_mid
from perdure.stores.folding import Folded, by_entry_key
from perdure.stores.mysql.reading import THERE, inbox
from perdure.stores.mysql.rows import (
    BORN,
    ENDED,
    ENTRY,
    MESSAGE,
    PENDING,
    STATES,
    insert,
    keep,
    of_entries,
    quoted,
    replace,
)
from perdure.stores.mysql.sending import ASLEEP, DELIVER_REST, Item, answer, answers, cancels, deliver, freed, inserted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perdure.model.records import Entry
    from perdure.stores.mysql.connection import Session

FENCE: Final = "select 1 from perdure_fence where replica = %s and epoch = %s and alive = 1 lock in share mode"

# Whoever makes the place makes the instance. All of them, or the places alone: then each is looked at.
_PLACE: Final = "flow,id,uid"
PLACE: Final = insert("place", _PLACE)
PLACE_REST: Final = keep("place", _PLACE)
BEAR: Final = insert("instance", BORN)
BEAR_REST: Final = keep("instance", BORN)
_AT: Final = "straight_join perdure_place p force index (primary) on p.flow = v.flow and p.id = v.id"
PLACES: Final = f"select p.flow, p.id, p.uid, p.early, p.state, p.digest, p.gone from %s v {_AT} for update"
LIVES: Final = "select uid, state, coalesce(first, arguments), digest from perdure_instance where uid in %s"
SETTLE: Final = f"update %s v {_AT} set p.uid = v.uid, p.early = 0"
ADOPT: Final = (
    f"insert into perdure_inbox(uid, open, {quoted(MESSAGE)}) select %s, 1, {quoted(MESSAGE, 'e')} from perdure_early e"
    " force index (once) where e.flow = %s and e.id = %s order by e.nr on duplicate key update perdure_inbox.mid = perdure_inbox.mid"
)
ADOPTED: Final = "delete from perdure_early where flow = %s and id = %s"

ENTRIES: Final = insert("entry", ENTRY)
HELD: Final = "select 1 from perdure_entry where uid = %s and run = %s and seq = %s and kind = 'again' for update"
REPLACED: Final = replace("entry", ENTRY, 3)
"""Of an entry whose place is taken."""
AGAIN: Final = replace("entry", ENTRY, 3, "perdure_entry.`kind` = 'again'")
PUT: Final = replace("pending", PENDING, 3)
_PENDINGS: Final = "straight_join perdure_pending p force index (primary) on p.uid = v.uid and p.run = v.run"
DROP: Final = f"delete p from %s v {_PENDINGS} and p.`key` = v.`key`"
TAKE: Final = (
    "update %s v straight_join perdure_inbox m force index (primary) on m.uid = v.uid and m.mid = v.mid"
    " set m.open = 0, m.name = null, m.type = '', m.body = null where m.open > 0"
)
ANSWERED: Final = "delete w from perdure_watch w force index (primary) where w.mid in %s"
EXPOSE: Final = replace("exposed", "uid,key,value", 2)

_EACH: Final = "update %s v straight_join perdure_instance i force index (primary) on i.uid = v.uid"
UPDATE: Final = f"{_EACH} set i.state = v.state, i.waiting = v.waiting, i.due_at = v.due_at where i.owner = %s"
FINISH: Final = (
    f"{_EACH} set i.state = v.state, i.outcome = v.outcome, i.ended_at = v.ended_at, i.failed_seq = v.failed_seq,"
    " i.owner = null, i.waiting = 0, i.due_at = null, i.reason = null where i.owner = %s"
)
RELEASE: Final = (
    f"{_EACH} set i.state = v.state, i.waiting = v.waiting, i.due_at = v.due_at, i.reason = v.reason,"
    " i.version = coalesce(v.version, i.version), i.owner = null where i.owner = %s"
)
# In two statements: which of two columns is set first is not said for a statement with two tables.
KEEP_FIRST: Final = f"{_EACH} set i.first = i.arguments where i.owner = %s and i.run = v.run - 1 and i.first is null"
CONTINUE: Final = (
    f"{_EACH} set i.run = v.run, i.arguments = v.arguments, i.version = v.version, i.edited_seq = -1,"
    " i.failed_seq = null, i.state = 'running', i.waiting = 0, i.due_at = null where i.owner = %s and i.run = v.run - 1"
)
STANDS: Final = "select uid, state, owner, ended_at, run from perdure_instance where uid in %s"
SEEN: Final = (
    "update %s v straight_join perdure_inbox m force index (primary) on m.uid = v.uid and m.mid = v.mid set m.open = 2"
    " where m.open = 1"
)
MINE: Final = "select uid from perdure_instance where uid in %s and owner = %s"
HAND_OVER: Final = f"{_EACH} set i.owner = v.owner where i.owner is null"
HEIRS: Final = "select replica from perdure_fence where replica in %s and alive = 1 order by replica lock in share mode"
OWNERS: Final = "select uid, owner from perdure_instance where uid in %s and owner is not null"
CALL: Final = "update %s v straight_join perdure_wakeup w force index (primary) on w.uid = v.uid set w.owner = v.owner"

# `e` are the entries of the instance's current run.
_LENGTH: Final = (
    "greatest(0, 1 + coalesce((select e.seq from perdure_entry e force index (primary) where e.uid = i.uid and e.run = i.run"
    " order by e.uid desc, e.run desc, e.seq desc limit 1), -1))"
)
LENGTH: Final = f"select {_LENGTH} from perdure_instance i where i.uid = %s"
LENGTHS: Final = f"select i.uid, i.version, {_LENGTH} from perdure_instance i where i.uid in %s"
OTHER_TRIES: Final = (
    "delete t from %s v straight_join perdure_tried t force index (primary) on t.uid = v.uid where t.length <> v.length"
)
_TRIED: Final = "uid,version,process,length"
TRIED: Final = keep("tried", _TRIED)
UNTRIED: Final = "delete t from perdure_tried t force index (primary) where t.uid in %s"

OLD_ENTRIES: Final = (
    "delete e from %s v straight_join perdure_entry e force index (primary) on e.uid = v.uid and e.run = v.run"
)
OLD_PENDING: Final = f"delete p from %s v {_PENDINGS}"
OLD_ANSWERS: Final = (
    "delete m from %s v straight_join perdure_inbox m force index (primary) on m.uid = v.uid"
    " where m.kind = 'answer' and m.run <> v.run"
)
OLD_MESSAGES: Final = (
    "delete m from %s v straight_join perdure_inbox m force index (primary) on m.uid = v.uid"
    " where m.open = 0 and m.`key` is null and m.sent_at < v.at"
)
OLD_WATCHES: Final = (
    "delete w from %s v straight_join perdure_watch w force index (asker) on w.asker = v.uid where w.run <> v.run"
)
UNASKED: Final = "delete w from perdure_watch w force index (asker) where w.asker in %s"

TARGETS: Final = f"select p.uid from %s v {_AT} where p.uid is not null"
# A watch and the end of what it watches lock the same row: one of them sees the other. All rows in one order.
LOCK: Final = "select 1 from perdure_instance force index (primary) where uid in %s order by uid for update"
MARK: Final = "update perdure_instance force index (primary) set watched = 1 where uid in %s and watched = 0"
WATCHED: Final = (
    f"select v.n, i.uid, i.state, i.digest, i.outcome from %s v {_AT} straight_join perdure_instance i on i.uid = p.uid"
)
WATCH: Final = replace("watch", "mid,asker,run,key,target", 4)

Over = tuple[int, Finish | Continue]
"""The end of a run, and its place in the batch."""


async def fenced(s: Session, replica: str, epoch: int) -> None:
    """The replica is alive and the epoch is its own, and both stay so until this transaction ends."""
    if await s.row(FENCE, replica, epoch) is None:
        raise LeaseLost(f"replica {replica} was taken over, or writes with an epoch that is over ({epoch})")


async def record(s: Session, entries: Sequence[Entry]) -> None:
    """Each entry is in the journal, if its place was free or waits for a step that runs again."""
    if await inserted(s, ENTRIES, of_entries(entries)):
        return
    # Those before the one whose place was taken may be there now: they are written again, and are the same.
    once: dict[tuple[bytes, int, int], Entry] = {}
    for entry in entries:
        place = (entry.uid, entry.run, entry.seq)
        if place not in once or once[place].kind == Kind.AGAIN:
            once[place] = entry
    await s.each(AGAIN, ENTRY, of_entries(list(once.values())))


async def recorded(s: Session, entry: Entry) -> bool:
    """Whether the entry is in the journal now and was not before."""
    if await inserted(s, ENTRIES, of_entries([entry])):
        return True
    if await s.row(HELD, entry.uid, entry.run, entry.seq) is None:
        return False
    await s.each(AGAIN, ENTRY, of_entries([entry]))
    return True


async def write(s: Session, batch: Batch, fold: Folded) -> list[Answer]:
    """The batch is written, in the order that `perdure.model.writes` gives; one answer for each write."""
    if batch.replica is not None:
        await fenced(s, batch.replica, batch.epoch)
    said: list[Answer] = [None] * len(batch.writes)
    if fold.watches:
        await _lock(s, fold)
    if fold.creates:
        await _create(s, batch, fold, said)
    if fold.entries:
        by_entry_key(fold.entries)
        await record(s, fold.entries)
    if fold.rare:
        await _small_things(s, fold)
    if not (fold.images or fold.watches or fold.sends):
        return said
    over = await _images(s, batch, fold, said) if fold.images else []
    renewed = await _renew(s, over)
    if fold.watches:
        await _watches(s, batch, fold, said)
    if over:
        await _consequences(s, batch, over, said)
    if fold.sends:
        items = [(w.uid, w.flow, w.id, w.message) for _, w in fold.sends]
        for (number, _), one in zip(fold.sends, await deliver(s, batch.replica, items, batch.now), strict=True):
            said[number] = one
    if renewed:
        inboxes = await inbox(s, [image.uid for _, image in renewed])
        for number, image in renewed:
            done = said[number]
            said[number] = Continued(tuple(inboxes[image.uid]), done.sent if isinstance(done, Finished) else ())
    return said


async def _lock(s: Session, fold: Folded) -> None:
    """The rows of all that is watched or changed are this transaction's, taken in one order."""
    places = [(w.flow, w.id) for _, w in fold.watches.values() if isinstance(w, Watch)]
    if places:
        targets = [row[0] for row in await s.join(TARGETS, "flow,id", sorted(set(places)))]
        await s.listed(LOCK, sorted({*targets, *fold.images}))


# -- creating


async def _create(s: Session, batch: Batch, fold: Folded, said: list[Answer]) -> None:
    full = [c.uid for _, c in fold.creates if c.initial or c.inbox]
    there = {row[0] for row in await s.listed(THERE, full)} if full else set[bytes]()
    rows = [_born(batch, c) for _, c in fold.creates]
    nothing = Created()
    early: list[int] = []
    if await inserted(s, PLACE, [(c.flow, c.id, c.uid) for _, c in fold.creates]):
        await s.insert(BEAR, rows)
        for number, _ in fold.creates:
            said[number] = nothing
    else:
        early = await _conflicts(s, batch, fold, said)
    created = [(n, c) for n, c in fold.creates if type(said[n]) is Created]
    fold.entries += [c.begun for _, c in created if c.begun is not None]
    for number, create in created if full else ():
        if create.uid not in there:
            fold.entries += create.initial
            if create.inbox:
                messages = [(create.uid, 1, *astuple(message)) for message in create.inbox]
                await s.each(DELIVER_REST, f"uid,open,{MESSAGE}", messages)
                said[number] = await _untaken(s, create.uid)
    for number in early:
        create = batch.writes[number]
        if isinstance(create, Create):
            await s.run(ADOPT, create.uid, create.flow, create.id)
            await s.run(ADOPTED, create.flow, create.id)
            said[number] = await _untaken(s, create.uid)
    if any(not c.owned for _, c in created):
        s.after.anybody = True


def _born(batch: Batch, c: Create) -> tuple[Any, ...]:
    state, owner, due_at = "running", batch.replica, None
    if not c.owned:
        state, owner, due_at = "scheduled", None, c.at if c.due_at is None else c.due_at
    return (
        c.uid, 0, c.flow, c.id, c.lane, state, owner, False, due_at, c.arguments, c.digest, c.parent, None, None, c.version,
        c.at, None,
    )  # fmt: skip


async def _untaken(s: Session, uid: bytes) -> Created:
    return Created(tuple((await inbox(s, [uid]))[uid]))


async def _conflicts(s: Session, batch: Batch, fold: Folded, said: list[Answer]) -> list[int]:
    """Each create is answered by what is at its place now: its own instance, an older life, or what is left of one.

    Gives those for which messages may wait.
    """
    await s.each(PLACE_REST, _PLACE, [(c.flow, c.id, c.uid) for _, c in fold.creates])
    keys = sorted({(c.flow, c.id) for _, c in fold.creates})
    places = {(p[0], p[1]): p for p in await s.join(PLACES, "flow,id", keys)}
    lives = {row[0]: row for row in await s.listed(LIVES, [p[2] for p in places.values() if p[2] is not None])}
    born: dict[tuple[str, str], Create] = {}
    waited: list[int] = []
    for number, create in fold.creates:
        at = (create.flow, create.id)
        _, _, uid, early, state, digest, gone = places[at]
        if at in born:
            first = born[at]
            row = (first.uid, _born(batch, first)[5], first.arguments, first.digest)
            same = first.uid == create.uid
            said[number] = Created() if same else _existing(row)
            if same and early:
                waited.append(number)
        elif uid is None and state is not None:
            said[number] = Existing(b"", STATES[state], b"", digest)
        elif uid is None and gone == create.uid:
            said[number] = NotOwned(create.uid)
        elif uid is None or (uid == create.uid and uid not in lives):
            born[at] = create
            said[number] = Created()
            if early:
                waited.append(number)
        elif uid == create.uid:  # there from the same write before, and messages may have come since
            said[number] = await _untaken(s, uid)
        else:
            said[number] = _existing(lives[uid])
    if born:
        await s.each(SETTLE, _PLACE, [(*at, c.uid) for at, c in born.items()])
        await s.each(BEAR_REST, BORN, [_born(batch, c) for c in born.values()])
    fold.without({c.uid for n, c in fold.creates if type(said[n]) is not Created})
    return waited


def _existing(row: Sequence[Any]) -> Existing:
    uid, state, arguments, digest = row
    return Existing(uid, STATES[state], arguments, digest)


async def _small_things(s: Session, fold: Folded) -> None:
    if fold.puts:
        await s.each(PUT, PENDING, [astuple(fold.puts[key].pending) for key in sorted(fold.puts)])
    if fold.drops:
        await s.each(DROP, "uid,run,key", sorted(fold.drops))
    if fold.takes:
        await s.each(TAKE, "uid,mid", [(take.uid, take.mid) for take in fold.takes])
        await s.over(ANSWERED, [take.mid for take in fold.takes])
    if fold.exposes:
        await s.each(EXPOSE, "uid,key,value", [(*key, fold.exposes[key].value) for key in sorted(fold.exposes)])


# -- images


async def _images(s: Session, batch: Batch, fold: Folded, said: list[Answer]) -> list[Over]:
    """The last image of each instance is its row; gives the ends of runs, for what follows from them."""
    updates: list[tuple[Any, ...]] = []
    finishes: list[tuple[Any, ...]] = []
    continues: list[tuple[Any, ...]] = []
    over: list[Over] = []
    releases: list[tuple[int, Release]] = []
    for number, image in fold.images.values():
        if isinstance(image, Finish):
            finishes.append((image.uid, image.state.value, image.outcome, image.at, image.failed_seq))
            over.append((number, image))
        elif isinstance(image, Update):
            state = "suspended" if image.waiting else "running"
            updates.append((image.uid, state, image.waiting, image.due_at))
        elif isinstance(image, Release):
            releases.append((number, image))
        else:
            continues.append((image.uid, image.run, image.arguments, image.version))
            over.append((number, image))
    matched = 0
    special: list[Release] = []
    if updates:
        matched += await s.each(UPDATE, "uid,state,waiting,due_at", updates, batch.replica)
    if finishes:
        matched += await s.each(FINISH, "uid,state,outcome,ended_at,failed_seq", finishes, batch.replica)
    if continues:
        await s.each(KEEP_FIRST, "uid,run", [row[:2] for row in continues], batch.replica)
        matched += await s.each(CONTINUE, "uid,run,arguments,version", continues, batch.replica)
    let_go = 0
    if releases:
        special = await _special(s, batch, [image for _, image in releases])
        rows = [_released(image, batch.now) for _, image in releases]
        let_go = await s.each(RELEASE, "uid,state,waiting,due_at,reason,version", rows, batch.replica)
    if matched + let_go < len(fold.images):
        await _not_owned(s, batch, fold, said)
        over = [o for o in over if said[o[0]] is None]
        releases = [r for r in releases if said[r[0]] is None]
    if let_go:
        await _let_go(s, [image for _, image in releases], special, batch.now)
    if over:
        await s.over(ASLEEP, [image.uid for _, image in over])
        await s.over(UNASKED, [image.uid for _, image in over if isinstance(image, Finish)])
        s.after.anybody = True
    return over


def _released(image: Release, now: float) -> tuple[Any, ...]:
    due_at = image.due_at
    if image.state is State.SCHEDULED and due_at is None:
        due_at = now
    if image.state is not State.SCHEDULED and image.state is not State.SUSPENDED:
        due_at = None
    waiting = image.state is State.SUSPENDED
    return (image.uid, image.state.value, waiting, due_at, image.reason, image.version or None)


async def _not_owned(s: Session, batch: Batch, fold: Folded, said: list[Answer]) -> None:
    """Images that did not match are answered so, but not those that stand from the same batch sent before."""
    stands = {row[0]: row for row in await s.listed(STANDS, list(fold.images))}
    for number, image in fold.images.values():
        _, state, owner, ended_at, run = stands.get(image.uid, (b"", "", None, None, -1))
        if isinstance(image, Update):
            stood = owner is not None and owner == batch.replica
        elif isinstance(image, Continue):
            stood = owner is not None and owner == batch.replica and run == image.run
        elif isinstance(image, Finish):
            stood = state == image.state.value and ended_at == image.at
        else:
            stood = owner in (None, image.to) and state == image.state.value
        if not stood:
            said[number] = NotOwned(image.uid)


async def _special(s: Session, batch: Batch, releases: list[Release]) -> list[Release]:
    """The releases of what blocked, or goes to a replica, as far as the instance is owned: asked before they are."""
    found = [image for image in releases if image.to is not None or image.state is State.BLOCKED]
    if not found:
        return found
    mine = {row[0] for row in await s.listed(MINE, [image.uid for image in found], batch.replica)}
    return [image for image in found if image.uid in mine]


async def _let_go(s: Session, releases: list[Release], special: list[Release], now: float) -> None:
    """What follows from releases: nobody has the instances now, or another replica that is to edit them."""
    seen = [(image.uid, mid) for image in releases for mid in image.seen]
    if seen:
        await s.each(SEEN, "uid,mid", seen)
    nobodys = [image.uid for image in releases]
    blocked = [image for image in special if image.state is State.BLOCKED]
    if blocked:
        tries = {row[0]: row[1:] for row in await s.listed(LENGTHS, [image.uid for image in blocked])}
        await s.each(OTHER_TRIES, "uid,length", [(uid, length) for uid, (_, length) in tries.items()])
        rows = [(image.uid, tries[image.uid][0], image.process, tries[image.uid][1]) for image in blocked]
        await s.each(TRIED, _TRIED, rows)
    heirs = [(image.uid, image.to) for image in special if image.to is not None]
    if heirs:
        # An heir that is taken over at the same time: its fence is dead before this, or only after this commit.
        alive = {row[0] for row in await s.listed(HEIRS, sorted({to for _, to in heirs}))}
        if alive:
            await s.each(HAND_OVER, "uid,owner", [heir for heir in heirs if heir[1] in alive])
    if any(image.to is not None for image in releases):
        owners = [(row[0], row[1]) for row in await s.listed(OWNERS, nobodys)]
        if owners:
            await s.each(CALL, "uid,owner", owners)
            s.after.called.update(owners)
            s.after.told.update(owner for _, owner in owners)
        owned = dict(owners)
        nobodys = [uid for uid in nobodys if uid not in owned]
    if any(image.state is State.SCHEDULED or image.state is State.BLOCKED for image in releases):
        s.after.anybody = True
    if nobodys:
        await freed(s, nobodys, now)


async def _renew(s: Session, over: list[Over]) -> list[tuple[int, Continue]]:
    """Of the old runs of what continues nothing is left, and the new ones begin."""
    renewed = [(number, image) for number, image in over if isinstance(image, Continue)]
    if not renewed:
        return []
    continues = [image for _, image in renewed]
    old = [(image.uid, image.run - 1) for image in continues]
    new = [(image.uid, image.run) for image in continues]
    await s.each(OLD_ENTRIES, "uid,run", old)
    await s.each(OLD_PENDING, "uid,run", old)
    await s.each(OLD_ANSWERS, "uid,run", new)
    await s.each(OLD_MESSAGES, "uid,at", [(image.uid, image.begun.at - REPEAT_SECONDS) for image in continues])
    await s.each(OLD_WATCHES, "uid,run", new)
    await s.over(UNTRIED, [image.uid for image in continues])
    await record(s, [image.begun for image in continues])
    return renewed


# -- what instances do to others


async def _watches(s: Session, batch: Batch, fold: Folded, said: list[Answer]) -> None:
    watches = [(n, w) for n, w in fold.watches.values() if isinstance(w, Watch)]
    unwatches = [w for _, w in fold.watches.values() if isinstance(w, Unwatch)]
    if unwatches:
        await s.over(ANSWERED, [answer_mid(w.asker, w.run, w.key) for w in unwatches])
    if not watches:
        return
    found = await s.join(WATCHED, "n,flow,id", [(n, w.flow, w.id) for n, w in watches])
    targets = {row[0]: row for row in found}
    rows: list[tuple[Any, ...]] = []
    numbers: list[int] = []
    items: list[Item] = []
    for number, w in watches:
        _, uid, state, digest, outcome = targets.get(number, (0, b"", "not-found", b"", None))
        if uid and w.digest is not None and w.digest != digest:
            state, outcome = "already-started", None
        if uid and state != "already-started" and state not in ENDED:
            rows.append((answer_mid(w.asker, w.run, w.key), w.asker, w.run, w.key, uid))
            continue
        numbers.append(number)
        items.append((w.asker, "", "", answer(w.asker, w.run, w.key, state, outcome, batch.now)))
    if rows:
        await s.each(WATCH, "mid,asker,run,key,target", rows)
        await s.over(MARK, sorted({row[-1] for row in rows}))
    if items:
        for number, sent in zip(numbers, await deliver(s, batch.replica, items, batch.now), strict=True):
            said[number] = sent


async def _consequences(s: Session, batch: Batch, over: list[Over], said: list[Answer]) -> None:
    """Watchers have their answers, children their cancel requests; each end is answered by its own rows."""
    ended = {image.uid: (image.state.value, image.outcome) for _, image in over if isinstance(image, Finish)}
    parents = [image.uid for _, image in over if image.children]
    told = [*await answers(s, ended, batch.now), *await cancels(s, parents, batch.now)]
    if len(over) > 1:
        place = {uid: n for n, uid in enumerate([*ended, *(image.uid for _, image in over if image.uid not in ended)])}
        told.sort(key=lambda item: place[item[0]])
    sent: dict[bytes, list[Sent]] = {}
    if told:
        delivered = await deliver(s, batch.replica, [item for _, item in told], batch.now)
        for (uid, _), one in zip(told, delivered, strict=True):
            sent.setdefault(uid, []).append(one)
    nothing = Finished(())
    for number, image in over:
        said[number] = Finished(tuple(sent[image.uid])) if image.uid in sent else nothing
