"""Rows into inboxes as SQL, and who is called for them. Everything here runs inside one transaction."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import astuple

from perdure.model.records import Message, MessageKind, State
from perdure.model.writes import Sent
from perdure.stores.contract import answer_mid, cancel_mid
from perdure.stores.sqlite.bulk import Bulk, insert, keyed
from perdure.stores.sqlite.rows import ENDED, MESSAGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from perdure.stores.sqlite.connection import Database, Row


_hex = bytes.fromhex

BY_ID: Final = Bulk(
    "select json_group_array(json_array(v.column1, hex(i.uid), i.lane, i.state, i.owner, i.run))"
    " from (values {rows}) as v join instance i on i.flow = v.column2 and i.id = v.column3",
    3,
)
BY_UID: Final = Bulk(
    "select json_group_array(json_array(v.column1, hex(i.uid), i.lane, i.state, i.owner, i.run))"
    " from (values {rows}) as v join instance i on i.uid = v.column2",
    2,
)
GONE: Final = Bulk(
    "select json_group_array(v.column1) from (values {rows}) as v join gone g on g.flow = v.column2"
    " and g.id = v.column3 and (g.state is not null or v.column4 <= g.at)",
    4,
)
DELIVER: Final = insert("inbox", f"uid,open,{MESSAGE}")
DELIVER_EARLY: Final = insert("early", f"flow,id,{MESSAGE}")
HAS: Final = "select open from inbox where uid = ? and mid = ?"
HAS_EARLY: Final = "select 1 from early where mid = ?"

WAKE: Final = insert(
    "wakeup",
    "uid,owner,lane,at,cancel",
    "on conflict(uid) do update set owner = excluded.owner, cancel = max(cancel, excluded.cancel)",
)
WAKE_FREE: Final = keyed(
    "update wakeup set owner = '', cancel = exists (select 1 from inbox m where m.uid = wakeup.uid and m.open > 0"
    " and m.kind = 'cancel') where uid in ({rows})"
)
WAKE_IDLE: Final = keyed(
    "delete from wakeup where uid in ({rows}) and case (select state from instance i where i.uid = wakeup.uid)"
    " when 'suspended' then false when 'succeeded' then true when 'failed' then true when 'cancelled' then true"
    " else not cancel end"
)
WAKE_UNSEEN: Final = Bulk(
    "insert into wakeup(uid, owner, lane, at, cancel) select i.uid, '', i.lane, v.column2,"
    " exists (select 1 from inbox m where m.uid = i.uid and m.open = 1 and m.kind = 'cancel')"
    " from (values {rows}) as v join instance i on i.uid = v.column1"
    " where exists (select 1 from inbox m where m.uid = i.uid and m.open = 1"
    " and (i.state = 'suspended' or m.kind = 'cancel')) and i.state not in ('succeeded', 'failed', 'cancelled')"
    " on conflict(uid) do update set owner = '', cancel = max(cancel, excluded.cancel)",
    2,
)
# What called the owner only to hand the instance over is no cause to go on.
WAKE_EVICTED: Final = keyed(
    "delete from wakeup where uid in ({rows}) and not cancel"
    " and exists (select 1 from inbox m where m.uid = wakeup.uid and m.kind = 'evict' and m.open > 0)"
    " and not exists (select 1 from inbox m where m.uid = wakeup.uid and m.open = 1 and m.kind <> 'evict')"
)
EVICTED: Final = keyed("delete from inbox where uid in ({rows}) and kind = 'evict' and open > 0")

WATCHERS: Final = keyed(
    "select json_group_array(json_array(hex(target), hex(asker), run, key)) from"
    " (select target, asker, run, key from watch where target in ({rows}) order by target, mid)"
)
CHILDREN: Final = keyed(
    "select json_group_array(json_array(hex(parent), hex(uid))) from (select parent, uid from instance"
    " where parent in ({rows}) and state not in ('succeeded', 'failed', 'cancelled') order by parent, uid)"
)

ANY_GONE: Final = "select exists (select 1 from gone)"
ANY_WAKEUP_OR_EVICT: Final = (
    "select exists (select 1 from wakeup), exists (select 1 from inbox where kind = 'evict' and open > 0)"
)
ANY_WATCH: Final = "select exists (select 1 from watch)"

Target = tuple[int, str, str, str, str | None, int]
Item = tuple[bytes | None, str, str, Message]


def answer(asker: bytes, run: int, key: str, type: str, body: bytes | None, now: float) -> Message:
    """The row that tells an asker how another instance ended, or that it cannot know."""
    failed = type != State.SUCCEEDED.value
    return Message(answer_mid(asker, run, key), MessageKind.ANSWER, key, None, type, body, failed, run, now)


def answers(
    db: Database, ends: Mapping[bytes, tuple[str, bytes | None]], now: float
) -> Iterator[tuple[bytes, Item]]:  # fmt: skip
    """What those who watch these instances are told: by the uid of the watched, with type and body."""
    if not ends or not db.execute(ANY_WATCH).get:
        return
    for target, hexed, run, key in WATCHERS.read(db, [(uid,) for uid in ends], tuple[str, str, int, str]):
        uid, asker = _hex(target), _hex(hexed)
        type, body = ends[uid]
        yield uid, (asker, "", "", answer(asker, run, key, type, body, now))


def cancels(db: Database, parents: Sequence[bytes], now: float) -> Iterator[tuple[bytes, Item]]:
    """The cancel requests for unfinished attached children of these instances: by the parent's uid."""
    if not parents:
        return
    for parent, hexed in CHILDREN.read(db, [(uid,) for uid in parents], tuple[str, str]):
        uid, child = _hex(parent), _hex(hexed)
        mid = cancel_mid(uid, child)
        yield uid, (child, "", "", Message(mid, MessageKind.CANCEL, None, None, "", None, False, -1, now))


def deliver(db: Database, replica: str | None, items: Sequence[Item], now: float) -> list[Sent]:
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
    early: list[int] = []
    there: dict[int, Target] = {}
    for number, (uid, _, _, message) in enumerate(items):
        target = targets.get(number)
        if target is not None:
            taken = _takes(target, message)
            sent.append(Sent(_hex(target[1]), target[4], message, new=taken))
            if taken:
                there[number] = target
                rows.append((_hex(target[1]), 1, *astuple(message)))
        else:
            waits = uid is None and message.kind == MessageKind.MESSAGE
            sent.append(Sent(None, None, message, new=waits))
            if waits:
                early.append(number)
    if early:
        _wait(db, items, early, sent)
    if rows:
        if DELIVER.run(db, rows) < len(rows):
            taken_before = _seen_before(db, sent, there)
            there = {n: t for n, t in there.items() if sent[n].new and n not in taken_before}
        _wake(db, replica, sent, there, now)
    return sent


def _takes(target: Target, message: Message) -> bool:
    """Whether the inbox of an instance takes such a message."""
    kind = message.kind
    if kind == MessageKind.MESSAGE:
        return True
    _, _, _, state, owner, run = target
    if state in ENDED or (kind == MessageKind.EVICT and owner is None):
        return False
    return kind != MessageKind.ANSWER or message.run == run


def _wait(db: Database, items: Sequence[Item], early: list[int], sent: list[Sent]) -> None:
    """Messages for instances that do not exist wait for them, unless those are gone."""
    if db.execute(ANY_GONE).get:
        gone = set(GONE.read(db, [(n, items[n][1], items[n][2], items[n][3].sent_at) for n in early], int))
        for number in gone:
            sent[number] = msgspec.structs.replace(sent[number], new=False)
        early = [n for n in early if n not in gone]
    rows: list[Row] = [(items[n][1], items[n][2], *astuple(items[n][3])) for n in early]
    if rows and DELIVER_EARLY.run(db, rows) < len(rows):
        for number in early:
            if db.execute(HAS_EARLY, (items[number][3].mid,)).get is None:
                sent[number] = msgspec.structs.replace(sent[number], new=False)


def _seen_before(db: Database, sent: list[Sent], numbers: Iterable[int]) -> set[int]:
    """What another message with the same key has kept out is not new; gives those that were taken already."""
    taken: set[int] = set()
    for number in list(numbers):
        one = sent[number]
        there = db.execute(HAS, (one.uid, one.message.mid)).get
        if there is None:
            sent[number] = msgspec.structs.replace(one, new=False)
        elif there == 0:
            taken.add(number)
    return taken


def _wake(db: Database, replica: str | None, sent: list[Sent], there: dict[int, Target], now: float) -> None:
    rows: dict[bytes, Row] = {}
    for number, (_, hexed, lane, state, owner, _) in there.items():
        cancel = sent[number].message.kind == MessageKind.CANCEL
        if state in ENDED or (owner is not None and owner == replica):
            continue
        # What is scheduled or blocked goes on for another cause, and looks into its inbox then; only a cancel ends it.
        if owner is not None or state == "suspended" or cancel:
            uid = _hex(hexed)
            cancel = cancel or (uid in rows and rows[uid][4] == 1)
            rows[uid] = (uid, owner or "", lane, now, int(cancel))
    if rows:
        WAKE.run(db, [rows[uid] for uid in sorted(rows)])


def freed(db: Database, uids: Sequence[bytes], now: float) -> None:
    """The instances, which nobody owns now, are found by the next claim if they have cause to go on."""
    rows: list[Row] = [(uid,) for uid in uids]
    wakeups, evicts = db.execute(ANY_WAKEUP_OR_EVICT).get
    if evicts:
        WAKE_EVICTED.run(db, rows)
        EVICTED.run(db, rows)
    if wakeups:
        WAKE_FREE.run(db, rows)
        WAKE_IDLE.run(db, rows)
    WAKE_UNSEEN.run(db, [(uid, now) for uid in uids])
