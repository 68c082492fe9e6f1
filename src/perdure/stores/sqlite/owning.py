"""Claims, wake-ups and takeovers as SQL. What changes anything runs in a transaction of the writer thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from perdure.stores.sqlite.bulk import keyed, update
from perdure.stores.sqlite.rows import INSTANCE, to_instance
from perdure.stores.sqlite.writing import fenced, freed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from perdure.model.records import Instance
    from perdure.stores.sqlite.connection import Database, Row

_I: Final = ",".join(f"i.{column}" for column in INSTANCE.split(","))

DUE: Final = (
    f"select i.due_at, {_I} from instance i where i.owner is null and i.due_at is not null and i.flow = ?"
    " and i.due_at <= ? order by i.due_at limit ?"
)
WOKEN: Final = (
    f"select w.at, {_I} from wakeup w cross join instance i on i.uid = w.uid where w.owner = '' and w.flow = ?"
    " and i.owner is null and i.state = 'suspended' order by w.at limit ?"
)
CANCELLED: Final = (
    f"select w.at, {_I} from wakeup w cross join instance i on i.uid = w.uid where w.owner = '' and w.cancel"
    " and i.owner is null and exists (select 1 from inbox m where m.uid = i.uid and m.open > 0 and m.kind = 'cancel')"
    " order by w.at limit ?"
)
# The safety poll: a walk over the messages that nobody has looked at yet, which is short in health.
OVERLOOKED: Final = (
    f"select min(m.sent_at), {_I} from inbox m cross join instance i on i.uid = m.uid where m.open = 1"
    " and i.owner is null and i.state = 'suspended' and i.flow = ? group by m.uid order by 1 limit ?"
)
NEXT_DUE: Final = (
    "select due_at from instance where owner is null and due_at is not null and flow = ? order by due_at limit 1"
)
CLAIM: Final = update(
    "update instance set state = 'running', owner = v.column4, waiting = 0, due_at = null from {v}"
    " where instance.uid = v.column1 and instance.owner is null and instance.state = v.column2"
    " and instance.due_at is v.column3",
    4,
)
CLAIMED: Final = keyed(
    "select json_group_array(hex(uid)) from instance where uid in ({rows}) and +owner = ? and state = 'running'"
)
AWAKE: Final = keyed("delete from wakeup where uid in ({rows})")

CALLS: Final = "select uid from wakeup where owner = ?"
CALLED: Final = keyed("delete from wakeup where uid in ({rows}) and +owner = ?")

OWNED: Final = "select json_group_array(hex(uid)) from (select uid from instance where owner = ? limit ?)"
FREE: Final = keyed(
    "update instance set owner = null, state = iif(waiting, 'suspended', 'scheduled'),"
    " due_at = iif(waiting, due_at, ?) where uid in ({rows})"
)


def join(db: Database, replica: str) -> tuple[int, int]:
    """A fence row exists for the replica; gives its epoch, and whether it is alive."""
    db.execute("insert into fence(replica, epoch, alive) values (?, 1, 1) on conflict do nothing", (replica,))
    return db.execute("select epoch, alive from fence where replica = ?", (replica,)).get


def raise_epoch(db: Database, replica: str, epoch: int) -> int | None:
    """The replica's epoch is a new one, given, if it is alive."""
    db.execute("update fence set epoch = max(epoch, ?) + 1 where replica = ? and alive", (epoch, replica))
    return db.execute("select epoch from fence where replica = ? and alive", (replica,)).get


def candidates(
    db: Database, flows: Iterable[str], now: float, limit: int, thorough: bool
) -> list[Instance]:  # fmt: skip
    """What could be claimed, longest due first."""
    found: list[tuple[float, Instance]] = []
    for flow in flows:
        found += _rows(db, DUE, (flow, now, limit))
        found += _rows(db, WOKEN, (flow, limit))
        if thorough:
            found += _rows(db, OVERLOOKED, (flow, limit))
    found += _rows(db, CANCELLED, (limit,))
    found.sort(key=_since)
    once: dict[bytes, Instance] = {}
    for _, row in found:
        once.setdefault(row.uid, row)
    return list(once.values())[:limit]


def _rows(db: Database, text: str, values: Row) -> list[tuple[float, Instance]]:
    return [(row[0], to_instance(row[1:])) for row in db.execute(text, values)]


def _since(item: tuple[float, Instance]) -> tuple[float, bytes]:
    return item[0], item[1].uid


def next_due(db: Database, flows: Iterable[str]) -> float | None:
    """When the next instance wants to go on by itself."""
    found: list[float] = []
    for flow in flows:
        found += (row[0] for row in db.execute(NEXT_DUE, (flow,)))
    return min(found, default=None)


def claim(db: Database, replica: str, epoch: int, rows: Sequence[Instance]) -> list[Instance]:
    """Those of the rows that are still as they were read are the replica's."""
    fenced(db, replica, epoch)
    matched = CLAIM.run(db, [(r.uid, r.state.value, r.due_at, replica) for r in rows])
    if matched < len(rows):
        uids: list[Row] = [(r.uid,) for r in rows]
        mine = set(CLAIMED.read(db, uids, str, replica))
        rows = [r for r in rows if r.uid.hex().upper() in mine]
    AWAKE.run(db, [(r.uid,) for r in rows])
    return list(rows)


def free(db: Database, replica: str, limit: int, now: float) -> int:
    """Up to `limit` instances of the replica are nobody's; gives how many."""
    hexed = msgspec.json.decode(db.execute(OWNED, (replica, limit)).get, type=list[str])
    uids = [bytes.fromhex(h) for h in hexed]
    if uids:
        for text, values in FREE.chunks([(uid,) for uid in uids]):
            db.execute(text, [now, *values])
        freed(db, uids, now)
    return len(uids)
