"""Claims, wake-ups and takeovers as SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from perdure.errors import LeaseLost
from perdure.stores.mysql.reading import instances
from perdure.stores.mysql.rows import INSTANCE, quoted, to_instance
from perdure.stores.mysql.sending import ASLEEP, freed, mended
from perdure.stores.mysql.writing import fenced
from perdure.stores.processes import this_process

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from perdure.model.records import Instance
    from perdure.stores.mysql.connection import Row, Session

FENCES: Final = "select replica, epoch, flows from perdure_fence where alive = 1"

# What other code ran last is left to it while a live replica has that code: that are the lists of versions.
DUE: Final = (
    "(select t.free_at as since, t.uid from perdure_instance t force index (due)"
    " where t.lane = %s and t.free_at <= %s and t.version not in %s order by t.free_at limit %s)"
)
_ASKED_TO_CANCEL: Final = (
    "exists (select 1 from perdure_inbox m force index (primary) where m.uid = t.uid and m.open > 0"
    " and m.kind = 'cancel')"
)
AWOKEN: Final = (
    "(select w.at as since, t.uid from perdure_wakeup w force index (owner)"
    " straight_join perdure_instance t force index (primary) on t.uid = w.uid where w.owner = '' and w.lane = %s"
    f" and t.owner is null and t.state = 'suspended' and (t.version not in %s or {_ASKED_TO_CANCEL})"
    " order by w.at limit %s)"
)
TO_CANCEL: Final = (
    "(select w.at as since, t.uid from perdure_wakeup w force index (cancel)"
    " straight_join perdure_instance t force index (primary) on t.uid = w.uid where w.cancel = 1 and w.owner = ''"
    f" and t.owner is null and t.lane not in %s and {_ASKED_TO_CANCEL} order by w.at limit %s)"
)
# The safety poll: a walk over the messages that nobody has looked at yet, which is short in health.
OVERLOOKED: Final = (
    "select min(m.sent_at) as since, t.uid, t.lane, t.version from perdure_inbox m force index (open)"
    " straight_join perdure_instance t force index (primary) on t.uid = m.uid where m.open = 1 and t.owner is null"
    " and t.state = 'suspended' and t.lane in %s group by t.uid, t.lane, t.version"
)
# Wake-up rows for replicas that are gone, left by who died between a commit and the look after it.
STRANDED: Final = (
    "select w.uid from perdure_wakeup w force index (owner) left join perdure_fence f on f.replica = w.owner"
    " where w.owner > '' and f.replica is null limit %s"
)
NEXT_DUE: Final = (
    "(select t.free_at from perdure_instance t force index (due) where t.lane = %s and t.free_at is not null"
    " and t.version not in %s order by t.free_at limit 1)"
)
BLOCKED: Final = (
    f"select {quoted(INSTANCE)} from perdure_instance force index (rare) where rare = 'blocked' and uid > %s"
    " and owner is null and lane in %s order by uid limit %s"
)
TRIES: Final = "select uid, version, process from perdure_tried where uid in %s"
FREE_STILL: Final = (
    "select uid, state, due_at from perdure_instance force index (primary) where uid in %s and owner is null order by uid"
    " for update skip locked"
)
CLAIM: Final = (
    "update %s v straight_join perdure_instance i force index (primary) on i.uid = v.uid set i.state = 'running',"
    " i.owner = %s, i.waiting = 0, i.due_at = null, i.term = i.term + 1, i.version = coalesce(v.version, i.version)"
)

CALLED: Final = "select 1 from perdure_wakeup where owner = %s limit 1"
CALLED_AS: Final = "select uid from perdure_wakeup where owner = %s"
CALLS: Final = (
    "select w.uid, i.owner from perdure_wakeup w force index (primary) left join perdure_instance i on i.uid = w.uid"
    " where w.uid in %s and w.owner = %s order by w.uid for update"
)

_NOW: Final = "unix_timestamp(sysdate(6)) + 0e0"
JOIN: Final = (
    "insert into perdure_fence(replica, epoch, alive, flows) values (%s, 1, 1, %s) on duplicate key update flows = %s"
)
JOINED: Final = "select epoch, alive from perdure_fence where replica = %s for update"
FIRST_LEASE: Final = (
    "insert into perdure_lease(replica, until, process) select v.replica, v.until, v.process"
    f" from (select %s as replica, coalesce(%s, {_NOW}) + %s as until, %s as process) v"
    " on duplicate key update until = v.until, process = v.process"
)
RENEW: Final = (
    f"set @perdure_now = coalesce(%s, {_NOW});"
    "update perdure_lease set until = @perdure_now + %s, server = %s where replica = %s;"
    "select @perdure_now + 0e0"
)
ALIVE: Final = "select epoch from perdure_fence where replica = %s and alive = 1 for update"
RAISE_EPOCH: Final = "update perdure_fence set epoch = %s where replica = %s"
OTHERS: Final = (
    f"select f.replica, f.alive, coalesce(l.until, 0e0) < coalesce(%s, {_NOW}), l.server, l.process"
    " from perdure_fence f"
    " left join perdure_lease l on l.replica = f.replica where f.replica <> %s order by f.replica"
)
OVER: Final = f"select until < coalesce(%s, {_NOW}) from perdure_lease where replica = %s for update"
BAR: Final = "update perdure_fence set alive = 0, epoch = epoch + 1 where replica = %s and alive = 1"
UNLEASED: Final = "delete from perdure_lease where replica = %s"
OWNED: Final = "select uid from perdure_instance force index (owner) where owner = %s order by uid limit %s for update"
# Each is set from left to right, and looks at what those before it have made of the row.
FREE: Final = (
    "update perdure_instance force index (primary) set"
    " due_at = case when state = 'running' and waiting = 0 then %s else due_at end,"
    " state = case when state = 'running' and waiting = 0 then 'scheduled' else state end, owner = null where uid in %s"
)
UNFENCED: Final = "delete from perdure_fence where replica = %s and alive = 0"

Pins = list[tuple[str, str]]
"""Lanes, each with a version that is left to other replicas."""

NOTHING: Final = "\0"
"""No lane and no version: what a list has that has nothing else, for which `not in` would be neither true nor false."""
_UNITED: Final = 100


async def join(
    s: Session, replica: str, flows: Mapping[str, str], lease: float, now: float | None
) -> int:  # fmt: skip
    """Fence and lease of the replica exist; gives its epoch."""
    known = msgspec.json.encode(flows)
    await s.run(JOIN, replica, known, known)
    row = await s.row(JOINED, replica)
    if row is None or not row[1]:
        raise LeaseLost(f"replica {replica} was taken over; join under a new id")
    await s.run(FIRST_LEASE, replica, now, lease, this_process())
    epoch: int = row[0]
    return epoch


async def raise_epoch(s: Session, replica: str, epoch: int) -> int:
    """The replica's epoch is a new one, given."""
    row = await s.row(ALIVE, replica)
    if row is None:
        raise LeaseLost(f"replica {replica} was taken over")
    raised = max(int(row[0]), epoch) + 1
    await s.run(RAISE_EPOCH, raised, replica)
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
    return pins, sorted(set[str]().union(*others) - flows.keys())


async def candidates(
    s: Session, flows: Mapping[str, str], pins: Pins, elsewhere: list[str], now: float, limit: int, *, thorough: bool
) -> list[Instance]:  # fmt: skip
    """What could be claimed, longest due first."""
    if limit <= 0:
        return []
    left = _left(flows, pins)
    parts = [s.fill(TO_CANCEL, [NOTHING, *elsewhere], limit)]
    for lane in flows:
        parts += [s.fill(DUE, lane, now, left[lane], limit), s.fill(AWOKEN, lane, left[lane], limit)]
    found: list[tuple[float, bytes]] = await _union(s, parts)
    if thorough:
        overlooked = await s.listed(OVERLOOKED, list(flows))
        found += [(since, uid) for since, uid, lane, version in overlooked if version not in left[lane]]
    first = list(dict.fromkeys(uid for _, uid in sorted(found)))[:limit]
    rows = {row.uid: row for row in await instances(s, first)}
    return [rows[uid] for uid in first if uid in rows]


def _left(flows: Mapping[str, str], pins: Pins) -> dict[str, list[str]]:
    """The versions that are left to others, by lane."""
    left = {lane: [NOTHING] for lane in flows}
    for lane, version in pins:
        left[lane].append(version)
    return left


async def _union(s: Session, parts: Sequence[bytes]) -> list[Row]:
    """What these queries give together, asked in a few statements."""
    found: list[Row] = []
    for start in range(0, len(parts), _UNITED):
        found += await s.all(b" union all ".join(parts[start : start + _UNITED]))
    return found


async def next_due(s: Session, flows: Mapping[str, str], pins: Pins) -> float | None:
    """When the next instance wants to go on by itself."""
    left = _left(flows, pins)
    rows = await _union(s, [s.fill(NEXT_DUE, lane, left[lane]) for lane in flows])
    return min((row[0] for row in rows), default=None)


async def blocked(
    s: Session, flows: Mapping[str, str], process: str, after: bytes, limit: int
) -> tuple[list[Instance], bytes]:  # fmt: skip
    """Of the next `limit` blocked instances those that this code may try, and the last uid looked at."""
    if limit <= 0:
        return [], after
    found = [to_instance(row) for row in await s.rows(BLOCKED, after, list(flows), limit + 1)]
    tries: dict[tuple[bytes, str], list[str]] = {}
    for uid, version, by in await s.listed(TRIES, [row.uid for row in found[:limit]]):
        tries.setdefault((uid, version), []).append(by)
    rows = [row for row in found[:limit] if _may_try(tries.get((row.uid, flows[row.lane]), []), process)]
    return rows, found[limit - 1].uid if len(found) > limit else b""


def _may_try(tries: list[str], process: str) -> bool:
    """Whether this code may try an instance that it has tried in these processes."""
    return not tries or (len(tries) == 1 and tries[0] != process)


async def claim(
    s: Session, replica: str, epoch: int, flows: Mapping[str, str], rows: Sequence[Instance]
) -> list[Instance]:  # fmt: skip
    """Those of the rows that are still as they were read are the replica's; what others claim now is left to them."""
    await fenced(s, replica, epoch)
    free = {row[0]: row[1:] for row in await s.listed(FREE_STILL, sorted(r.uid for r in rows))}
    wanted = [r for r in rows if free.get(r.uid) == (r.state.value, r.due_at)]
    if wanted:
        claims = sorted((r.uid, flows.get(r.lane) or None) for r in wanted)
        await s.each(CLAIM, "uid,version", claims, replica)
        await s.over(ASLEEP, [uid for uid, _ in claims])
    return wanted


async def wakeups(s: Session, replica: str, epoch: int, now: float) -> list[bytes]:
    """The wake-up rows of the replica's instances are gone; those of what it does not own any more go to who does."""
    await fenced(s, replica, epoch)
    uids = sorted(row[0] for row in await s.rows(CALLED_AS, replica))
    rows = await s.listed(CALLS, uids, replica)
    mine = [row[0] for row in rows if row[1] == replica]
    if mine:
        await s.over(ASLEEP, mine)
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
        lease = await s.row(OVER, now, replica)
        if lease is not None and not lease[0]:
            return False
    await s.run(BAR, replica)
    await s.run(UNLEASED, replica)
    return True


async def free(s: Session, replica: str, limit: int, now: float) -> bool:
    """Up to `limit` instances of the replica, which is barred, are nobody's; gives whether that were all."""
    uids = [row[0] for row in await s.rows(OWNED, replica, limit)]
    if uids:
        await s.run(FREE, now, uids)
        await freed(s, uids, now)
        s.after.anybody = True
    if len(uids) == limit:
        return False
    called = sorted(row[0] for row in await s.rows(CALLED_AS, replica))
    if called:
        await mended(s, called, now)
    await s.run(UNFENCED, replica)
    return True
