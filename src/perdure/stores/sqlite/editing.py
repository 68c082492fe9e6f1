"""Edits from outside and retention as SQL: one guarded change of one instance, or many that end for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import asdict, astuple

from perdure.model.records import State
from perdure.model.writes import Edit, Edited, Outdated, OwnedBy
from perdure.stores.sqlite.bulk import Bulk, insert, keyed
from perdure.stores.sqlite.rows import ENTRY, INSTANCE, MESSAGE, REPLACED, to_instance
from perdure.stores.sqlite.sending import EVICTED, answers, cancels, deliver, freed
from perdure.stores.sqlite.writing import LENGTH, UNASKED, UNTRIED, WAKE_OVER, fenced

if TYPE_CHECKING:
    from perdure.model.records import Instance, Message
    from perdure.model.writes import Sent
    from perdure.stores.sqlite.connection import Database, Row

ROW: Final = f"select {INSTANCE} from instance where uid = ?"
DELETED: Final = "select 1 from gone where edit = ?"
OPEN: Final = Bulk("select count(*) from inbox where (uid, mid) in (values {rows}) and open > 0", 2)

PUT_ENTRIES: Final = insert("entry", ENTRY, REPLACED)
DROP_ENTRIES: Final = Bulk("delete from entry where (uid, run, seq) in (values {rows})", 3)
FORGET: Final = Bulk("delete from pending where (uid, run, key) in (values {rows})", 3)
KEY_TAKEN: Final = "select 1 from inbox where uid = ? and key = ? and kind = 'message' and mid <> ?"
PUT_MESSAGE: Final = (
    f"insert into inbox(uid, open, {MESSAGE}) values (?, 1, {','.join('?' * (MESSAGE.count(',') + 1))})"
    " on conflict(uid, mid) do update set open = 1, key = coalesce(excluded.key, key), name = excluded.name,"
    " type = excluded.type, body = excluded.body"
)
UNSEND: Final = Bulk("delete from inbox where (uid, mid) in (values {rows})", 2)
_CHANGED: Final = [column for column in INSTANCE.split(",") if column not in ("uid", "term")]
REPLACE: Final = f"update instance set {', '.join(f'{column} = ?' for column in _CHANGED)} where uid = ?"
UNWATCHED: Final = keyed("delete from watch where target in ({rows})")
DELETE: Final = tuple(
    keyed(f"delete from {table} where uid in ({{rows}})")
    for table in ("entry", "pending", "inbox", "exposed", "wakeup", "tried", "instance")
)
BURY: Final = (
    "insert or replace into gone(flow, id, at, uid, state, digest, edit)"
    " select flow, id, ?, uid, null, null, ? from instance where uid = ?"
)
ENTOMB: Final = Bulk(
    "insert or replace into gone(flow, id, at, uid, state, digest, edit)"
    " select i.flow, i.id, v.column2, i.uid, i.state, i.digest, null from (values {rows}) as v join instance i on i.uid = v.column1",
    2,
)
UNTOMB: Final = "update gone set state = null, digest = null where flow = ? and id = ? and state is not null"
# The uids as one answer: apsw gives up the GIL for every row.
ENDED_BEFORE: Final = (
    "select json_group_array(hex(uid)) from (select i.uid from instance i where i.ended_at < ? and i.owner is null"
    " and i.state in ('succeeded', 'failed', 'cancelled') and not exists (select 1 from instance p"
    " where p.uid = i.parent and p.state not in ('succeeded', 'failed', 'cancelled')) order by i.ended_at limit ?)"
)


def edit(db: Database, replica: str | None, epoch: int, edit: Edit) -> Edited | OwnedBy | Outdated:
    """The edit is made, if the instance is as it was read; or was made before."""
    if replica is not None:
        fenced(db, replica, epoch)
    found = db.execute(ROW, (edit.uid,)).fetchall()
    if not found:
        return Edited() if db.execute(DELETED, (edit.id,)).get else Outdated()
    row = to_instance(found[0])
    if row.edit == edit.id:
        return Edited()
    if row.owner is not None and row.owner != replica:
        return OwnedBy(row.owner)
    if not _as_read(db, row, edit):
        return Outdated()
    if edit.row is None:
        return _delete(db, replica, row, edit)
    _change(db, edit)
    return _replace(db, replica, row, edit, edit.row)


def _as_read(db: Database, row: Instance, edit: Edit) -> bool:
    read = (edit.run, edit.state, edit.ended_at, edit.last)
    if read != (row.run, row.state, row.ended_at, row.edit) or edit.length != db.execute(LENGTH, (row.uid,)).get:
        return False
    mids: list[Row] = [(edit.uid, mid) for mid in set(edit.open)]
    return sum(db.execute(text, values).get for text, values in OPEN.chunks(mids)) == len(mids)


def _change(db: Database, edit: Edit) -> None:
    """What belongs to the instance is as the edit says."""
    PUT_ENTRIES.run(db, [astuple(entry) for entry in edit.put])
    DROP_ENTRIES.run(db, [(edit.uid, edit.run, seq) for seq in edit.drop])
    FORGET.run(db, [(edit.uid, edit.run, key) for key in edit.forget])
    UNSEND.run(db, [(edit.uid, mid) for mid in edit.unsend])
    for message in edit.messages:
        _put(db, edit.uid, message)


def _put(db: Database, uid: bytes, message: Message) -> None:
    if message.key is not None and db.execute(KEY_TAKEN, (uid, message.key, message.mid)).get:
        return
    db.execute(PUT_MESSAGE, (uid, *astuple(message)))


def _replace(db: Database, replica: str | None, before: Instance, edit: Edit, row: Instance) -> Edited:
    """The row is the new one, and nobody's; with what follows if that ends it, or does not."""
    fields = {**asdict(row), "state": row.state.value, "owner": None, "waiting": row.state is State.SUSPENDED}
    fields["edit"] = edit.id
    db.execute(REPLACE, [*(fields[column] for column in _CHANGED), edit.uid])
    mine: list[Row] = [(edit.uid,)]
    UNTRIED.run(db, mine)
    if before.state.ended:
        UNWATCHED.run(db, mine)  # all were answered then; who asks of the new end asks anew
    if not row.state.ended:
        freed(db, [edit.uid], edit.at)
        return Edited()
    EVICTED.run(db, mine)
    WAKE_OVER.run(db, mine)
    UNASKED.run(db, mine)
    return Edited() if before.state.ended else Edited(_ended(db, replica, edit, row.state.value, row.outcome))


def _delete(db: Database, replica: str | None, row: Instance, edit: Edit) -> Edited:
    """Nothing of the instance is left but the record that it was deleted."""
    mine: list[Row] = [(edit.uid,)]
    UNASKED.run(db, mine)
    sent = () if row.state.ended else _ended(db, replica, edit, "not-found", None)
    db.execute(BURY, (edit.at, edit.id, edit.uid))
    _forget(db, mine)
    return Edited(sent)


def _ended(db: Database, replica: str | None, edit: Edit, type: str, outcome: bytes | None) -> tuple[Sent, ...]:
    """Those who wait for the instance are told, and its unfinished children asked to cancel."""
    told = [*answers(db, {edit.uid: (type, outcome)}, edit.at), *cancels(db, [edit.uid], edit.at)]
    return tuple(deliver(db, replica, [item for _, item in told], edit.at))


def _forget(db: Database, uids: list[Row]) -> None:
    for statement in (UNASKED, UNWATCHED, *DELETE):
        statement.run(db, uids)


def old(db: Database, before: float, limit: int) -> list[bytes]:
    """Up to `limit` instances that ended before this time and that nobody needs, oldest first."""
    hexed = msgspec.json.decode(db.execute(ENDED_BEFORE, (before, limit)).get, type=list[str])
    return [bytes.fromhex(h) for h in hexed]


def retire(db: Database, replica: str, epoch: int, before: float, now: float, limit: int) -> int:
    """Up to `limit` instances that ended before this time are gone, each leaving a tombstone; gives how many."""
    fenced(db, replica, epoch)
    uids = old(db, before, limit)
    ENTOMB.run(db, [(uid, now) for uid in uids])
    _forget(db, [(uid,) for uid in uids])
    return len(uids)


def forget(db: Database, flow: str, id: str) -> bool:
    """The tombstone of (flow, id) is gone; gives whether there was one."""
    db.execute(UNTOMB, (flow, id))
    return db.changes() > 0
