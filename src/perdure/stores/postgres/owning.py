"""Claims, wake-ups and takeovers as SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from perdure.errors import LeaseLost
from perdure.stores.postgres.rows import INSTANCE, to_instance
from perdure.stores.postgres.sending import freed, mended
from perdure.stores.postgres.writing import fenced
from perdure.stores.processes import this_process

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from perdure.model.records import Instance
    from perdure.stores.postgres.connection import Session

_I: Final = ",".join(f"i.{column}" for column in INSTANCE.split(","))
_T: Final = ",".join(f"t.{column}" for column in INSTANCE.split(","))

_ASKED_TO_CANCEL: Final = (
    "exists (select 1 from perdure.inbox m where m.uid = t.uid and m.open > 0 and m.kind = 'cancel' offset 0)"
)
# What other code ran last is left to it while a live replica has that code: $2 and $3 are lanes and such versions.
_FREE_FOR_ALL: Final = (
    "not exists (select 1 from unnest($2::text[], $3::text[]) as p(lane, version)"
    " where p.lane = t.lane and p.version = t.version offset 0)"
)
_LANES: Final = "unnest($1::text[]) as f(lane) cross join lateral"
FENCES: Final = "select replica, epoch, flows from perdure.fence where alive"

CANDIDATES: Final = (
    f"select i.* from {_LANES} (select t.due_at as since, {_T} from perdure.instance t where t.owner is null"
    f" and t.due_at is not null and t.lane = f.lane and t.due_at <= $4 and {_FREE_FOR_ALL} order by t.due_at limit $5) i"
    f" union all select i.* from {_LANES} (select w.at as since, {_T} from perdure.wakeup w"
    " join perdure.instance t on t.uid = w.uid where w.owner = '' and w.lane = f.lane and t.owner is null"
    f" and t.state = 'suspended' and ({_FREE_FOR_ALL} or {_ASKED_TO_CANCEL}) order by w.at limit $5) i"
    f" union all (select w.at as since, {_T} from perdure.wakeup w join perdure.instance t on t.uid = w.uid"
    f" where w.owner = '' and w.cancel and t.owner is null and t.lane <> all($6::text[]) and {_ASKED_TO_CANCEL}"
    " order by w.at limit $5)"
)
# The safety poll: a walk over the messages that nobody has looked at yet, which is short in health.
OVERLOOKED: Final = (
    f"select min(m.sent_at) as since, {_T} from perdure.inbox m join perdure.instance t on t.uid = m.uid"
    f" where m.open = 1 and t.owner is null and t.state = 'suspended' and t.lane = any($1::text[]) and {_FREE_FOR_ALL}"
    " group by t.uid order by 1 limit $4"
)
# Wake-up rows for replicas that are gone, left by who died between a commit and the look after it.
STRANDED: Final = (
    "select w.uid from perdure.wakeup w where w.owner <> ''"
    " and not exists (select 1 from perdure.fence f where f.replica = w.owner) order by w.uid limit $1"
)
NEXT_DUE: Final = (
    f"select min(i.due_at) from {_LANES} (select t.due_at from perdure.instance t where t.owner is null"
    f" and t.due_at is not null and t.lane = f.lane and {_FREE_FOR_ALL} order by t.due_at limit 1) i"
)
# `t` are the tries of that code: none, or one in another process.
BLOCKED: Final = (
    "select (select count(*) = 0 or (count(*) = 1 and max(t.process) <> $3) from perdure.tried t where t.uid = i.uid"
    f" and t.version = ($2::text[])[array_position($1::text[], i.lane)]), {_I} from perdure.instance i"
    " where i.state = 'blocked' and i.owner is null and i.uid > $4 and i.lane = any($1::text[])"
    " order by i.uid limit $5"
)
FREE_STILL: Final = (
    "select uid from perdure.instance where uid = any($1::bytea[]) and owner is null order by uid"
    " for no key update skip locked"
)
CLAIM: Final = (
    "update perdure.instance i set state = 'running', owner = $1, waiting = false, due_at = null, term = i.term + 1,"
    " version = coalesce(v.version, i.version)"
    " from unnest($2::bytea[], $3::text[], $4::double precision[], $5::text[]) as v(uid, state, due_at, version)"
    " where i.uid = v.uid and i.owner is null and i.state = v.state and i.due_at is not distinct from v.due_at"
    " returning i.uid"
)
AWAKE: Final = "delete from perdure.wakeup where uid = any($1::bytea[])"

CALLED: Final = "select 1 from perdure.wakeup where owner = $1 limit 1"
CALLS: Final = (
    "select w.uid, i.owner from perdure.wakeup w left join perdure.instance i on i.uid = w.uid where w.owner = $1"
    " order by w.uid for update of w"
)

_NOW: Final = "coalesce({}::double precision, extract(epoch from clock_timestamp())::double precision)"
JOIN: Final = (
    "insert into perdure.fence(replica, epoch, alive, flows) values ($1, 1, true, $2)"
    " on conflict (replica) do update set flows = excluded.flows returning epoch, alive"
)
FIRST_LEASE: Final = (
    f"insert into perdure.lease(replica, until, process) values ($1, {_NOW.format('$3')} + $2, $4)"
    " on conflict (replica) do update set until = excluded.until, process = excluded.process"
)
RENEW: Final = (
    f"with t as (select {_NOW.format('$3')} as now) update perdure.lease"
    " set until = t.now + $2, server = $4 from t where replica = $1 returning t.now"
)
RAISE_EPOCH: Final = (
    "update perdure.fence set epoch = greatest(epoch, $2::bigint) + 1 where replica = $1 and alive returning epoch"
)
_LOCK: Final = "hashtextextended('perdure.' || {}, 0)"
HOLD: Final = f"select pg_try_advisory_lock({_LOCK.format('$1::text')}), pg_postmaster_start_time()::text"
LET_GO: Final = f"select pg_advisory_unlock({_LOCK.format('$1::text')})"
_OTHERS: Final = (
    "select f.replica, f.alive, coalesce((select l.until from perdure.lease l where l.replica = f.replica), 0)"
    f" < {_NOW.format('$2')}, {{}}, (select l.process from perdure.lease l where l.replica = f.replica)"
    " from perdure.fence f where f.replica <> $1 order by f.replica"
)
# Whether the session is gone that held the replica's lock, in this life of the server.
OTHERS_AND_LOCKS: Final = _OTHERS.format(
    "exists (select 1 from perdure.lease l where l.replica = f.replica"
    " and l.server = pg_postmaster_start_time()::text offset 0)"
    f" and pg_try_advisory_xact_lock_shared({_LOCK.format('f.replica')})"
)
OTHERS_ALONE: Final = _OTHERS.format("false")
OVER: Final = f"select until < {_NOW.format('$2')} from perdure.lease where replica = $1 for update"
BAR: Final = "update perdure.fence set alive = false, epoch = epoch + 1 where replica = $1 and alive"
UNLEASED: Final = "delete from perdure.lease where replica = $1"
OWNED: Final = "select uid from perdure.instance where owner = $1 order by uid limit $2 for update"
FREE: Final = (
    "update perdure.instance set owner = null,"
    " state = case when state = 'running' and not waiting then 'scheduled' else state end,"
    " due_at = case when state = 'running' and not waiting then $2::double precision else due_at end"
    " where uid = any($1::bytea[])"
)
STILL_CALLED: Final = "select uid from perdure.wakeup where owner = $1 order by uid"
UNFENCED: Final = "delete from perdure.fence where replica = $1 and not alive"

Pins = list[tuple[str, str]]
"""Lanes, each with a version that is left to other replicas."""


async def join(
    s: Session, replica: str, flows: Mapping[str, str], lease: float, now: float | None
) -> int:  # fmt: skip
    """Fence and lease of the replica exist; gives its epoch."""
    row = await s.row(JOIN, replica, msgspec.json.encode(flows).decode())
    if row is None or not row[1]:
        raise LeaseLost(f"replica {replica} was taken over; join under a new id")
    await s.run(FIRST_LEASE, replica, lease, now, this_process())
    epoch: int = row[0]
    return epoch


async def raise_epoch(s: Session, replica: str, epoch: int) -> int:
    """The replica's epoch is a new one, given."""
    row = await s.row(RAISE_EPOCH, replica, epoch)
    if row is None:
        raise LeaseLost(f"replica {replica} was taken over")
    raised: int = row[0]
    return raised


async def left_to_others(s: Session, replica: str, epoch: int, flows: Mapping[str, str]) -> tuple[Pins, list[str]]:
    """The versions of these lanes that other live replicas have and that are not the one here, and the lanes that only
    they serve; proves the fence.
    """
    fences = await s.rows(FENCES)
    if (replica, epoch) not in {(row[0], row[1]) for row in fences}:
        raise LeaseLost(f"replica {replica} was taken over, or claims with an epoch that is over ({epoch})")
    others = [msgspec.json.decode(row[2], type=dict[str, str]) for row in fences if row[0] != replica]
    pins = [
        (lane, left)
        for lane, version in flows.items()
        for left in {other.get(lane, "") for other in others} - {"", version}
    ]
    return pins, list(set[str]().union(*others) - flows.keys())


async def candidates(
    s: Session, flows: Mapping[str, str], pins: Pins, elsewhere: list[str], now: float, limit: int, *, thorough: bool
) -> list[Instance]:  # fmt: skip
    """What could be claimed, longest due first."""
    if limit <= 0:
        return []
    names, pinned = list(flows), _columns(pins)
    rows = await s.rows(CANDIDATES, names, *pinned, now, limit, elsewhere)
    if thorough:
        rows += await s.rows(OVERLOOKED, names, *pinned, limit)
    found = sorted(((row[0], to_instance(row[1:])) for row in rows), key=lambda item: (item[0], item[1].uid))
    once: dict[bytes, Instance] = {}
    for _, row in found:
        once.setdefault(row.uid, row)
    return list(once.values())[:limit]


def _columns(pins: Pins) -> tuple[list[str], list[str]]:
    return [lane for lane, _ in pins], [version for _, version in pins]


async def next_due(s: Session, flows: Mapping[str, str], pins: Pins) -> float | None:
    """When the next instance wants to go on by itself."""
    row = await s.row(NEXT_DUE, list(flows), *_columns(pins))
    return None if row is None else row[0]


async def blocked(
    s: Session, flows: Mapping[str, str], process: str, after: bytes, limit: int
) -> tuple[list[Instance], bytes]:  # fmt: skip
    """Of the next `limit` blocked instances those that this code may try, and the last uid looked at."""
    if limit <= 0:
        return [], after
    found = await s.rows(BLOCKED, list(flows), list(flows.values()), process, after, limit + 1)
    rows = [to_instance(row[1:]) for row in found[:limit] if row[0]]
    return rows, found[limit - 1][1] if len(found) > limit else b""


async def claim(
    s: Session, replica: str, epoch: int, flows: Mapping[str, str], rows: Sequence[Instance]
) -> list[Instance]:  # fmt: skip
    """Those of the rows that are still as they were read are the replica's; what others claim now is left to them."""
    await fenced(s, replica, epoch)
    free = {row[0] for row in await s.rows(FREE_STILL, [r.uid for r in rows])}
    wanted = sorted((r for r in rows if r.uid in free), key=lambda r: r.uid)
    if not wanted:
        return []
    claims = [(r.uid, r.state.value, r.due_at, flows.get(r.lane) or None) for r in wanted]
    mine = {row[0] for row in await s.rows(CLAIM, replica, *zip(*claims, strict=True))}
    if mine:
        await s.run(AWAKE, list(mine))
    return [r for r in rows if r.uid in mine]


async def wakeups(s: Session, replica: str, epoch: int, now: float) -> list[bytes]:
    """The wake-up rows of the replica's instances are gone; those of what it does not own any more go to who does."""
    await fenced(s, replica, epoch)
    rows = await s.rows(CALLS, replica)
    mine = [row[0] for row in rows if row[1] == replica]
    if mine:
        await s.run(AWAKE, mine)
    others = [row[0] for row in rows if row[1] != replica]
    if others:
        await mended(s, others, now)
    return mine


async def unstranded(s: Session, limit: int, now: float) -> None:
    """Who is called by a wake-up row for a replica that is gone is called anew."""
    uids = [row[0] for row in await s.rows(STRANDED, limit)]
    if uids:
        await mended(s, uids, now)


async def bar(s: Session, replica: str, now: float | None, *, by_lease: bool) -> bool:
    """The replica can write no more; False: it has renewed its lease meanwhile."""
    if by_lease:
        lease = await s.row(OVER, replica, now)
        if lease is not None and not lease[0]:
            return False
    await s.run(BAR, replica)
    await s.run(UNLEASED, replica)
    return True


async def free(s: Session, replica: str, limit: int, now: float) -> bool:
    """Up to `limit` instances of the replica, which is barred, are nobody's; gives whether that were all."""
    uids = [row[0] for row in await s.rows(OWNED, replica, limit)]
    if uids:
        await s.run(FREE, uids, now)
        await freed(s, uids, now)
        s.after.anybody = True
    if len(uids) == limit:
        return False
    called = [row[0] for row in await s.rows(STILL_CALLED, replica)]
    if called:
        await mended(s, called, now)
    await s.run(UNFENCED, replica)
    return True
