"""Edits from outside and retention as SQL: one guarded change of one instance, or many that end for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import asdict, astuple

from perdure.model.records import State
from perdure.model.writes import Edit, Edited, Outdated, OwnedBy
from perdure.stores.postgres.rows import ENTRY, INSTANCE, MESSAGE, NOT_ENDED, by_columns, insert, to_instance
from perdure.stores.postgres.sending import EVICTED, answers, cancels, deliver, freed
from perdure.stores.postgres.writing import LENGTH, REPLACED, UNASKED, UNTRIED, WAKE_OVER, fenced

if TYPE_CHECKING:
    from perdure.model.records import Instance, Message
    from perdure.model.writes import Sent
    from perdure.stores.postgres.connection import Session

ROW: Final = f"select {INSTANCE} from perdure.instance where uid = $1 for update"
DELETED: Final = "select 1 from perdure.place where edit = $1"
OPEN: Final = "select count(*) from perdure.inbox where uid = $1 and mid = any($2::bytea[]) and open > 0"

PUT_ENTRIES: Final = insert("entry", ENTRY, REPLACED)
DROP_ENTRIES: Final = "delete from perdure.entry where uid = $1 and run = $2 and seq = any($3::bigint[])"
FORGET: Final = "delete from perdure.pending where uid = $1 and run = $2 and key = any($3::text[])"
KEY_TAKEN: Final = "select 1 from perdure.inbox where uid = $1 and key = $2 and kind = 'message' and mid <> $3"
PUT_MESSAGE: Final = (
    f"insert into perdure.inbox(uid, open, {MESSAGE}) values ($1, 1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
    " on conflict (uid, mid) do update set open = 1, key = coalesce(excluded.key, inbox.key), name = excluded.name,"
    " type = excluded.type, body = excluded.body"
)
UNSEND: Final = "delete from perdure.inbox where uid = $1 and mid = any($2::bytea[])"
_CHANGED: Final = [column for column in INSTANCE.split(",") if column not in ("uid", "term")]
REPLACE: Final = (
    "update perdure.instance set "
    + ", ".join(f"{column} = ${number}" for number, column in enumerate(_CHANGED, 2))
    + " where uid = $1"
)
UNWATCHED: Final = "delete from perdure.watch where target = any($1::bytea[])"
DELETE: Final = tuple(
    f"delete from perdure.{table} where uid = any($1::bytea[])"
    for table in ("entry", "pending", "inbox", "exposed", "wakeup", "tried", "instance")
)
BURY: Final = (
    "update perdure.place set uid = null, gone = uid, gone_at = $3::double precision, state = null, digest = null,"
    " edit = $4 where flow = $1 and id = $2"
)
ENTOMB: Final = (
    "update perdure.place p set uid = null, gone = p.uid, gone_at = $2::double precision, state = i.state,"
    " digest = i.digest, edit = null from perdure.instance i where i.uid = any($1::bytea[]) and p.flow = i.flow and p.id = i.id"
    " and p.uid = i.uid"
)
UNTOMB: Final = (
    "update perdure.place set state = null, digest = null"
    " where flow = $1 and id = $2 and uid is null and state is not null"
)
OLD: Final = (
    "select i.uid from perdure.instance i where i.ended_at < $1 and i.owner is null"
    " and i.state in ('succeeded', 'failed', 'cancelled') and not exists (select 1 from perdure.instance p"
    f" where p.uid = i.parent and p.state {NOT_ENDED}) order by i.ended_at limit $2 for update of i"
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
    return not mids or [tuple(r) for r in await s.rows(OPEN, edit.uid, mids)] == [(len(mids),)]


async def _change(s: Session, edit: Edit) -> None:
    """What belongs to the instance is as the edit says."""
    put = {(entry.run, entry.seq): entry for entry in edit.put}
    if put:
        await s.run(PUT_ENTRIES, *by_columns([astuple(entry) for entry in put.values()]))
    if edit.drop:
        await s.run(DROP_ENTRIES, edit.uid, edit.run, edit.drop)
    if edit.forget:
        await s.run(FORGET, edit.uid, edit.run, edit.forget)
    if edit.unsend:
        await s.run(UNSEND, edit.uid, edit.unsend)
    for message in edit.messages:
        await _put(s, edit.uid, message)


async def _put(s: Session, uid: bytes, message: Message) -> None:
    if message.key is None or await s.row(KEY_TAKEN, uid, message.key, message.mid) is None:
        await s.run(PUT_MESSAGE, uid, *astuple(message))


async def _replace(s: Session, replica: str | None, before: Instance, edit: Edit, row: Instance) -> Edited:
    """The row is the new one, and nobody's; with what follows if that ends it, or does not."""
    fields = {**asdict(row), "state": row.state.value, "owner": None, "waiting": row.state is State.SUSPENDED}
    fields["edit"] = edit.id
    await s.run(REPLACE, edit.uid, *(fields[column] for column in _CHANGED))
    mine = [edit.uid]
    await s.run(UNTRIED, mine)
    if before.state.ended:
        await s.run(UNWATCHED, mine)  # all were answered then; who asks of the new end asks anew
    if not row.state.ended:
        await freed(s, mine, edit.at)
        return Edited()
    for statement in (EVICTED, WAKE_OVER, UNASKED):
        await s.run(statement, mine)
    return Edited() if before.state.ended else Edited(await _ended(s, replica, edit, row.state.value, row.outcome))


async def _delete(s: Session, replica: str | None, row: Instance, edit: Edit) -> Edited:
    """Nothing of the instance is left but the record that it was deleted."""
    await s.run(UNASKED, [edit.uid])
    sent = () if row.state.ended else await _ended(s, replica, edit, "not-found", None)
    await s.run(BURY, row.flow, row.id, edit.at, edit.id)
    await _forget(s, [edit.uid])
    return Edited(sent)


async def _ended(s: Session, replica: str | None, edit: Edit, type: str, outcome: bytes | None) -> tuple[Sent, ...]:
    """Those who wait for the instance are told, and its unfinished children asked to cancel."""
    told = [*await answers(s, {edit.uid: (type, outcome)}, edit.at), *await cancels(s, [edit.uid], edit.at)]
    return tuple(await deliver(s, replica, [item for _, item in told], edit.at))


async def _forget(s: Session, uids: list[bytes]) -> None:
    for statement in (UNASKED, UNWATCHED, *DELETE):
        await s.run(statement, uids)


async def retire(s: Session, replica: str, epoch: int, before: float, now: float, limit: int) -> int:
    """Up to `limit` instances that ended before this time are gone, each leaving a tombstone; gives how many."""
    await fenced(s, replica, epoch)
    uids = [row[0] for row in await s.rows(OLD, before, limit)]
    if uids:
        await s.run(ENTOMB, uids, now)
        await _forget(s, uids)
    return len(uids)


async def forget(s: Session, flow: str, id: str) -> bool:
    """The tombstone of (flow, id) is gone; gives whether there was one."""
    return await s.run(UNTOMB, flow, id) > 0
