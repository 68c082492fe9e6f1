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
from perdure.stores.mysql.connection import DUPLICATE, code_of
from perdure.stores.mysql.rows import ENDED, MESSAGE, NOT_ENDED, insert, keep

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from perdure.stores.mysql.connection import After, Row, Session

_TARGET: Final = "i.uid, i.lane, i.state, i.owner, i.run"
BY_ID: Final = (
    f"select v.n, {_TARGET} from %s v straight_join perdure_place p on p.flow = v.flow and p.id = v.id"
    " straight_join perdure_instance i on i.uid = p.uid"
)
BY_UID: Final = "select i.uid, i.lane, i.state, i.owner, i.run from perdure_instance i where i.uid in %s"

_INBOX: Final = f"uid,open,{MESSAGE}"
DELIVER: Final = insert("inbox", _INBOX)
DELIVER_REST: Final = keep("inbox", _INBOX)
STANDS: Final = (
    "select v.n, m.open from %s v left join perdure_inbox m force index (primary) on m.uid = v.uid and m.mid = v.mid"
)
# The row of each place is locked, so that whoever creates an instance there comes before this transaction or after it.
KNOCK: Final = (
    "insert into perdure_place(flow, id, early) select v.flow, v.id, 1 from %s v"
    " on duplicate key update early = if(perdure_place.uid is null, 1, perdure_place.early)"
)
UNKNOWN: Final = (
    "select p.flow, p.id, p.gone_at, p.state from %s v straight_join perdure_place p on p.flow = v.flow and p.id = v.id"
    " where p.uid is null"
)
_EARLY: Final = f"flow,id,{MESSAGE}"
DELIVER_EARLY: Final = insert("early", _EARLY)
DELIVER_EARLY_REST: Final = keep("early", _EARLY)
KEPT: Final = "select mid from perdure_early where mid in %s"

# A row that says so already is locked all the same: its owner, who is about to delete it, waits for this transaction.
WAKE: Final = (
    "insert into perdure_wakeup(uid, owner, lane, at, cancel) select v.uid, v.owner, v.lane, v.at, v.cancel from %s v"
    " on duplicate key update owner = v.owner, cancel = perdure_wakeup.cancel | v.cancel"
)
WAKE_SO: Final = (
    "insert into perdure_wakeup(uid, owner, lane, at, cancel) select v.uid, v.owner, v.lane, v.at, v.cancel from %s v"
    " on duplicate key update owner = v.owner, cancel = v.cancel"
)
WAKE_CALLED: Final = (
    "insert into perdure_wakeup(uid, owner, lane, at, cancel) select v.uid, v.owner, v.lane, v.at, v.cancel from %s v"
    " on duplicate key update owner = v.owner"
)
_WAKEUP: Final = "uid,owner,lane,at,cancel"
CALLED_NOW: Final = (
    "select uid, cancel from perdure_wakeup force index (primary) where uid in %s order by uid for update"
)
OPEN: Final = "select uid, open, kind from perdure_inbox force index (open) where open in (1, 2) and uid in %s"
STATES_OF: Final = "select uid, lane, state, owner from perdure_instance where uid in %s"
# What is locked is found by an index, always: left to itself the server reads all of a small table, and waits for rows of
# others. In a delete it takes such advice only if the table is named twice.
ASLEEP: Final = "delete w from perdure_wakeup w force index (primary) where w.uid in %s"
EVICTED: Final = (
    "delete m from perdure_inbox m force index (open) where m.open in (1, 2) and m.uid in %s and m.kind = 'evict'"
)

CALLS: Final = (
    "select i.uid, i.state, i.owner, w.owner from perdure_instance i left join perdure_wakeup w on w.uid = i.uid"
    " where i.uid in %s"
)

WATCHERS: Final = "select target, asker, run, `key` from perdure_watch where target in %s order by target, mid"
CHILDREN: Final = (
    f"select parent, uid from perdure_instance where parent in %s and state {NOT_ENDED} order by parent, uid"
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
    for uid, asker, run, key in await s.listed(WATCHERS, list(ends)) if ends else ():
        type, body = ends[uid]
        found.append((uid, (asker, "", "", answer(asker, run, key, type, body, now))))
    return found


async def cancels(s: Session, parents: Sequence[bytes], now: float) -> list[tuple[bytes, Item]]:
    """The cancel requests for unfinished attached children of these instances: by the parent's uid."""
    found: list[tuple[bytes, Item]] = []
    for parent, child in await s.listed(CHILDREN, parents) if parents else ():
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


async def _targets(s: Session, items: Sequence[Item], numbers: Iterable[int]) -> dict[int, Row]:
    """The instances that are meant, as rows of `_TARGET`."""
    by_id = [(n, *items[n][1:3]) for n in numbers if items[n][0] is None]
    by_uid = {n: items[n][0] for n in numbers if items[n][0] is not None}
    found: dict[int, Row] = {}
    if by_id:
        found.update((row[0], row[1:]) for row in await s.join(BY_ID, "n,flow,id", by_id))
    if by_uid:
        there = {row[0]: row for row in await s.listed(BY_UID, list(set(by_uid.values())))}
        found.update((n, there[uid]) for n, uid in by_uid.items() if uid in there)
    return found


async def _deliver(
    s: Session, replica: str | None, items: Sequence[Item], sent: list[Sent | None], numbers: Iterable[int], now: float
) -> list[int]:  # fmt: skip
    """Those of the messages are delivered whose instance is there; gives those that may wait for one."""
    targets = await _targets(s, items, numbers)
    early: list[int] = []
    there: dict[int, Row] = {}
    for number in numbers:
        uid, _, _, message = items[number]
        target = targets.get(number)
        if target is not None:
            taken = _takes(target, message)
            sent[number] = Sent(target[0], target[3], message, new=taken)
            if taken:
                there[number] = target
        else:
            waits = uid is None and message.kind == MessageKind.MESSAGE
            sent[number] = Sent(None, None, message, new=waits)
            if waits:
                early.append(number)
    if there:
        rows = [(target[0], 1, *astuple(items[n][3])) for n, target in there.items()]
        if not await inserted(s, DELIVER, rows):
            await s.each(DELIVER_REST, _INBOX, rows)
            there = await _not_taken_before(s, items, sent, there)
        await _wake(s, replica, items, there, now)
    return early


async def inserted(s: Session, sql: str, rows: Sequence[Sequence[object]]) -> bool:
    """Whether all rows are there now; else the key of one was taken, and those before it may be there."""
    try:
        await s.insert(sql, rows)
    except Exception as error:
        if code_of(error) == DUPLICATE:
            return False
        raise
    return True


def _takes(target: Row, message: Message) -> bool:
    """Whether the inbox of an instance takes such a message."""
    kind = message.kind
    if kind == MessageKind.MESSAGE:
        return True
    _, _, state, owner, run = target
    if state in ENDED or (kind == MessageKind.EVICT and owner is None):
        return False
    return kind != MessageKind.ANSWER or message.run == run


async def _not_taken_before(
    s: Session, items: Sequence[Item], sent: list[Sent | None], there: dict[int, Row]
) -> dict[int, Row]:  # fmt: skip
    """What another message with the same key has kept out is not new; gives those that are in an inbox, untaken."""
    rows = [(n, target[0], items[n][3].mid) for n, target in there.items()]
    found: list[tuple[int, int | None]] = await s.join(STANDS, "n,uid,mid", rows)
    for number, state in found:
        if state is None:
            uid, _, _, owner, _ = there[number]
            sent[number] = Sent(uid, owner, items[number][3], new=False)
        if not state:
            del there[number]
    return there


async def _wait(s: Session, items: Sequence[Item], early: list[int], sent: list[Sent | None]) -> list[int]:
    """Messages for instances that do not exist wait for them, unless those are gone; gives those whose instance does."""
    places = sorted({items[n][1:3] for n in early})
    await s.each(KNOCK, "flow,id", places)
    unknown: dict[tuple[str, str], tuple[float | None, str | None]] = {
        (p[0], p[1]): (p[2], p[3]) for p in await s.join(UNKNOWN, "flow,id", places)
    }
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
        if not await inserted(s, DELIVER_EARLY, rows):
            await s.each(DELIVER_EARLY_REST, _EARLY, rows)
            kept = {row[0] for row in await s.listed(KEPT, [items[n][3].mid for n in waiting])}
            for number in waiting:
                message = items[number][3]
                sent[number] = Sent(None, None, message, new=message.mid in kept)
    return alive


async def _wake(s: Session, replica: str | None, items: Sequence[Item], there: Mapping[int, Row], now: float) -> None:
    rows: dict[bytes, tuple[bytes, str, str, float, bool]] = {}
    for number, (uid, lane, state, owner, _) in there.items():
        cancel = items[number][3].kind == MessageKind.CANCEL
        if state in ENDED:
            continue
        if owner is not None and owner == replica:
            continue
        # What is scheduled or blocked goes on for another cause, and looks into its inbox then; only a cancel ends it.
        if owner is not None or state == "suspended" or cancel:
            rows[uid] = (uid, owner or "", lane, now, cancel or (uid in rows and rows[uid][4]))
    if rows:
        await s.each(WAKE, _WAKEUP, [rows[uid] for uid in sorted(rows)])
    # Who gets no wake-up row may need one by what is committed at the same time.
    quiet = [row[0] for row in there.values() if row[3] is None and row[0] not in rows and row[2] not in ENDED]
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
    called: dict[bytes, bool] = {row[0]: row[1] for row in await s.listed(CALLED_NOW, uids)}
    inboxes: dict[bytes, list[tuple[int, str]]] = {}
    for uid, seen, kind in await s.listed(OPEN, uids):
        inboxes.setdefault(uid, []).append((seen, kind))
    needy = called.keys() | inboxes.keys()
    if not needy:
        return
    s.after.anybody = True
    evicted = [uid for uid, rows in inboxes.items() if any(kind == MessageKind.EVICT for _, kind in rows)]
    if evicted:
        await s.over(EVICTED, evicted)
    lives = {row[0]: row for row in await s.listed(STATES_OF, list(needy))}
    awake: list[tuple[bytes, str, str, float, bool]] = []
    for uid in sorted(needy & lives.keys()):
        _, lane, state, _ = lives[uid]
        cancel = _stays(state, called.get(uid), inboxes.get(uid, []))
        if cancel is not None:
            awake.append((uid, "", lane, now, cancel))
    asleep = called.keys() - {row[0] for row in awake}
    if asleep:
        await s.over(ASLEEP, sorted(asleep))
    if awake:
        await s.each(WAKE_SO, _WAKEUP, awake)


def _stays(state: str, called: bool | None, inbox: list[tuple[int, str]]) -> bool | None:
    """Whether an instance that nobody owns is called to be cancelled; None: it is not called at all.

    What called the owner only to hand the instance over is no cause to go on.

    Args:
        state: of the instance.
        called: whether it was called to be cancelled; None: it was not called.
        inbox: whether each untaken message was seen (2) or not (1), and of which kind it is.
    """
    if state in ENDED:
        return None
    cancel = any(kind == MessageKind.CANCEL for _, kind in inbox)
    unseen = [kind for seen, kind in inbox if seen == 1 and kind != MessageKind.EVICT]
    if MessageKind.CANCEL in unseen or (unseen and state == "suspended"):
        return cancel
    handed_over = not called and any(kind == MessageKind.EVICT for _, kind in inbox) and not unseen
    if called is None or handed_over:
        return None
    return cancel if cancel or state == "suspended" else None


async def stale(s: Session, after: After) -> list[bytes]:
    """The instances whose wake-up rows are not as they must be, among those that a transaction has touched."""
    touched = after.called.keys() | after.freed
    found: set[bytes] = set()
    idle: dict[bytes, str] = {}
    for uid, state, owner, called in await s.listed(CALLS, sorted(touched)):
        if called is not None:
            if called != (owner or "") or state in ENDED:
                found.add(uid)
        elif owner is not None:
            if uid in after.quiet:
                found.add(uid)
        elif uid in after.freed and state not in ENDED:
            idle[uid] = state
    for uid, seen, kind in await s.listed(OPEN, sorted(idle)):
        if seen == 1 and (idle[uid] == "suspended" or kind == MessageKind.CANCEL):
            found.add(uid)
    return sorted(found)


async def mended(s: Session, uids: Sequence[bytes], now: float) -> dict[bytes, str]:
    """Their wake-up rows are as they must be; gives the owners that were called, by uid."""
    lives = {row[0]: row for row in await s.listed(STATES_OF, uids)}
    owned: dict[bytes, str] = {uid: row[3] for uid, row in lives.items() if row[3] is not None}
    if owned:
        untaken = await s.listed(OPEN, sorted(owned))
        cancelled = {uid for uid, _, kind in untaken if kind == MessageKind.CANCEL}
        rows = [(uid, owned[uid], lives[uid][1], now, uid in cancelled) for uid in sorted(owned)]
        await s.each(WAKE_CALLED, _WAKEUP, rows)
    s.after.called.update(owned)
    s.after.told.update(owned.values())
    unowned = [uid for uid in sorted(uids) if uid not in owned]
    if unowned:
        await freed(s, unowned, now)
    return owned
