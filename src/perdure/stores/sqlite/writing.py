"""A batch as SQL. Everything here runs inside one transaction of the writer thread."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import astuple

from perdure.errors import LeaseLost
from perdure.model.records import Message, MessageKind, State
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
    Sent,
    Unwatch,
    Update,
    Watch,
)
from perdure.stores.contract import answer_mid, cancel_mid
from perdure.stores.folding import Folded, by_entry_key
from perdure.stores.sqlite.bulk import Bulk, insert, keyed, update
from perdure.stores.sqlite.rows import ENDED, ENTRY, INSTANCE, MESSAGE, PENDING, STATES, to_message

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from perdure.stores.sqlite.connection import Database, Row


_hex = bytes.fromhex

FENCE: Final = "select 1 from fence where replica = ? and epoch = ? and alive"

CREATE: Final = insert("instance", INSTANCE)
CREATED: Final = Bulk(
    "select json_group_array(json_array(v.column1, hex(i.uid), i.state, hex(i.arguments), hex(i.digest)))"
    " from (values {rows}) as v join instance i on i.flow = v.column2 and i.id = v.column3",
    3,
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
PUT: Final = insert(
    "pending",
    PENDING,
    "on conflict(uid, run, key) do update set kind = excluded.kind, name = excluded.name,"
    " arguments = excluded.arguments, digest = excluded.digest, intent = excluded.intent, attempt = excluded.attempt,"
    " next_at = excluded.next_at, error = excluded.error, progress = excluded.progress",
)
DROP: Final = Bulk("delete from pending where (uid, run, key) in (values {rows})", 3)
TAKE: Final = keyed("update inbox set open = 0, name = null, type = '', body = null where mid in ({rows}) and open > 0")
ANSWERED: Final = keyed("delete from watch where mid in ({rows})")
EXPOSE: Final = insert("exposed", "uid,key,value", "on conflict(uid, key) do update set value = excluded.value")

UPDATE: Final = update(
    "update instance set state = v.column2, waiting = v.column3, due_at = v.column4 from {v}"
    " where instance.uid = v.column1 and instance.owner = ?",
    4,
)
FINISH: Final = update(
    "update instance set state = v.column2, outcome = v.column3, ended_at = v.column4, owner = null, waiting = 0,"
    " due_at = null, reason = null from {v} where instance.uid = v.column1 and instance.owner = ?",
    4,
)
RELEASE: Final = update(
    "update instance set state = v.column2, waiting = v.column3, due_at = v.column4, reason = v.column5,"
    " version = coalesce(v.column6, version), owner = null from {v}"
    " where instance.uid = v.column1 and instance.owner = ?",
    6,
)
STANDS: Final = keyed(
    "select json_group_array(json_array(hex(uid), state, owner, ended_at)) from instance where uid in ({rows})"
)
SEEN: Final = keyed("update inbox set open = 2 where mid in ({rows}) and open = 1")

WAKE_FREE: Final = keyed(
    "update wakeup set owner = '', cancel = exists (select 1 from inbox m where m.uid = wakeup.uid and m.open > 0"
    " and m.kind = 'cancel') where uid in ({rows})"
)
WAKE_IDLE: Final = keyed(
    "delete from wakeup where uid in ({rows}) and not cancel"
    " and (select state from instance i where i.uid = wakeup.uid) <> 'suspended'"
)
WAKE_UNSEEN: Final = Bulk(
    "insert into wakeup(uid, owner, flow, at, cancel) select i.uid, '', i.flow, v.column2,"
    " exists (select 1 from inbox m where m.uid = i.uid and m.open = 1 and m.kind = 'cancel')"
    " from (values {rows}) as v join instance i on i.uid = v.column1"
    " where exists (select 1 from inbox m where m.uid = i.uid and m.open = 1"
    " and (i.state = 'suspended' or m.kind = 'cancel'))"
    " on conflict(uid) do update set owner = '', cancel = max(cancel, excluded.cancel)",
    2,
)
WAKE: Final = insert(
    "wakeup",
    "uid,owner,flow,at,cancel",
    "on conflict(uid) do update set owner = excluded.owner, cancel = max(cancel, excluded.cancel)",
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
WATCHERS: Final = keyed(
    "select json_group_array(json_array(hex(target), hex(asker), run, key)) from"
    " (select target, asker, run, key from watch where target in ({rows}) order by target, mid)"
)
CHILDREN: Final = keyed(
    "select json_group_array(json_array(hex(parent), hex(uid))) from (select parent, uid from instance"
    " where parent in ({rows}) and state not in ('succeeded', 'failed', 'cancelled') order by parent, uid)"
)

BY_ID: Final = Bulk(
    "select json_group_array(json_array(v.column1, hex(i.uid), i.flow, i.state, i.owner)) from (values {rows}) as v"
    " join instance i on i.flow = v.column2 and i.id = v.column3",
    3,
)
BY_UID: Final = Bulk(
    "select json_group_array(json_array(v.column1, hex(i.uid), i.flow, i.state, i.owner)) from (values {rows}) as v"
    " join instance i on i.uid = v.column2",
    2,
)
DELIVER: Final = insert("inbox", f"uid,open,{MESSAGE}")
DELIVER_EARLY: Final = insert("early", f"flow,id,{MESSAGE}")
HAS: Final = "select open from inbox where mid = ?"
HAS_EARLY: Final = "select 1 from early where mid = ?"

ANY_EARLY: Final = "select exists (select 1 from early)"
ANY_WAKEUP: Final = "select exists (select 1 from wakeup)"
ANY_WATCH: Final = "select exists (select 1 from watch)"

Target = tuple[int, str, str, str, str | None]
Item = tuple[bytes | None, str, str, Message]


def fenced(db: Database, replica: str, epoch: int) -> None:
    """The replica is alive and the epoch is its own, and both stay so until this transaction ends."""
    if db.execute(FENCE, (replica, epoch)).get is None:
        raise LeaseLost(f"replica {replica} was taken over, or writes with an epoch that is over ({epoch})")


def write(db: Database, batch: Batch, fold: Folded) -> list[Answer]:
    """The batch is written, in the order that `perdure.model.writes` gives; one answer for each write."""
    if batch.replica is not None:
        fenced(db, batch.replica, batch.epoch)
    answers: list[Answer] = [None] * len(batch.writes)
    if fold.creates:
        _create(db, batch, fold, answers)
    if fold.entries:
        by_entry_key(fold.entries)
        ENTRIES.run(db, [astuple(entry) for entry in fold.entries])
    if fold.rare:
        _small_things(db, fold)
    if not (fold.images or fold.watches or fold.sends):
        return answers
    finished = _images(db, batch, fold, answers) if fold.images else []
    if fold.watches:
        _watches(db, batch, fold, answers)
    if finished:
        _consequences(db, batch, finished, answers)
    if fold.sends:
        sent = deliver(db, batch, [(s.uid, s.flow, s.id, s.message) for _, s in fold.sends])
        for (number, _), answer in zip(fold.sends, sent, strict=True):
            answers[number] = answer
    return answers


def _create(db: Database, batch: Batch, fold: Folded, answers: list[Answer]) -> None:
    rows: list[Row] = []
    for _, c in fold.creates:
        state, owner, due_at = "running", batch.replica, None
        if not c.owned:
            state, owner, due_at = "scheduled", None, c.at if c.due_at is None else c.due_at
        rows.append(
            (c.uid, 0, c.flow, c.id, state, owner, 0, due_at, c.arguments, c.digest, c.parent, None, None, c.version,
             c.at, None)
        )  # fmt: skip
    nothing = Created()
    if CREATE.run(db, rows) == len(rows):
        for number, _ in fold.creates:
            answers[number] = nothing
    else:
        _conflicts(db, fold, answers)
    created = [(n, c) for n, c in fold.creates if type(answers[n]) is Created]
    fold.entries += [c.begun for _, c in created if c.begun is not None]
    if db.execute(ANY_EARLY).get:
        waited = EARLY_FOR.read(db, [(n, c.flow, c.id) for n, c in created], int)
        for number in waited:
            create = batch.writes[number]
            if isinstance(create, Create):
                db.execute(ADOPT, (create.uid, create.flow, create.id))
                db.execute(ADOPTED, (create.flow, create.id))
                answers[number] = _untaken(db, create.uid)


def _untaken(db: Database, uid: bytes) -> Created:
    return Created(tuple(map(to_message, db.execute(UNTAKEN, (uid,)))))


def _conflicts(db: Database, fold: Folded, answers: list[Answer]) -> None:
    """Each create is answered by the row that is there now: its own, or that of an older life."""
    creates = dict(fold.creates)
    found = CREATED.read(db, [(n, c.flow, c.id) for n, c in fold.creates], tuple[int, str, str, str, str])
    refused: set[bytes] = set()
    for number, hexed, state, arguments, digest in found:
        create, uid = creates[number], _hex(hexed)
        if uid == create.uid:  # new, or there from the same write before, and then messages may have come since
            answers[number] = _untaken(db, uid)
        else:
            answers[number] = Existing(uid, STATES[state], _hex(arguments), _hex(digest))
            refused.add(create.uid)
    fold.without(refused)


def _small_things(db: Database, fold: Folded) -> None:
    if fold.puts:
        PUT.run(db, [astuple(fold.puts[key].pending) for key in sorted(fold.puts)])
    if fold.drops:
        DROP.run(db, sorted(fold.drops))
    if fold.takes:
        mids: list[Row] = [(take.mid,) for take in fold.takes]
        TAKE.run(db, mids)
        if db.execute(ANY_WATCH).get:
            ANSWERED.run(db, mids)
    if fold.exposes:
        EXPOSE.run(db, [(*key, fold.exposes[key].value) for key in sorted(fold.exposes)])


def _images(db: Database, batch: Batch, fold: Folded, answers: list[Answer]) -> list[tuple[int, Finish]]:
    """The last image of each instance is its row; gives the finishes, for what follows from them."""
    updates: list[Row] = []
    finishes: list[Row] = []
    finished: list[tuple[int, Finish]] = []
    releases: list[tuple[int, Release]] = []
    for number, image in fold.images.values():
        if isinstance(image, Finish):
            finishes.append((image.uid, image.state.value, image.outcome, image.at))
            finished.append((number, image))
        elif isinstance(image, Update):
            state = "suspended" if image.waiting else "running"
            updates.append((image.uid, state, image.waiting, image.due_at))
        else:
            releases.append((number, image))
    matched = 0
    if updates:
        matched += UPDATE.run(db, updates, batch.replica)
    if finishes:
        matched += FINISH.run(db, finishes, batch.replica)
    if releases:
        matched += RELEASE.run(db, [_released(image, batch.now) for _, image in releases], batch.replica)
    if matched < len(fold.images):
        _not_owned(db, batch, fold, answers)
        finished = [f for f in finished if answers[f[0]] is None]
        releases = [r for r in releases if answers[r[0]] is None]
    if releases:
        seen = [(mid,) for _, image in releases for mid in image.seen]
        if seen:
            SEEN.run(db, seen)
        freed(db, [image.uid for _, image in releases], batch.now)
    if finished:
        over: list[Row] = [(image.uid,) for _, image in finished]
        if db.execute(ANY_WAKEUP).get:
            WAKE_OVER.run(db, over)
        if db.execute(ANY_WATCH).get:
            UNASKED.run(db, over)
    return finished


def _released(image: Release, now: float) -> Row:
    due_at = image.due_at
    if image.state is State.SCHEDULED and due_at is None:
        due_at = now
    if image.state is not State.SCHEDULED and image.state is not State.SUSPENDED:
        due_at = None
    waiting = image.state is State.SUSPENDED
    return (image.uid, image.state.value, waiting, due_at, image.reason, image.version or None)


def _not_owned(db: Database, batch: Batch, fold: Folded, answers: list[Answer]) -> None:
    """Images that did not match are answered so, but not those that stand from the same batch sent before."""
    rows: list[Row] = [(uid,) for uid in fold.images]
    stands = {r[0]: r[1:] for r in STANDS.read(db, rows, tuple[str, str, str | None, float | None])}
    for number, image in fold.images.values():
        state, owner, ended_at = stands.get(image.uid.hex().upper(), ("", None, None))
        if isinstance(image, Update):
            stood = owner is not None and owner == batch.replica
        elif isinstance(image, Finish):
            stood = state == image.state.value and ended_at == image.at
        else:
            stood = owner is None and state == image.state.value
        if not stood:
            answers[number] = NotOwned(image.uid)


def freed(db: Database, uids: Sequence[bytes], now: float) -> None:
    """The instances, which nobody owns now, are found by the next claim if they have cause to go on."""
    rows: list[Row] = [(uid,) for uid in uids]
    if db.execute(ANY_WAKEUP).get:
        WAKE_FREE.run(db, rows)
        WAKE_IDLE.run(db, rows)
    WAKE_UNSEEN.run(db, [(uid, now) for uid in uids])


def _watches(db: Database, batch: Batch, fold: Folded, answers: list[Answer]) -> None:
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
        items.append((w.asker, "", "", _answer(w.asker, w.run, w.key, state, body, batch.now)))
    if rows:
        WATCH.run(db, rows)
    if items:
        for number, sent in zip(numbers, deliver(db, batch, items), strict=True):
            answers[number] = sent


def _answer(asker: bytes, run: int, key: str, type: str, body: bytes | None, now: float) -> Message:
    failed = type != State.SUCCEEDED.value
    return Message(answer_mid(asker, run, key), MessageKind.ANSWER, key, None, type, body, failed, run, now)


def _consequences(db: Database, batch: Batch, finished: list[tuple[int, Finish]], answers: list[Answer]) -> None:
    """Watchers have their answers, children their cancel requests; each finish is answered by its own rows."""
    by_uid = {image.uid.hex().upper(): (number, image) for number, image in finished}
    numbers: list[int] = []
    items: list[Item] = []
    if db.execute(ANY_WATCH).get:
        over: list[Row] = [(image.uid,) for _, image in finished]
        for target, hexed, run, key in WATCHERS.read(db, over, tuple[str, str, int, str]):
            number, image = by_uid[target]
            asker = _hex(hexed)
            numbers.append(number)
            items.append((asker, "", "", _answer(asker, run, key, image.state.value, image.outcome, batch.now)))
    parents: list[Row] = [(image.uid,) for _, image in finished if image.children]
    if parents:
        for parent, hexed in CHILDREN.read(db, parents, tuple[str, str]):
            number, image = by_uid[parent]
            child = _hex(hexed)
            mid = cancel_mid(image.uid, child)
            numbers.append(number)
            items.append(
                (child, "", "", Message(mid, MessageKind.CANCEL, None, None, "", None, False, -1, batch.now))
            )  # fmt: skip
    sent: dict[int, list[Sent]] = {}
    for number, answer in zip(numbers, deliver(db, batch, items) if items else [], strict=True):
        sent.setdefault(number, []).append(answer)
    nothing = Finished(())
    for number, _ in finished:
        answers[number] = Finished(tuple(sent[number])) if number in sent else nothing


def deliver(db: Database, batch: Batch, items: Sequence[Item]) -> list[Sent]:
    """Each message is in the inbox of its uid, or of (flow, id); who must know and does not learn it here is woken."""
    by_id: list[Row] = [(n, flow, id) for n, (uid, flow, id, _) in enumerate(items) if uid is None]
    by_uid: list[Row] = [(n, uid) for n, (uid, _, _, _) in enumerate(items) if uid is not None]
    found = chain(
        BY_ID.read(db, by_id, Target) if by_id else (),
        BY_UID.read(db, by_uid, Target) if by_uid else (),
    )
    targets = {row[0]: row for row in found}
    sent: list[Sent] = []
    rows: list[Row] = []
    early: list[Row] = []
    there: dict[int, Target] = {}
    for number, (uid, flow, id, message) in enumerate(items):
        target = targets.get(number)
        if target is not None:
            ended = target[3] in ENDED and message.kind != MessageKind.MESSAGE
            sent.append(Sent(_hex(target[1]), target[4], message, new=not ended))
            if not ended:
                there[number] = target
                rows.append((_hex(target[1]), 1, *astuple(message)))
        else:
            waits = uid is None and message.kind == MessageKind.MESSAGE
            sent.append(Sent(None, None, message, new=waits))
            if waits:
                early.append((flow, id, *astuple(message)))
    if early and DELIVER_EARLY.run(db, early) < len(early):
        _seen_before(db, sent, (n for n, s in enumerate(sent) if s.uid is None and s.new), HAS_EARLY)
    if rows:
        if DELIVER.run(db, rows) < len(rows):
            taken = _seen_before(db, sent, there, HAS)
            there = {n: t for n, t in there.items() if sent[n].new and n not in taken}
        _wake(db, batch, sent, there)
    return sent


def _seen_before(db: Database, sent: list[Sent], numbers: Iterable[int], has: str) -> set[int]:
    """What another message with the same key has kept out is not new; gives those that were taken already."""
    taken: set[int] = set()
    for number in list(numbers):
        one = sent[number]
        there = db.execute(has, (one.message.mid,)).get
        if there is None:
            sent[number] = msgspec.structs.replace(one, new=False)
        elif there == 0:
            taken.add(number)
    return taken


def _wake(db: Database, batch: Batch, sent: list[Sent], there: dict[int, Target]) -> None:
    rows: dict[bytes, Row] = {}
    for number, (_, hexed, flow, state, owner) in there.items():
        cancel = sent[number].message.kind == MessageKind.CANCEL
        if state in ENDED or (owner is not None and owner == batch.replica):
            continue
        # What is scheduled or blocked goes on for another cause, and looks into its inbox then; only a cancel ends it.
        if owner is not None or state == "suspended" or cancel:
            uid = _hex(hexed)
            cancel = cancel or (uid in rows and rows[uid][4] == 1)
            rows[uid] = (uid, owner or "", flow, batch.now, int(cancel))
    if rows:
        WAKE.run(db, [rows[uid] for uid in sorted(rows)])
