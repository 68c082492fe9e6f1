"""A batch as SQL. Everything here runs inside one transaction of the writer thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import astuple

from perdure.errors import LeaseLost
from perdure.model.records import State
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
from perdure.stores.sqlite.bulk import Bulk, insert, keyed, update
from perdure.stores.sqlite.reading import inbox
from perdure.stores.sqlite.rows import BORN, ENDED, ENTRY, MESSAGE, PENDING, REPLACED, STATES, to_message
from perdure.stores.sqlite.sending import ANY_WATCH, DELIVER, Item, answer, answers, cancels, deliver, freed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perdure.model.records import Entry
    from perdure.stores.sqlite.connection import Database, Row


_hex = bytes.fromhex

FENCE: Final = "select 1 from fence where replica = ? and epoch = ? and alive"

CREATE: Final = insert("instance", BORN)
CREATED: Final = Bulk(
    "select json_group_array(json_array(v.column1, hex(i.uid), i.state, hex(coalesce(i.first, i.arguments)),"
    " hex(i.digest))) from (values {rows}) as v join instance i on i.flow = v.column2 and i.id = v.column3",
    3,
)
THERE: Final = keyed("select json_group_array(hex(uid)) from instance where uid in ({rows})")
TOMBS: Final = Bulk(
    "select json_group_array(json_array(v.column1, g.state, hex(g.digest))) from (values {rows}) as v"
    " join gone g on g.flow = v.column2 and g.id = v.column3 and (g.state is not null or g.uid = v.column4)",
    4,
)
EARLY_FOR: Final = Bulk(
    "select json_group_array(v.column1) from (values {rows}) as v"
    " where exists (select 1 from early e where e.flow = v.column2 and e.id = v.column3)",
    3,
)
ADOPT: Final = (
    f"insert into inbox(uid, open, {MESSAGE}) select ?, 1, {MESSAGE} from early where flow = ? and id = ?"
    " order by rowid on conflict do nothing"
)
ADOPTED: Final = "delete from early where flow = ? and id = ?"
UNTAKEN: Final = f"select {MESSAGE} from inbox where uid = ? and open > 0 order by rowid"

ENTRIES: Final = insert("entry", ENTRY)
AGAIN: Final = insert("entry", ENTRY, f"{REPLACED} where entry.kind = 'again'")
PUT: Final = insert(
    "pending",
    PENDING,
    "on conflict(uid, run, key) do update set kind = excluded.kind, name = excluded.name,"
    " arguments = excluded.arguments, digest = excluded.digest, intent = excluded.intent, attempt = excluded.attempt,"
    " next_at = excluded.next_at, error = excluded.error, progress = excluded.progress",
)
DROP: Final = Bulk("delete from pending where (uid, run, key) in (values {rows})", 3)
TAKE: Final = update(
    "update inbox set open = 0, name = null, type = '', body = null from {v}"
    " where inbox.uid = v.column1 and inbox.mid = v.column2 and inbox.open > 0",
    2,
)
ANSWERED: Final = keyed("delete from watch where mid in ({rows})")
EXPOSE: Final = insert("exposed", "uid,key,value", "on conflict(uid, key) do update set value = excluded.value")

UPDATE: Final = update(
    "update instance set state = v.column2, waiting = v.column3, due_at = v.column4 from {v}"
    " where instance.uid = v.column1 and instance.owner = ?",
    4,
)
FINISH: Final = update(
    "update instance set state = v.column2, outcome = v.column3, ended_at = v.column4, failed_seq = v.column5,"
    " owner = null, waiting = 0, due_at = null, reason = null from {v}"
    " where instance.uid = v.column1 and instance.owner = ?",
    5,
)
RELEASE: Final = update(
    "update instance set state = v.column2, waiting = v.column3, due_at = v.column4, reason = v.column5,"
    " version = coalesce(v.column6, version), owner = null from {v}"
    " where instance.uid = v.column1 and instance.owner = ?",
    6,
)
STANDS: Final = keyed(
    "select json_group_array(json_array(hex(uid), state, owner, ended_at, run)) from instance where uid in ({rows})"
)
SEEN: Final = update(
    "update inbox set open = 2 from {v} where inbox.uid = v.column1 and inbox.mid = v.column2 and inbox.open = 1", 2
)
MINE: Final = keyed("select json_group_array(hex(uid)) from instance where uid in ({rows}) and +owner = ?")
HAND_OVER: Final = update(
    "update instance set owner = v.column2 from {v} where instance.uid = v.column1 and instance.owner is null"
    " and exists (select 1 from fence f where f.replica = v.column3 and f.alive)",
    3,
)
OWNERS: Final = keyed("select json_group_array(json_array(hex(uid), owner)) from instance where uid in ({rows})")
CALL: Final = update("update wakeup set owner = v.column2 from {v} where wakeup.uid = v.column1", 2)

# `e` are the entries of the instance's current run.
_LENGTH: Final = (
    "max(0, 1 + coalesce((select e.seq from entry e where e.uid = i.uid and e.run = i.run order by e.seq desc limit 1),"
    " -1))"
)
LENGTH: Final = f"select {_LENGTH} from instance i where i.uid = ?"
OTHER_TRIES: Final = keyed(
    f"delete from tried where uid in ({{rows}}) and length <> (select {_LENGTH} from instance i where i.uid = tried.uid)"
)
TRIED: Final = Bulk(
    f"insert into tried(uid, version, process, length) select i.uid, i.version, v.column2, {_LENGTH}"
    " from (values {rows}) as v join instance i on i.uid = v.column1 where true on conflict do nothing",
    2,
)
UNTRIED: Final = keyed("delete from tried where uid in ({rows})")

CONTINUE: Final = update(
    "update instance set run = v.column2, first = coalesce(instance.first, instance.arguments), arguments = v.column3,"
    " version = v.column4, edited_seq = -1, failed_seq = null, state = 'running', waiting = 0, due_at = null from {v}"
    " where instance.uid = v.column1 and instance.run = v.column5 and instance.owner = ?",
    5,
)
OLD_ENTRIES: Final = Bulk("delete from entry where (uid, run) in (values {rows})", 2)
OLD_PENDING: Final = Bulk("delete from pending where (uid, run) in (values {rows})", 2)
OLD_ANSWERS: Final = keyed(
    "delete from inbox where uid in ({rows}) and kind = 'answer'"
    " and run <> (select i.run from instance i where i.uid = inbox.uid)"
)
OLD_MESSAGES: Final = Bulk(
    "delete from inbox where rowid in (select m.rowid from (values {rows}) as v cross join inbox m on m.uid = v.column1"
    " where m.open = 0 and m.key is null and m.sent_at < v.column2)",
    2,
)
OLD_WATCHES: Final = keyed(
    "delete from watch where asker in ({rows}) and run <> (select i.run from instance i where i.uid = watch.asker)"
)

WAKE_OVER: Final = keyed("delete from wakeup where uid in ({rows})")

WATCHED: Final = Bulk(
    "select json_group_array(json_array(v.column1, hex(i.uid), i.state, hex(i.digest), iif(i.state in"
    " ('succeeded', 'failed', 'cancelled'), hex(i.outcome), null), i.outcome is null)) from (values {rows}) as v"
    " join instance i on i.flow = v.column2 and i.id = v.column3",
    3,
)
WATCH: Final = insert("watch", "mid,asker,run,key,target", "on conflict(mid) do update set target = excluded.target")
UNASKED: Final = keyed("delete from watch where asker in ({rows})")

ANY_EARLY_OR_GONE: Final = "select exists (select 1 from early), exists (select 1 from gone)"
ANY_WAKEUP: Final = "select exists (select 1 from wakeup)"
ANY_TRIED: Final = "select exists (select 1 from tried)"

Over = tuple[int, Finish | Continue]
"""The end of a run, and its place in the batch."""


def fenced(db: Database, replica: str, epoch: int) -> None:
    """The replica is alive and the epoch is its own, and both stay so until this transaction ends."""
    if db.execute(FENCE, (replica, epoch)).get is None:
        raise LeaseLost(f"replica {replica} was taken over, or writes with an epoch that is over ({epoch})")


def record(db: Database, entries: Sequence[Entry]) -> int:
    """Each entry is in the journal if its place was free, or waits for a step that runs again; gives how many are."""
    rows = [astuple(entry) for entry in entries]
    count = ENTRIES.run(db, rows)
    return count if count == len(rows) else count + AGAIN.run(db, rows)


def write(db: Database, batch: Batch, fold: Folded) -> list[Answer]:
    """The batch is written, in the order that `perdure.model.writes` gives; one answer for each write."""
    if batch.replica is not None:
        fenced(db, batch.replica, batch.epoch)
    said: list[Answer] = [None] * len(batch.writes)
    if fold.creates:
        _create(db, batch, fold, said)
    if fold.entries:
        by_entry_key(fold.entries)
        record(db, fold.entries)
    if fold.rare:
        _small_things(db, fold)
    if not (fold.images or fold.watches or fold.sends):
        return said
    over = _images(db, batch, fold, said) if fold.images else []
    renewed = _renew(db, over)
    if fold.watches:
        _watches(db, batch, fold, said)
    if over:
        _consequences(db, batch, over, said)
    if fold.sends:
        sent = deliver(db, batch.replica, [(s.uid, s.flow, s.id, s.message) for _, s in fold.sends], batch.now)
        for (number, _), one in zip(fold.sends, sent, strict=True):
            said[number] = one
    if renewed:
        inboxes = inbox(db, [image.uid for _, image in renewed])
        for number, image in renewed:
            done = said[number]
            said[number] = Continued(tuple(inboxes[image.uid]), done.sent if isinstance(done, Finished) else ())
    return said


# -- creating


def _create(db: Database, batch: Batch, fold: Folded, said: list[Answer]) -> None:
    early, gone = db.execute(ANY_EARLY_OR_GONE).get
    if gone:
        _tombs(db, fold, said)
    there: set[str] = set()
    full = [c for _, c in fold.creates if c.initial or c.inbox]
    if full:
        there = set(THERE.read(db, [(c.uid,) for c in full], str))
    rows: list[Row] = []
    for _, c in fold.creates:
        state, owner, due_at = "running", batch.replica, None
        if not c.owned:
            state, owner, due_at = "scheduled", None, c.at if c.due_at is None else c.due_at
        rows.append(
            (c.uid, 0, c.flow, c.id, c.lane, state, owner, 0, due_at, c.arguments, c.digest, c.parent, None, None, c.version,
             c.at, None)
        )  # fmt: skip
    nothing = Created()
    if CREATE.run(db, rows) == len(rows):
        for number, _ in fold.creates:
            said[number] = nothing
    else:
        _conflicts(db, fold, said)
    created = [(n, c) for n, c in fold.creates if type(said[n]) is Created]
    fold.entries += [c.begun for _, c in created if c.begun is not None]
    if full:
        _fill(db, fold, [(n, c) for n, c in created if c.uid.hex().upper() not in there], said)
    if early:
        waited = EARLY_FOR.read(db, [(n, c.flow, c.id) for n, c in created], int)
        for number in waited:
            create = batch.writes[number]
            if isinstance(create, Create):
                db.execute(ADOPT, (create.uid, create.flow, create.id))
                db.execute(ADOPTED, (create.flow, create.id))
                said[number] = _untaken(db, create.uid)


def _untaken(db: Database, uid: bytes) -> Created:
    return Created(tuple(map(to_message, db.execute(UNTAKEN, (uid,)))))


def _fill(db: Database, fold: Folded, created: list[tuple[int, Create]], said: list[Answer]) -> None:
    """The entries and messages that new instances begin with are there."""
    for number, create in created:
        fold.entries += create.initial
        if create.inbox:
            DELIVER.run(db, [(create.uid, 1, *astuple(message)) for message in create.inbox])
            said[number] = _untaken(db, create.uid)


def _tombs(db: Database, fold: Folded, said: list[Answer]) -> None:
    """Creates of what has left a tombstone are answered by that, and left out; and so are those that come late."""
    refused: set[bytes] = set()
    creates = dict(fold.creates)
    rows: list[Row] = [(n, c.flow, c.id, c.uid) for n, c in fold.creates]
    for number, state, digest in TOMBS.read(db, rows, tuple[int, str | None, str]):
        uid = creates[number].uid
        said[number] = NotOwned(uid) if state is None else Existing(b"", STATES[state], b"", _hex(digest))
        refused.add(uid)
    if refused:
        fold.without(refused)
        fold.creates = [(n, c) for n, c in fold.creates if said[n] is None]


def _conflicts(db: Database, fold: Folded, said: list[Answer]) -> None:
    """Each create is answered by the row that is there now: its own, or that of an older life."""
    creates = dict(fold.creates)
    found = CREATED.read(db, [(n, c.flow, c.id) for n, c in fold.creates], tuple[int, str, str, str, str])
    refused: set[bytes] = set()
    for number, hexed, state, arguments, digest in found:
        create, uid = creates[number], _hex(hexed)
        if uid == create.uid:  # new, or there from the same write before, and then messages may have come since
            said[number] = _untaken(db, uid)
        else:
            said[number] = Existing(uid, STATES[state], _hex(arguments), _hex(digest))
            refused.add(create.uid)
    fold.without(refused)


def _small_things(db: Database, fold: Folded) -> None:
    if fold.puts:
        PUT.run(db, [astuple(fold.puts[key].pending) for key in sorted(fold.puts)])
    if fold.drops:
        DROP.run(db, sorted(fold.drops))
    if fold.takes:
        TAKE.run(db, [(take.uid, take.mid) for take in fold.takes])
        if db.execute(ANY_WATCH).get:
            ANSWERED.run(db, [(take.mid,) for take in fold.takes])
    if fold.exposes:
        EXPOSE.run(db, [(*key, fold.exposes[key].value) for key in sorted(fold.exposes)])


# -- images


def _images(db: Database, batch: Batch, fold: Folded, said: list[Answer]) -> list[Over]:
    """The last image of each instance is its row; gives the ends of runs, for what follows from them."""
    updates: list[Row] = []
    finishes: list[Row] = []
    continues: list[Row] = []
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
            continues.append((image.uid, image.run, image.arguments, image.version, image.run - 1))
            over.append((number, image))
    matched = let_go = 0
    special: list[Release] = []
    if updates:
        matched += UPDATE.run(db, updates, batch.replica)
    if finishes:
        matched += FINISH.run(db, finishes, batch.replica)
    if continues:
        matched += CONTINUE.run(db, continues, batch.replica)
    if releases:
        special = _special(db, batch, [image for _, image in releases])
        let_go = RELEASE.run(db, [_released(image, batch.now) for _, image in releases], batch.replica)
        matched += let_go
    if matched < len(fold.images):
        _not_owned(db, batch, fold, said)
        over = [o for o in over if said[o[0]] is None]
        releases = [r for r in releases if said[r[0]] is None]
    if let_go:
        _let_go(db, [image for _, image in releases], special, batch.now)
    if over and db.execute(ANY_WAKEUP).get:
        WAKE_OVER.run(db, [(image.uid,) for _, image in over])
    ended: list[Row] = [(image.uid,) for _, image in over if isinstance(image, Finish)]
    if ended and db.execute(ANY_WATCH).get:
        UNASKED.run(db, ended)
    return over


def _released(image: Release, now: float) -> Row:
    due_at = image.due_at
    if image.state is State.SCHEDULED and due_at is None:
        due_at = now
    if image.state is not State.SCHEDULED and image.state is not State.SUSPENDED:
        due_at = None
    waiting = image.state is State.SUSPENDED
    return (image.uid, image.state.value, waiting, due_at, image.reason, image.version or None)


def _not_owned(db: Database, batch: Batch, fold: Folded, said: list[Answer]) -> None:
    """Images that did not match are answered so, but not those that stand from the same batch sent before."""
    rows: list[Row] = [(uid,) for uid in fold.images]
    stands = {r[0]: r[1:] for r in STANDS.read(db, rows, tuple[str, str, str | None, float | None, int])}
    for number, image in fold.images.values():
        state, owner, ended_at, run = stands.get(image.uid.hex().upper(), ("", None, None, -1))
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


def _special(db: Database, batch: Batch, releases: list[Release]) -> list[Release]:
    """The releases of what blocked, or goes to a replica, as far as the instance is owned: asked before they are."""
    found = [image for image in releases if image.to is not None or image.state is State.BLOCKED]
    if not found:
        return found
    mine = set(MINE.read(db, [(image.uid,) for image in found], str, batch.replica))
    return [image for image in found if image.uid.hex().upper() in mine]


def _let_go(db: Database, releases: list[Release], special: list[Release], now: float) -> None:
    """What follows from releases: nobody has the instances now, or another replica that is to edit them."""
    seen: list[Row] = [(image.uid, mid) for image in releases for mid in image.seen]
    if seen:
        SEEN.run(db, seen)
    nobodys = [image.uid for image in releases]
    if special:
        blocked = [image for image in special if image.state is State.BLOCKED]
        OTHER_TRIES.run(db, [(image.uid,) for image in blocked])
        TRIED.run(db, [(image.uid, image.process) for image in blocked])
        HAND_OVER.run(db, [(image.uid, image.to, image.to) for image in special if image.to is not None])
    if any(image.to is not None for image in releases):
        owners = dict(OWNERS.read(db, [(uid,) for uid in nobodys], tuple[str, str | None]))
        nobodys = [uid for uid in nobodys if owners.get(uid.hex().upper()) is None]
        if db.execute(ANY_WAKEUP).get:
            CALL.run(db, [(_hex(hexed), owner) for hexed, owner in owners.items() if owner is not None])
    if nobodys:
        freed(db, nobodys, now)


def _renew(db: Database, over: list[Over]) -> list[tuple[int, Continue]]:
    """Of the old runs of what continues nothing is left, and the new ones begin."""
    renewed = [(number, image) for number, image in over if isinstance(image, Continue)]
    if not renewed:
        return []
    continues = [image for _, image in renewed]
    uids: list[Row] = [(image.uid,) for image in continues]
    old: list[Row] = [(image.uid, image.run - 1) for image in continues]
    OLD_ENTRIES.run(db, old)
    OLD_PENDING.run(db, old)
    OLD_ANSWERS.run(db, uids)
    OLD_MESSAGES.run(db, [(image.uid, image.begun.at - REPEAT_SECONDS) for image in continues])
    if db.execute(ANY_WATCH).get:
        OLD_WATCHES.run(db, uids)
    if db.execute(ANY_TRIED).get:
        UNTRIED.run(db, uids)
    record(db, [image.begun for image in continues])
    return renewed


# -- what instances do to others


def _watches(db: Database, batch: Batch, fold: Folded, said: list[Answer]) -> None:
    watches = [(n, w) for n, w in fold.watches.values() if isinstance(w, Watch)]
    unwatches = [w for _, w in fold.watches.values() if isinstance(w, Unwatch)]
    if unwatches:
        ANSWERED.run(db, [(answer_mid(w.asker, w.run, w.key),) for w in unwatches])
    if not watches:
        return
    found = WATCHED.read(
        db, [(n, w.flow, w.id) for n, w in watches], tuple[int, str, str, str, str | None, bool | int]
    )  # fmt: skip
    targets = {row[0]: row[1:] for row in found}
    rows: list[Row] = []
    numbers: list[int] = []
    items: list[Item] = []
    for number, w in watches:
        uid, state, digest, outcome, no_outcome = targets.get(number, ("", "not-found", "", None, True))
        if uid and w.digest is not None and w.digest != _hex(digest):
            state, no_outcome = "already-started", True
        if uid and state != "already-started" and state not in ENDED:
            rows.append((answer_mid(w.asker, w.run, w.key), w.asker, w.run, w.key, _hex(uid)))
            continue
        body = None if no_outcome or outcome is None else _hex(outcome)
        numbers.append(number)
        items.append((w.asker, "", "", answer(w.asker, w.run, w.key, state, body, batch.now)))
    if rows:
        WATCH.run(db, rows)
    if items:
        for number, sent in zip(numbers, deliver(db, batch.replica, items, batch.now), strict=True):
            said[number] = sent


def _consequences(db: Database, batch: Batch, over: list[Over], said: list[Answer]) -> None:
    """Watchers have their answers, children their cancel requests; each end is answered by its own rows."""
    ended = {image.uid: (image.state.value, image.outcome) for _, image in over if isinstance(image, Finish)}
    parents = [image.uid for _, image in over if image.children]
    told = [*answers(db, ended, batch.now), *cancels(db, parents, batch.now)]
    if len(over) > 1:
        place = {uid: n for n, uid in enumerate([*ended, *(image.uid for _, image in over if image.uid not in ended)])}
        told.sort(key=lambda item: place[item[0]])
    sent: dict[bytes, list[Sent]] = {}
    if told:
        for (uid, _), one in zip(told, deliver(db, batch.replica, [item for _, item in told], batch.now), strict=True):
            sent.setdefault(uid, []).append(one)
    nothing = Finished(())
    for number, image in over:
        said[number] = Finished(tuple(sent[image.uid])) if image.uid in sent else nothing
