"""Claims, wake-ups and takeovers as SQL. What changes anything runs in a transaction of the writer thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from perdure.stores.sqlite.bulk import keyed, update
from perdure.stores.sqlite.rows import INSTANCE, to_instance
from perdure.stores.sqlite.sending import freed
from perdure.stores.sqlite.writing import fenced

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from perdure.model.records import Instance
    from perdure.stores.sqlite.connection import Database, Row

_I: Final = ",".join(f"i.{column}" for column in INSTANCE.split(","))

_ASKED_TO_CANCEL: Final = "exists (select 1 from inbox m where m.uid = i.uid and m.open > 0 and m.kind = 'cancel')"
# What other code ran last is left to it while a live replica has that code; the versions come as a JSON list.
_PIN: Final = " and i.version not in (select value from json_each(?))"
OTHERS: Final = "select json_group_array(json(flows)) from fence where alive and replica <> ?"

_DUE: Final = (
    f"select i.due_at, {_I} from instance i where i.owner is null and i.due_at is not null and i.lane = ?"
    " and i.due_at <= ?{pin} order by i.due_at limit ?"
)
DUE: Final = _DUE.format(pin="")
DUE_PINNED: Final = _DUE.format(pin=_PIN)
_WOKEN: Final = (
    f"select w.at, {_I} from wakeup w cross join instance i on i.uid = w.uid where w.owner = '' and w.lane = ?"
    " and i.owner is null and i.state = 'suspended'{pin} order by w.at limit ?"
)
WOKEN: Final = _WOKEN.format(pin="")
WOKEN_PINNED: Final = _WOKEN.format(pin=f" and ({_PIN.removeprefix(' and ')} or {_ASKED_TO_CANCEL})")
CANCELLED: Final = (
    f"select w.at, {_I} from wakeup w cross join instance i on i.uid = w.uid where w.owner = '' and w.cancel"
    f" and i.owner is null and {_ASKED_TO_CANCEL} and i.lane not in (select value from json_each(?))"
    " order by w.at limit ?"
)
# The safety poll: a walk over the messages that nobody has looked at yet, which is short in health.
_OVERLOOKED: Final = (
    f"select min(m.sent_at), {_I} from inbox m cross join instance i on i.uid = m.uid where m.open = 1"
    " and i.owner is null and i.state = 'suspended' and i.lane = ?{pin} group by m.uid order by 1 limit ?"
)
OVERLOOKED: Final = _OVERLOOKED.format(pin="")
OVERLOOKED_PINNED: Final = _OVERLOOKED.format(pin=_PIN)
_NEXT_DUE: Final = (
    "select due_at from instance i where owner is null and due_at is not null and lane = ?{pin} order by due_at limit 1"
)
NEXT_DUE: Final = _NEXT_DUE.format(pin="")
NEXT_DUE_PINNED: Final = _NEXT_DUE.format(pin=_PIN)
# The lanes come as a JSON object with their identities, twice: a join with it would read it for each row, 45 ms for
# 10,000 rows. `t` are the tries of that code: none, or one in another process.
BLOCKED: Final = (
    "select (select count(*) = 0 or (count(*) = 1 and max(t.process) <> ?) from tried t where t.uid = i.uid"
    f" and t.version = (select value from json_each(?) where key = i.lane)), {_I} from instance i"
    " where i.state = 'blocked' and i.owner is null and i.uid > ? and i.lane in (select key from json_each(?))"
    " order by i.uid limit ?"
)
CLAIM: Final = update(
    "update instance set state = 'running', owner = v.column4, waiting = 0, due_at = null, term = term + 1,"
    " version = coalesce(v.column5, version) from {v}"
    " where instance.uid = v.column1 and instance.owner is null and instance.state = v.column2"
    " and instance.due_at is v.column3",
    5,
)
CLAIMED: Final = keyed(
    "select json_group_array(hex(uid)) from instance where uid in ({rows}) and +owner = ? and state = 'running'"
)
AWAKE: Final = keyed("delete from wakeup where uid in ({rows})")

CALLS: Final = "select uid from wakeup where owner = ?"
CALLED: Final = keyed("delete from wakeup where uid in ({rows}) and +owner = ?")

OWNED: Final = "select json_group_array(hex(uid)) from (select uid from instance where owner = ? limit ?)"
FREE: Final = keyed(
    "update instance set owner = null, state = iif(state = 'running' and not waiting, 'scheduled', state),"
    " due_at = iif(state = 'running' and not waiting, ?, due_at) where uid in ({rows})"
)


def join(db: Database, replica: str, flows: Mapping[str, str]) -> tuple[int, int]:
    """A fence row exists for the replica; gives its epoch, and whether it is alive."""
    text = (
        "insert into fence(replica, epoch, alive, flows) values (?, 1, 1, ?)"
        " on conflict do update set flows = excluded.flows"
    )
    db.execute(text, (replica, _json(flows)))
    return db.execute("select epoch, alive from fence where replica = ?", (replica,)).get


def raise_epoch(db: Database, replica: str, epoch: int) -> int | None:
    """The replica's epoch is a new one, given, if it is alive."""
    db.execute("update fence set epoch = max(epoch, ?) + 1 where replica = ? and alive", (epoch, replica))
    return db.execute("select epoch from fence where replica = ? and alive", (replica,)).get


def others(db: Database, replica: str) -> list[dict[str, str]]:
    """The lanes of each other live replica, with the versions of the code there."""
    return msgspec.json.decode(db.execute(OTHERS, (replica,)).get, type=list[dict[str, str]])


def pinned(others: Sequence[Mapping[str, str]], flows: Mapping[str, str]) -> dict[str, Row]:
    """By lane: the versions of it that other live replicas have and that are not the one here, as a JSON list to bind;
    nothing, if there are none.
    """
    left = {lane: {other.get(lane, "") for other in others} - {"", version} for lane, version in flows.items()}
    return {lane: (_json(versions),) if versions else () for lane, versions in left.items()}


def elsewhere(others: Sequence[Mapping[str, str]], flows: Mapping[str, str]) -> str:
    """The lanes that only other live replicas serve, as a JSON list to bind."""
    return _json(set[str]().union(*others) - flows.keys())


def candidates(
    db: Database, pins: Mapping[str, Row], elsewhere: str, now: float, limit: int, thorough: bool
) -> list[Instance]:  # fmt: skip
    """What could be claimed, longest due first; not what a version of its lane's pin ran last, unless it is cancelled."""
    found: list[tuple[float, Instance]] = []
    for lane, pin in pins.items():
        found += _rows(db, DUE_PINNED if pin else DUE, (lane, now, *pin, limit))
        found += _rows(db, WOKEN_PINNED if pin else WOKEN, (lane, *pin, limit))
        if thorough:
            found += _rows(db, OVERLOOKED_PINNED if pin else OVERLOOKED, (lane, *pin, limit))
    found += _rows(db, CANCELLED, (elsewhere, limit))
    found.sort(key=_since)
    once: dict[bytes, Instance] = {}
    for _, row in found:
        once.setdefault(row.uid, row)
    return list(once.values())[:limit]


def _json(value: Mapping[str, str] | set[str]) -> str:
    return msgspec.json.encode(value).decode()


def _rows(db: Database, text: str, values: Row) -> list[tuple[float, Instance]]:
    return [(row[0], to_instance(row[1:])) for row in db.execute(text, values)]


def _since(item: tuple[float, Instance]) -> tuple[float, bytes]:
    return item[0], item[1].uid


def next_due(db: Database, pins: Mapping[str, Row]) -> float | None:
    """When the next instance wants to go on by itself."""
    found: list[float] = []
    for lane, pin in pins.items():
        found += (row[0] for row in db.execute(NEXT_DUE_PINNED if pin else NEXT_DUE, (lane, *pin)))
    return min(found, default=None)


def blocked(
    db: Database, flows: Mapping[str, str], process: str, after: bytes, limit: int
) -> tuple[list[Instance], bytes]:  # fmt: skip
    """Of the next `limit` blocked instances those that this code may try, and the last uid looked at."""
    if limit <= 0:
        return [], after
    known = _json(flows)
    found = db.execute(BLOCKED, (process, known, after, known, limit + 1)).fetchall()
    rows = [to_instance(row[1:]) for row in found[:limit] if row[0]]
    return rows, found[limit - 1][1] if len(found) > limit else b""


def claim(
    db: Database, replica: str, epoch: int, flows: Mapping[str, str], rows: Sequence[Instance]
) -> list[Instance]:  # fmt: skip
    """Those of the rows that are still as they were read are the replica's."""
    fenced(db, replica, epoch)
    claims: list[Row] = [(r.uid, r.state.value, r.due_at, replica, flows.get(r.lane) or None) for r in rows]
    matched = CLAIM.run(db, claims)
    if matched < len(rows):
        uids: list[Row] = [(r.uid,) for r in rows]
        mine = set(CLAIMED.read(db, uids, str, replica))
        rows = [r for r in rows if r.uid.hex().upper() in mine]
    AWAKE.run(db, [(r.uid,) for r in rows])
    return list(rows)


def claim_blocked(
    db: Database, replica: str, epoch: int, flows: Mapping[str, str], process: str, after: bytes, limit: int
) -> tuple[list[Instance], bytes]:  # fmt: skip
    """As `blocked`, and those that may be tried are the replica's."""
    rows, last = blocked(db, flows, process, after, limit)
    return claim(db, replica, epoch, flows, rows), last


def called(db: Database, replica: str, epoch: int, rows: Sequence[Row]) -> None:
    """These wake-up rows, if they are the replica's still, are gone."""
    fenced(db, replica, epoch)
    CALLED.run(db, rows, replica)


def free(db: Database, replica: str, limit: int, now: float) -> int:
    """Up to `limit` instances of the replica are nobody's; gives how many."""
    hexed = msgspec.json.decode(db.execute(OWNED, (replica, limit)).get, type=list[str])
    uids = [bytes.fromhex(h) for h in hexed]
    if uids:
        for text, values in FREE.chunks([(uid,) for uid in uids]):
            db.execute(text, [now, *values])
        freed(db, uids, now)
    return len(uids)
