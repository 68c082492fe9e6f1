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
from perdure.stores.postgres.reading import inbox
from perdure.stores.postgres.rows import (
    BORN,
    ENDED,
    ENTRY,
    MESSAGE,
    PENDING,
    STATES,
    arrays,
    by_columns,
    entry_columns,
    insert,
)
from perdure.stores.postgres.sending import DELIVER, Item, answer, answers, cancels, deliver, freed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perdure.model.records import Entry
    from perdure.stores.postgres.connection import Session

FENCE: Final = "select 1 from perdure.fence where replica = $1 and epoch = $2 and alive for share"

# Whoever makes the place makes the instance. All of them, or the places alone: then each is looked at.
_BORN: Final = ",".join(f"v.{column}" for column in BORN.split(","))
CREATE: Final = (
    f"with v as (select * from {arrays(BORN)}), made as (insert into perdure.place(flow, id, uid)"
    " select v.flow, v.id, v.uid from v order by v.flow, v.id, v.place on conflict do nothing returning uid)"
    f" insert into perdure.instance({BORN}) select {_BORN} from v where (select count(*) from made) = $18 order by v.place"
)
THERE: Final = "select uid from perdure.instance where uid = any($1::bytea[])"
PLACES: Final = (
    f"select p.flow, p.id, p.uid, p.early, p.state, p.digest, p.gone from {arrays('flow,id')}"
    " join perdure.place p on p.flow = v.flow and p.id = v.id order by p.flow, p.id for update of p"
)
LIVES: Final = (
    "select uid, state, coalesce(first, arguments), digest from perdure.instance where uid = any($1::bytea[])"
)
SETTLE: Final = (
    f"update perdure.place p set uid = v.uid, early = false from {arrays('flow,id,uid')}"
    " where p.flow = v.flow and p.id = v.id"
)
BEAR: Final = insert("instance", BORN)
ADOPT: Final = (
    f"with e as (delete from perdure.early where flow = $2 and id = $3 returning nr, {MESSAGE})"
    f" insert into perdure.inbox(uid, open, {MESSAGE}) select $1::bytea, 1, {MESSAGE} from e order by nr"
    " on conflict do nothing"
)

ENTRIES: Final = insert("entry", ENTRY)
REPLACED: Final = "on conflict (uid, run, seq) do update set " + ", ".join(
    f"{column} = excluded.{column}" for column in ENTRY.split(",")[3:]
)
"""Of an entry whose place is taken."""
AGAIN: Final = insert("entry", ENTRY, f"{REPLACED} where entry.kind = 'again'")
PUT: Final = insert(
    "pending",
    PENDING,
    "on conflict (uid, run, key) do update set "
    + ", ".join(f"{column} = excluded.{column}" for column in PENDING.split(",")[3:]),
)
DROP: Final = (
    f"delete from perdure.pending p using {arrays('uid,run,key')}"
    " where p.uid = v.uid and p.run = v.run and p.key = v.key"
)
TAKE: Final = (
    f"update perdure.inbox m set open = 0, name = null, type = '', body = null from {arrays('uid,mid')}"
    " where m.uid = v.uid and m.mid = v.mid and m.open + 0 > 0"
)
ANSWERED: Final = "delete from perdure.watch where mid = any($1::bytea[])"
EXPOSE: Final = insert("exposed", "uid,key,value", "on conflict (uid, key) do update set value = excluded.value")

# An index on what is compared besides the key must not tempt the server: it knows nothing of tables that have just grown.
_MINE: Final = "where i.uid = v.uid and coalesce(i.owner, '') = $1"
UPDATE: Final = (
    "update perdure.instance i set state = v.state, waiting = v.waiting, due_at = v.due_at"
    f" from {arrays('uid,state,waiting,due_at', 2)} {_MINE}"
)
FINISH: Final = (
    "update perdure.instance i set state = v.state, outcome = v.outcome, ended_at = v.ended_at,"
    " failed_seq = v.failed_seq, owner = null, waiting = false, due_at = null, reason = null"
    f" from {arrays('uid,state,outcome,ended_at,failed_seq', 2)} {_MINE}"
)
RELEASE: Final = (
    "update perdure.instance i set state = v.state, waiting = v.waiting, due_at = v.due_at, reason = v.reason,"
    " version = coalesce(v.version, i.version), owner = null"
    f" from {arrays('uid,state,waiting,due_at,reason,version', 2)} {_MINE}"
)
CONTINUE: Final = (
    "update perdure.instance i set run = v.run, first = coalesce(i.first, i.arguments), arguments = v.arguments,"
    " version = v.version, edited_seq = -1, failed_seq = null, state = 'running', waiting = false, due_at = null"
    f" from {arrays('uid,run,arguments,version', 2)} {_MINE} and i.run = v.run - 1"
)
STANDS: Final = "select uid, state, owner, ended_at, run from perdure.instance where uid = any($1::bytea[])"
SEEN: Final = f"update perdure.inbox m set open = 2 from {arrays('uid,mid')} where m.uid = v.uid and m.mid = v.mid and m.open + 0 = 1"
MINE: Final = "select uid from perdure.instance where uid = any($1::bytea[]) and coalesce(owner, '') = $2"
HAND_OVER: Final = (
    f"update perdure.instance i set owner = v.owner from {arrays('uid,owner')} where i.uid = v.uid and i.owner is null"
    " and exists (select 1 from perdure.fence f where f.replica = v.owner and f.alive offset 0)"
)
HEIRS: Final = "select replica from perdure.fence where replica = any($1::text[]) and alive order by replica for share"
OWNERS: Final = "select uid, owner from perdure.instance where uid = any($1::bytea[]) and owner is not null"
CALL: Final = f"update perdure.wakeup w set owner = v.owner from {arrays('uid,owner')} where w.uid = v.uid"

# `e` are the entries of the instance's current run.
_LENGTH: Final = (
    "greatest(0, 1 + coalesce((select e.seq from perdure.entry e where e.uid = i.uid and e.run = i.run"
    " order by e.seq desc limit 1), -1))"
)
LENGTH: Final = f"select {_LENGTH} from perdure.instance i where i.uid = $1"
OTHER_TRIES: Final = (
    "delete from perdure.tried t using perdure.instance i where t.uid = any($1::bytea[]) and i.uid = t.uid"
    f" and t.length <> {_LENGTH}"
)
TRIED: Final = (
    f"insert into perdure.tried(uid, version, process, length) select i.uid, i.version, v.process, {_LENGTH}"
    f" from {arrays('uid,process')} join perdure.instance i on i.uid = v.uid on conflict do nothing"
)
UNTRIED: Final = "delete from perdure.tried where uid = any($1::bytea[])"

OLD_ENTRIES: Final = f"delete from perdure.entry e using {arrays('uid,run')} where e.uid = v.uid and e.run = v.run"
OLD_PENDING: Final = f"delete from perdure.pending p using {arrays('uid,run')} where p.uid = v.uid and p.run = v.run"
OLD_ANSWERS: Final = (
    "delete from perdure.inbox m using perdure.instance i where m.uid = any($1::bytea[]) and i.uid = m.uid"
    " and m.kind = 'answer' and m.run <> i.run"
)
OLD_MESSAGES: Final = (
    f"delete from perdure.inbox m using {arrays('uid,at')}"
    " where m.uid = v.uid and m.open = 0 and m.key is null and m.sent_at < v.at"
)
OLD_WATCHES: Final = (
    "delete from perdure.watch w using perdure.instance i where w.asker = any($1::bytea[]) and i.uid = w.asker"
    " and w.run <> i.run"
)
WAKE_OVER: Final = "delete from perdure.wakeup where uid = any($1::bytea[])"
UNASKED: Final = "delete from perdure.watch where asker = any($1::bytea[])"

TARGETS: Final = (
    f"select p.uid from {arrays('flow,id')} join perdure.place p on p.flow = v.flow and p.id = v.id"
    " where p.uid is not null"
)
# A watch and the end of what it watches lock the same row: one of them sees the other. All rows in one order.
LOCK: Final = "select 1 from perdure.instance where uid = any($1::bytea[]) order by uid for no key update"
MARK: Final = "update perdure.instance set watched = true where uid = any($1::bytea[]) and not watched"
WATCHED: Final = (
    f"select v.n, i.uid, i.state, i.digest, i.outcome from {arrays('n,flow,id')}"
    " join perdure.place p on p.flow = v.flow and p.id = v.id join perdure.instance i on i.uid = p.uid"
)
WATCH: Final = insert("watch", "mid,asker,run,key,target", "on conflict (mid) do update set target = excluded.target")

Over = tuple[int, Finish | Continue]
"""The end of a run, and its place in the batch."""


async def fenced(s: Session, replica: str, epoch: int) -> None:
    """The replica is alive and the epoch is its own, and both stay so until this transaction ends."""
    if await s.row(FENCE, replica, epoch) is None:
        raise LeaseLost(f"replica {replica} was taken over, or writes with an epoch that is over ({epoch})")


async def record(s: Session, entries: Sequence[Entry]) -> int:
    """Each entry is in the journal if its place was free, or waits for a step that runs again; gives how many are."""
    count = await s.run(ENTRIES, *entry_columns(entries))
    if count == len(entries):
        return count
    once: dict[tuple[bytes, int, int], Entry] = {}
    for entry in entries:
        place = (entry.uid, entry.run, entry.seq)
        if place not in once or once[place].kind == Kind.AGAIN:
            once[place] = entry
    return count + await s.run(AGAIN, *entry_columns(list(once.values())))


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
        targets = [row[0] for row in await s.rows(TARGETS, *by_columns(places))]
        await s.rows(LOCK, [*targets, *fold.images])


# -- creating


async def _create(s: Session, batch: Batch, fold: Folded, said: list[Answer]) -> None:
    full = [c.uid for _, c in fold.creates if c.initial or c.inbox]
    there = {row[0] for row in await s.rows(THERE, full)} if full else set[bytes]()
    rows = [_born(batch, c) for _, c in fold.creates]
    nothing = Created()
    early: list[int] = []
    if await s.run(CREATE, *by_columns(rows), len(rows)) == len(rows):
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
                await s.run(DELIVER, *by_columns(messages))
                said[number] = await _untaken(s, create.uid)
    for number in early:
        create = batch.writes[number]
        if isinstance(create, Create):
            await s.run(ADOPT, create.uid, create.flow, create.id)
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
    keys = sorted({(c.flow, c.id) for _, c in fold.creates})
    places = {(p[0], p[1]): p for p in await s.rows(PLACES, *by_columns(keys))}
    lives = {row[0]: row for row in await s.rows(LIVES, [p[2] for p in places.values() if p[2] is not None])}
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
        await s.run(SETTLE, *by_columns([(*at, c.uid) for at, c in born.items()]))
        await s.run(BEAR, *by_columns([_born(batch, c) for c in born.values()]))
    fold.without({c.uid for n, c in fold.creates if type(said[n]) is not Created})
    return waited


def _existing(row: Sequence[Any]) -> Existing:
    uid, state, arguments, digest = row
    return Existing(uid, STATES[state], arguments, digest)


async def _small_things(s: Session, fold: Folded) -> None:
    if fold.puts:
        await s.run(PUT, *by_columns([astuple(fold.puts[key].pending) for key in sorted(fold.puts)]))
    if fold.drops:
        await s.run(DROP, *by_columns(sorted(fold.drops)))
    if fold.takes:
        await s.run(TAKE, *by_columns([(take.uid, take.mid) for take in fold.takes]))
        await s.run(ANSWERED, [take.mid for take in fold.takes])
    if fold.exposes:
        await s.run(EXPOSE, *by_columns([(*key, fold.exposes[key].value) for key in sorted(fold.exposes)]))


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
        matched += await s.run(UPDATE, batch.replica, *by_columns(updates))
    if finishes:
        matched += await s.run(FINISH, batch.replica, *by_columns(finishes))
    if continues:
        matched += await s.run(CONTINUE, batch.replica, *by_columns(continues))
    let_go = 0
    if releases:
        special = await _special(s, batch, [image for _, image in releases])
        rows = [_released(image, batch.now) for _, image in releases]
        let_go = await s.run(RELEASE, batch.replica, *by_columns(rows))
    if matched + let_go < len(fold.images):
        await _not_owned(s, batch, fold, said)
        over = [o for o in over if said[o[0]] is None]
        releases = [r for r in releases if said[r[0]] is None]
    if let_go:
        await _let_go(s, [image for _, image in releases], special, batch.now)
    if over:
        await s.run(WAKE_OVER, [image.uid for _, image in over])
        await s.run(UNASKED, [image.uid for _, image in over if isinstance(image, Finish)])
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
    stands = {row[0]: row for row in await s.rows(STANDS, list(fold.images))}
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
    mine = {row[0] for row in await s.rows(MINE, [image.uid for image in found], batch.replica)}
    return [image for image in found if image.uid in mine]


async def _let_go(s: Session, releases: list[Release], special: list[Release], now: float) -> None:
    """What follows from releases: nobody has the instances now, or another replica that is to edit them."""
    seen = [(image.uid, mid) for image in releases for mid in image.seen]
    if seen:
        await s.run(SEEN, *by_columns(seen))
    nobodys = [image.uid for image in releases]
    blocked = [image for image in special if image.state is State.BLOCKED]
    if blocked:
        await s.run(OTHER_TRIES, [image.uid for image in blocked])
        await s.run(TRIED, *by_columns([(image.uid, image.process) for image in blocked]))
    heirs = [(image.uid, image.to) for image in special if image.to is not None]
    if heirs:
        # An heir that is taken over at the same time: its fence is dead before this, or only after this commit.
        await s.rows(HEIRS, sorted({to for _, to in heirs}))
        await s.run(HAND_OVER, *by_columns(heirs))
    if any(image.to is not None for image in releases):
        owners = [(row[0], row[1]) for row in await s.rows(OWNERS, nobodys)]
        if owners:
            await s.run(CALL, *by_columns(owners))
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
    uids = [image.uid for image in continues]
    old = by_columns([(image.uid, image.run - 1) for image in continues])
    await s.run(OLD_ENTRIES, *old)
    await s.run(OLD_PENDING, *old)
    await s.run(OLD_ANSWERS, uids)
    await s.run(OLD_MESSAGES, *by_columns([(image.uid, image.begun.at - REPEAT_SECONDS) for image in continues]))
    await s.run(OLD_WATCHES, uids)
    await s.run(UNTRIED, uids)
    await record(s, [image.begun for image in continues])
    return renewed


# -- what instances do to others


async def _watches(s: Session, batch: Batch, fold: Folded, said: list[Answer]) -> None:
    watches = [(n, w) for n, w in fold.watches.values() if isinstance(w, Watch)]
    unwatches = [w for _, w in fold.watches.values() if isinstance(w, Unwatch)]
    if unwatches:
        await s.run(ANSWERED, [answer_mid(w.asker, w.run, w.key) for w in unwatches])
    if not watches:
        return
    found = await s.rows(WATCHED, *by_columns([(n, w.flow, w.id) for n, w in watches]))
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
        await s.run(WATCH, *by_columns(rows))
        await s.run(MARK, [row[-1] for row in rows])
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
