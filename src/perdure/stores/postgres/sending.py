"""Rows into inboxes as SQL, and who is called for them. Everything here runs inside one transaction.

Two transactions do not see what the other has not committed. Where that could lose a message, one of these keeps it:
both write to the same row of `place`; or the one locks the row that the other changes; or both look again after their
commit (`stale`), so that the one who commits later sees the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import astuple

from perdure.model.records import Message, MessageKind, State
from perdure.model.writes import Sent
from perdure.stores.contract import answer_mid, cancel_mid
from perdure.stores.postgres.rows import ENDED, MESSAGE, NOT_ENDED, arrays, by_columns, insert

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from perdure.stores.postgres.connection import After, Row, Session

_TARGET: Final = "i.uid, i.lane, i.state, i.owner, i.run"
BY_ID: Final = (
    f"select v.n, {_TARGET} from {arrays('n,flow,id')} join perdure.place p on p.flow = v.flow and p.id = v.id"
    " join perdure.instance i on i.uid = p.uid"
)
BY_UID: Final = f"select v.n, {_TARGET} from {arrays('n,uid')} join perdure.instance i on i.uid = v.uid"

DELIVER: Final = insert("inbox", f"uid,open,{MESSAGE}")
THERE: Final = (
    f"select v.n, m.open from {arrays('n,uid,mid')} left join perdure.inbox m on m.uid = v.uid and m.mid = v.mid"
)
# The row of each place is locked, so that whoever creates an instance there comes before this transaction or after it.
KNOCK: Final = (
    f"insert into perdure.place(flow,id,early) select distinct v.flow, v.id, true from {arrays('flow,id')}"
    " order by 1, 2 on conflict (flow, id) do update set early = true where place.uid is null"
    " returning flow, id, gone_at, state"
)
DELIVER_EARLY: Final = insert("early", f"flow,id,{MESSAGE}")
THERE_EARLY: Final = f"select v.n from {arrays('n,mid')} join perdure.early e on e.mid = v.mid"

# A row that says so already is locked all the same: its owner, who is about to delete it, waits for this transaction.
WAKE: Final = insert(
    "wakeup",
    "uid,owner,lane,at,cancel",
    "on conflict (uid) do update set owner = excluded.owner, cancel = wakeup.cancel or excluded.cancel"
    " where wakeup.owner <> excluded.owner or excluded.cancel and not wakeup.cancel",
)

# With an offset it is asked for each row. Else the server may join, and go through all that is open for each row.
_HAS: Final = "exists (select 1 from perdure.inbox m where m.uid = {uid} and {what} offset 0)"
NEEDY: Final = (
    "select v.uid from unnest($1::bytea[]) as v(uid) where exists (select 1 from perdure.wakeup w where w.uid = v.uid offset 0)"
    " or exists (select 1 from perdure.inbox m where m.uid = v.uid and m.open > 0 offset 0) order by v.uid"
)
WAKE_FREE: Final = (
    "update perdure.wakeup set owner = '', cancel = "
    + _HAS.format(uid="wakeup.uid", what="m.open > 0 and m.kind = 'cancel'")
    + " where uid = any($1::bytea[])"
)
WAKE_IDLE: Final = (
    "delete from perdure.wakeup w using perdure.instance i where w.uid = any($1::bytea[]) and i.uid = w.uid"
    " and case i.state when 'suspended' then false when 'succeeded' then true when 'failed' then true"
    " when 'cancelled' then true else not w.cancel end"
)
_UNSEEN: Final = _HAS.format(uid="i.uid", what="m.open = 1 and (i.state = 'suspended' or m.kind = 'cancel')")
WAKE_UNSEEN: Final = (
    "insert into perdure.wakeup(uid, owner, lane, at, cancel) select i.uid, '', i.lane, $2::double precision, "
    + _HAS.format(uid="i.uid", what="m.open = 1 and m.kind = 'cancel'")
    + f" from perdure.instance i where i.uid = any($1::bytea[]) and {_UNSEEN} and i.state {NOT_ENDED} order by i.uid"
    " on conflict (uid) do update set owner = '', cancel = wakeup.cancel or excluded.cancel"
)
# What called the owner only to hand the instance over is no cause to go on.
WAKE_EVICTED: Final = (
    "delete from perdure.wakeup w where w.uid = any($1::bytea[]) and not w.cancel and "
    + _HAS.format(uid="w.uid", what="m.kind = 'evict' and m.open > 0")
    + " and not "
    + _HAS.format(uid="w.uid", what="m.open = 1 and m.kind <> 'evict'")
)
EVICTED: Final = "delete from perdure.inbox where uid = any($1::bytea[]) and kind = 'evict' and open > 0"

# What became so by what others have committed at the same time: a wake-up row for one who is not the owner, or none.
STALE: Final = (
    "select w.uid, coalesce(i.owner, '') from perdure.wakeup w join perdure.instance i on i.uid = w.uid"
    " where w.uid = any($1::bytea[]) and (w.owner <> coalesce(i.owner, '') or i.state in"
    " ('succeeded', 'failed', 'cancelled')) union all"
    " select i.uid, '' from perdure.instance i where i.uid = any($2::bytea[]) and i.owner is null"
    f" and i.state {NOT_ENDED} and {_UNSEEN} and not exists (select 1 from perdure.wakeup w where w.uid = i.uid offset 0)"
    " union all select i.uid, i.owner from perdure.instance i where i.uid = any($3::bytea[]) and i.owner is not null"
    " and not exists (select 1 from perdure.wakeup w where w.uid = i.uid offset 0)"
)
OWNED_BY: Final = (
    "insert into perdure.wakeup(uid, owner, lane, at, cancel) select i.uid, i.owner, i.lane, $2::double precision, "
    + _HAS.format(uid="i.uid", what="m.open > 0 and m.kind = 'cancel'")
    + " from perdure.instance i where i.uid = any($1::bytea[]) and i.owner is not null order by i.uid"
    " on conflict (uid) do update set owner = excluded.owner returning uid, owner"
)

WATCHERS: Final = (
    "select target, asker, run, key from perdure.watch where target = any($1::bytea[]) order by target, mid"
)
CHILDREN: Final = (
    f"select parent, uid from perdure.instance where parent = any($1::bytea[]) and state {NOT_ENDED}"
    " order by parent, uid"
)

Item = tuple[bytes | None, str, str, Message]
"""A message and where it goes: to a uid, or to (flow, id)."""


def answer(asker: bytes, run: int, key: str, type: str, body: bytes | None, now: float) -> Message:
    """The row that tells an asker how another instance ended, or that it cannot know."""
    failed = type != State.SUCCEEDED.value
    return Message(answer_mid(asker, run, key), MessageKind.ANSWER, key, None, type, body, failed, run, now)


async def answers(
    s: Session, ends: Mapping[bytes, tuple[str, bytes | None]], now: float
) -> list[tuple[bytes, Item]]:  # fmt: skip
    """What those who watch these instances are told: by the uid of the watched, with type and body."""
    found: list[tuple[bytes, Item]] = []
    for uid, asker, run, key in await s.rows(WATCHERS, list(ends)) if ends else ():
        type, body = ends[uid]
        found.append((uid, (asker, "", "", answer(asker, run, key, type, body, now))))
    return found


async def cancels(s: Session, parents: Sequence[bytes], now: float) -> list[tuple[bytes, Item]]:
    """The cancel requests for unfinished attached children of these instances: by the parent's uid."""
    found: list[tuple[bytes, Item]] = []
    for parent, child in await s.rows(CHILDREN, parents) if parents else ():
        mid = cancel_mid(parent, child)
        found.append(
            (parent, (child, "", "", Message(mid, MessageKind.CANCEL, None, None, "", None, False, -1, now)))
        )  # fmt: skip
    return found


async def deliver(s: Session, replica: str | None, items: Sequence[Item], now: float) -> list[Sent]:
    """Each message is in the inbox of its uid, or of (flow, id); who must know and does not learn it here is woken."""
    sent: list[Sent | None] = [None] * len(items)
    early = await _deliver(s, replica, items, sent, range(len(items)), now)
    if early:
        created_meanwhile = await _wait(s, items, early, sent)
        if created_meanwhile:
            for number in await _deliver(s, replica, items, sent, created_meanwhile, now):
                sent[number] = Sent(None, None, items[number][3], new=False)  # created and deleted, all meanwhile
    return [one for one in sent if one is not None]


async def _deliver(
    s: Session, replica: str | None, items: Sequence[Item], sent: list[Sent | None], numbers: Iterable[int], now: float
) -> list[int]:  # fmt: skip
    """Those of the messages are delivered whose instance is there; gives those that may wait for one."""
    by_id = [(n, *items[n][1:3]) for n in numbers if items[n][0] is None]
    by_uid = [(n, items[n][0]) for n in numbers if items[n][0] is not None]
    targets: dict[int, Row] = {}
    if by_id:
        targets.update((row[0], row) for row in await s.rows(BY_ID, *by_columns(by_id)))
    if by_uid:
        targets.update((row[0], row) for row in await s.rows(BY_UID, *by_columns(by_uid)))
    early: list[int] = []
    there: dict[int, Row] = {}
    for number in numbers:
        uid, _, _, message = items[number]
        target = targets.get(number)
        if target is not None:
            taken = _takes(target, message)
            sent[number] = Sent(target[1], target[4], message, new=taken)
            if taken:
                there[number] = target
        else:
            waits = uid is None and message.kind == MessageKind.MESSAGE
            sent[number] = Sent(None, None, message, new=waits)
            if waits:
                early.append(number)
    if there:
        rows = [(target[1], 1, *astuple(items[n][3])) for n, target in there.items()]
        if await s.run(DELIVER, *by_columns(rows)) < len(rows):
            there = await _not_taken_before(s, items, sent, there)
        await _wake(s, replica, items, there, now)
    return early


def _takes(target: Row, message: Message) -> bool:
    """Whether the inbox of an instance takes such a message."""
    kind = message.kind
    if kind == MessageKind.MESSAGE:
        return True
    _, _, _, state, owner, run = target
    if state in ENDED or (kind == MessageKind.EVICT and owner is None):
        return False
    return kind != MessageKind.ANSWER or message.run == run


async def _not_taken_before(
    s: Session, items: Sequence[Item], sent: list[Sent | None], there: dict[int, Row]
) -> dict[int, Row]:  # fmt: skip
    """What another message with the same key has kept out is not new; gives those that are in an inbox, untaken."""
    rows = [(n, target[1], items[n][3].mid) for n, target in there.items()]
    found: list[tuple[int, int | None]] = await s.rows(THERE, *by_columns(rows))
    for number, state in found:
        if state is None:
            sent[number] = Sent(there[number][1], there[number][4], items[number][3], new=False)
        if not state:
            del there[number]
    return there


async def _wait(s: Session, items: Sequence[Item], early: list[int], sent: list[Sent | None]) -> list[int]:
    """Messages for instances that do not exist wait for them, unless those are gone; gives those whose instance does."""
    places = await s.rows(KNOCK, *by_columns([items[n][1:3] for n in early]))
    unknown: dict[tuple[str, str], tuple[float | None, str | None]] = {(p[0], p[1]): (p[2], p[3]) for p in places}
    waiting: list[int] = []
    alive: list[int] = []
    for number in early:
        _, flow, id, message = items[number]
        if (flow, id) not in unknown:
            alive.append(number)
            continue
        gone_at, state = unknown[flow, id]
        if state is not None or (gone_at is not None and message.sent_at <= gone_at):
            sent[number] = Sent(None, None, message, new=False)
        else:
            waiting.append(number)
    if waiting:
        rows = [(*items[n][1:3], *astuple(items[n][3])) for n in waiting]
        if await s.run(DELIVER_EARLY, *by_columns(rows)) < len(rows):
            mids = by_columns([(n, items[n][3].mid) for n in waiting])
            kept = {row[0] for row in await s.rows(THERE_EARLY, *mids)}
            for number in waiting:
                sent[number] = Sent(None, None, items[number][3], new=number in kept)
    return alive


async def _wake(s: Session, replica: str | None, items: Sequence[Item], there: Mapping[int, Row], now: float) -> None:
    rows: dict[bytes, tuple[bytes, str, str, float, bool]] = {}
    for number, (_, uid, lane, state, owner, _) in there.items():
        cancel = items[number][3].kind == MessageKind.CANCEL
        if state in ENDED:
            continue
        if owner is not None and owner == replica:
            continue
        # What is scheduled or blocked goes on for another cause, and looks into its inbox then; only a cancel ends it.
        if owner is not None or state == "suspended" or cancel:
            rows[uid] = (uid, owner or "", lane, now, cancel or (uid in rows and rows[uid][4]))
    if rows:
        await s.run(WAKE, *by_columns([rows[uid] for uid in sorted(rows)]))
    # Who gets no wake-up row may need one by what is committed at the same time.
    quiet = [row[1] for row in there.values() if row[4] is None and row[1] not in rows and row[3] not in ENDED]
    s.after.quiet.update(quiet)
    s.after.freed.update(quiet)
    for uid, row in rows.items():
        s.after.called[uid] = row[1]
    if any(not row[1] for row in rows.values()):
        s.after.anybody = True
    s.after.told.update(row[1] for row in rows.values() if row[1])


async def freed(s: Session, uids: Sequence[bytes], now: float) -> None:
    """The instances, which nobody owns now, are found by the next claim if they have cause to go on."""
    s.after.freed.update(uids)
    rows = [row[0] for row in await s.rows(NEEDY, uids)]
    if not rows:
        return
    s.after.anybody = True
    await s.run(WAKE_EVICTED, rows)
    await s.run(EVICTED, rows)
    await s.run(WAKE_FREE, rows)
    await s.run(WAKE_IDLE, rows)
    await s.run(WAKE_UNSEEN, rows, now)


async def stale(s: Session, after: After) -> list[bytes]:
    """The instances whose wake-up rows are not as they must be, among those that a transaction has touched."""
    return [row[0] for row in await s.rows(STALE, [*after.called, *after.freed], list(after.freed), list(after.quiet))]


async def mended(s: Session, uids: Sequence[bytes], now: float) -> dict[bytes, str]:
    """Their wake-up rows are as they must be; gives the owners that were called, by uid."""
    owned = {row[0]: row[1] for row in await s.rows(OWNED_BY, uids, now)}
    s.after.called.update(owned)
    s.after.told.update(owned.values())
    unowned = [uid for uid in sorted(uids) if uid not in owned]
    if unowned:
        await freed(s, unowned, now)
    return owned
