"""Edits from outside and retention as SQL: one guarded change of one instance, or many that end for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import asdict, astuple

from perdure.model.records import State
from perdure.model.writes import Edit, Edited, Outdated, OwnedBy
from perdure.stores.mysql.rows import ENTRY, INSTANCE, MESSAGE, NOT_ENDED, of_entries, quoted, to_instance
from perdure.stores.mysql.sending import ASLEEP, EVICTED, answers, cancels, deliver, freed
from perdure.stores.mysql.writing import LENGTH, REPLACED, UNASKED, UNTRIED, fenced

if TYPE_CHECKING:
    from perdure.model.records import Instance, Message
    from perdure.model.writes import Sent
    from perdure.stores.mysql.connection import Session

ROW: Final = f"select {quoted(INSTANCE)} from perdure_instance where uid = %s for update"
DELETED: Final = "select 1 from perdure_place where edit = %s"
OPEN: Final = "select count(*) from perdure_inbox force index (primary) where mid in %s and uid = %s and open > 0"

DROP_ENTRIES: Final = (
    "delete e from perdure_entry e force index (primary) where e.seq in %s and e.uid = %s and e.run = %s"
)
FORGET: Final = (
    "delete p from perdure_pending p force index (primary) where p.`key` in %s and p.uid = %s and p.run = %s"
)
KEY_TAKEN: Final = "select 1 from perdure_inbox force index (once) where uid = %s and once = %s and mid <> %s"
_MESSAGE: Final = f"uid,open,{MESSAGE}"
PUT_MESSAGE: Final = (
    f"insert into perdure_inbox({quoted(_MESSAGE)}) select {quoted(_MESSAGE, 'v')} from %s v on duplicate key update open = 1,"
    " perdure_inbox.`key` = coalesce(v.`key`, perdure_inbox.`key`), name = v.name, type = v.type, body = v.body"
)
UNSEND: Final = "delete m from perdure_inbox m force index (primary) where m.mid in %s and m.uid = %s"
_CHANGED: Final = [column for column in INSTANCE.split(",") if column not in ("uid", "term")]
REPLACE: Final = (
    "update perdure_instance set " + ", ".join(f"`{column}` = %s" for column in _CHANGED) + " where uid = %s"
)
UNWATCHED: Final = "delete w from perdure_watch w force index (target) where w.target in %s"
DELETE: Final = tuple(
    f"delete t from perdure_{table} t force index (primary) where t.uid in %s"
    for table in ("entry", "pending", "inbox", "exposed", "wakeup", "tried", "instance")
)
BURY: Final = (
    "update perdure_place set uid = null, gone = %s, gone_at = %s, state = null, digest = null, edit = %s"
    " where flow = %s and id = %s"
)
ENTOMB: Final = (
    "update perdure_instance i straight_join perdure_place p force index (primary)"
    " on i.uid in %s and p.flow = i.flow and p.id = i.id and p.uid = i.uid"
    " set p.gone = i.uid, p.gone_at = %s, p.state = i.state, p.digest = i.digest, p.edit = null, p.uid = null"
)
UNTOMB: Final = (
    "update perdure_place set state = null, digest = null"
    " where flow = %s and id = %s and uid is null and state is not null"
)
_OLD: Final = (
    "i.ended_at < %s and i.owner is null and i.state in ('succeeded', 'failed', 'cancelled') and not exists ("
    f"select 1 from perdure_instance p force index (primary) where p.uid = i.parent and p.state {NOT_ENDED})"
)
OLD: Final = f"select i.uid from perdure_instance i force index (ended) where {_OLD} order by i.ended_at limit %s"
OLD_STILL: Final = (
    "select uid from perdure_instance where uid in %s and ended_at < %s and owner is null order by uid for update"
)


async def edit(s: Session, replica: str | None, epoch: int, edit: Edit) -> Edited | OwnedBy | Outdated:
    """The edit is made, if the instance is as it was read; or was made before."""
    if replica is not None:
        await fenced(s, replica, epoch)
    found = await s.row(ROW, edit.uid)
    if found is None:
        return Outdated() if await s.row(DELETED, edit.id) is None else Edited()
    row = to_instance(found)
    if row.edit == edit.id:
        return Edited()
    if row.owner is not None and row.owner != replica:
        return OwnedBy(row.owner)
    if not await _as_read(s, row, edit):
        return Outdated()
    s.after.anybody = True
    if edit.row is None:
        return await _delete(s, replica, row, edit)
    await _change(s, edit)
    return await _replace(s, replica, row, edit, edit.row)


async def _as_read(s: Session, row: Instance, edit: Edit) -> bool:
    if (edit.run, edit.state, edit.ended_at, edit.last) != (row.run, row.state, row.ended_at, row.edit):
        return False
    (length,) = await s.row(LENGTH, row.uid) or (0,)
    if edit.length != length:
        return False
    mids = list(set(edit.open))
    return not mids or sum(row[0] for row in await s.listed(OPEN, mids, edit.uid)) == len(mids)


async def _change(s: Session, edit: Edit) -> None:
    """What belongs to the instance is as the edit says."""
    put = {(entry.run, entry.seq): entry for entry in edit.put}
    if put:
        await s.each(REPLACED, ENTRY, of_entries(list(put.values())))
    if edit.drop:
        await s.over(DROP_ENTRIES, edit.drop, edit.uid, edit.run)
    if edit.forget:
        await s.over(FORGET, edit.forget, edit.uid, edit.run)
    if edit.unsend:
        await s.over(UNSEND, edit.unsend, edit.uid)
    for message in edit.messages:
        await _put(s, edit.uid, message)


async def _put(s: Session, uid: bytes, message: Message) -> None:
    if message.key is None or await s.row(KEY_TAKEN, uid, message.key, message.mid) is None:
        await s.each(PUT_MESSAGE, _MESSAGE, [(uid, 1, *astuple(message))])


async def _replace(s: Session, replica: str | None, before: Instance, edit: Edit, row: Instance) -> Edited:
    """The row is the new one, and nobody's; with what follows if that ends it, or does not."""
    fields = {**asdict(row), "state": row.state.value, "owner": None, "waiting": row.state is State.SUSPENDED}
    fields["edit"] = edit.id
    await s.run(REPLACE, *(fields[column] for column in _CHANGED), edit.uid)
    mine = [edit.uid]
    await s.over(UNTRIED, mine)
    if before.state.ended:
        await s.over(UNWATCHED, mine)  # all were answered then; who asks of the new end asks anew
    if not row.state.ended:
        await freed(s, mine, edit.at)
        return Edited()
    for statement in (EVICTED, ASLEEP, UNASKED):
        await s.over(statement, mine)
    return Edited() if before.state.ended else Edited(await _ended(s, replica, edit, row.state.value, row.outcome))


async def _delete(s: Session, replica: str | None, row: Instance, edit: Edit) -> Edited:
    """Nothing of the instance is left but the record that it was deleted."""
    await s.over(UNASKED, [edit.uid])
    sent = () if row.state.ended else await _ended(s, replica, edit, "not-found", None)
    await s.run(BURY, edit.uid, edit.at, edit.id, row.flow, row.id)
    await _forget(s, [edit.uid])
    return Edited(sent)


async def _ended(s: Session, replica: str | None, edit: Edit, type: str, outcome: bytes | None) -> tuple[Sent, ...]:
    """Those who wait for the instance are told, and its unfinished children asked to cancel."""
    told = [*await answers(s, {edit.uid: (type, outcome)}, edit.at), *await cancels(s, [edit.uid], edit.at)]
    return tuple(await deliver(s, replica, [item for _, item in told], edit.at))


async def _forget(s: Session, uids: list[bytes]) -> None:
    for statement in (UNASKED, UNWATCHED, *DELETE):
        await s.over(statement, uids)


async def retire(s: Session, replica: str, epoch: int, before: float, now: float, limit: int) -> int:
    """Up to `limit` instances that ended before this time are gone, each leaving a tombstone; gives how many."""
    await fenced(s, replica, epoch)
    seen = [row[0] for row in await s.rows(OLD, before, limit)]
    uids = [row[0] for row in await s.listed(OLD_STILL, seen, before)]
    if uids:
        await s.over(ENTOMB, uids, now)
        await _forget(s, uids)
    return len(uids)


async def forget(s: Session, flow: str, id: str) -> bool:
    """The tombstone of (flow, id) is gone; gives whether there was one."""
    return await s.run(UNTOMB, flow, id) > 0
