"""What is read, each in one statement or of one snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from perdure.model.records import Entry, Instance, Loaded, Message, Pending, State
from perdure.stores.mysql.rows import (
    ENTRY,
    INSTANCE,
    MESSAGE,
    PENDING,
    quoted,
    to_entry,
    to_instance,
    to_message,
    to_pending,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perdure.stores.mysql.connection import Row, Session

PAGE_ROWS: Final = 2000
"""So many entries of one journal are looked at in one statement."""
PAGE_RUNS: Final = 100
"""So many journals are."""

BY_UIDS: Final = f"select {quoted(INSTANCE)} from perdure_instance where uid in %s"
THERE: Final = "select uid from perdure_instance force index (primary) where uid in %s"
OVER: Final = (
    f"select {quoted(INSTANCE)} from perdure_instance force index (primary) where uid in %s"
    " and state in ('succeeded', 'failed', 'cancelled', 'blocked')"
)
# Sizes are a column of their own: to ask for the length of a value the server would read it.
SIZES: Final = (
    "(select uid, run, seq, size from perdure_entry force index (primary) where uid = %s and run = %s and seq > %s"
    f" order by seq limit {PAGE_ROWS})"
)
JOURNAL: Final = (
    f"(select {quoted(ENTRY)} from perdure_entry force index (primary) where uid = %s and run = %s and seq > %s and seq <= %s"
    f" order by seq limit {PAGE_ROWS})"
)
MORE: Final = "select 1 from perdure_entry where uid = %s and run = %s and seq > %s limit 1"
PENDINGS: Final = (
    f"select {quoted(PENDING, 'p')} from perdure_instance i straight_join perdure_pending p force index (primary)"
    " on p.uid = i.uid and p.run = i.run where i.uid in %s order by p.uid, p.`key`"
)
UNTAKEN: Final = f"select uid, {quoted(MESSAGE)} from perdure_inbox force index (open) where open in (1, 2) and uid in %s order by uid, nr"
BY_ID: Final = (
    f"select {quoted(INSTANCE, 'i')} from perdure_place p straight_join perdure_instance i on i.uid = p.uid"
    " where p.flow = %s and p.id = %s"
)
EXPOSED: Final = "select `key`, value from perdure_exposed where uid = %s"

RARE: Final = frozenset({State.FAILED, State.CANCELLED, State.BLOCKED})
"""The states that have an index."""

_Place = tuple[bytes, int, int]
"""Uid, run, and the seq after which a journal is read."""


async def instances(s: Session, uids: Sequence[bytes]) -> list[Instance]:
    """The rows of these lives, in no order."""
    return [to_instance(row) for row in await s.listed(BY_UIDS, uids)]


async def results(s: Session, uids: Sequence[bytes]) -> dict[bytes, Instance | None]:
    """Those of these lives that go on no more now, and None for each that is not there."""
    there = {row[0] for row in await s.listed(THERE, uids)}
    found: dict[bytes, Instance | None] = {uid: None for uid in uids if uid not in there}
    for row in await s.listed(OVER, uids):
        found[row[0]] = to_instance(row)
    return found


async def instance(s: Session, flow: str, id: str) -> Instance | None:
    """The current life of (flow, id)."""
    row = await s.row(BY_ID, flow, id)
    return None if row is None else to_instance(row)


async def inbox(s: Session, uids: Sequence[bytes]) -> dict[bytes, list[Message]]:
    """The untaken messages of each, oldest first."""
    found: dict[bytes, list[Message]] = {uid: [] for uid in uids}
    for uid, *message in await s.listed(UNTAKEN, uids):
        found[uid].append(to_message(message))
    return found


async def load(s: Session, uids: Sequence[bytes], budget: int) -> list[Loaded]:
    """The first of these instances, as far as the budget goes, of one snapshot."""
    found = {row.uid: row for row in await instances(s, uids)}
    rows = [found[uid] for uid in sorted(found)]
    journals, cut, last = await _journals(s, [(row.uid, row.run, _BEFORE_ALL) for row in rows], budget)
    rows = [row for row in rows if last is None or row.uid <= last]
    pending = await pendings(s, [row.uid for row in rows])
    messages = await inbox(s, [row.uid for row in rows])
    return [
        Loaded(row, journals.get(row.uid, []), pending[row.uid], messages[row.uid], more=row.uid == cut) for row in rows
    ]


_BEFORE_ALL: Final = -(1 << 62)


async def _journals(
    s: Session, places: list[_Place], budget: int
) -> tuple[dict[bytes, list[Entry]], bytes | None, bytes | None]:
    """Journals in the order of these places; whose was cut, if one was; and after whose nothing was read, if so."""
    journals: dict[bytes, list[Entry]] = {}
    left = max(budget, 1)
    while places:
        parts, places, left = await _sized(s, places, left)
        if parts:
            union = b" union all ".join(s.fill(JOURNAL, *part) for part in parts)
            for row in await s.all(union if len(parts) == 1 else union + b" order by uid, seq"):
                journals.setdefault(row[0], []).append(to_entry(row))
        if left <= 0:
            uid, run, _, last = parts[-1]
            more = await s.row(MORE, uid, run, last) is not None
            return journals, uid if more else None, uid
    return journals, None, None


async def _sized(
    s: Session, places: list[_Place], budget: int
) -> tuple[list[tuple[bytes, int, int, int]], list[_Place], int]:
    """Which parts of the first journals the budget is for (each up to a seq), what is to be read then, and the budget
    that is left: none is, if the last part was cut.
    """
    now, later = places[:PAGE_RUNS], places[PAGE_RUNS:]
    rows: dict[bytes, list[Row]] = {}
    for row in await s.all(b" union all ".join(s.fill(SIZES, *place) for place in now)):
        rows.setdefault(row[0], []).append(row)
    parts: list[tuple[bytes, int, int, int]] = []
    for number, (uid, run, after) in enumerate(now):
        own = rows.get(uid, [])
        own.sort(key=_seq)
        last = None
        for row in own:
            last = int(row[2])
            budget -= int(row[3])
            if budget <= 0:
                return [*parts, (uid, run, after, last)], [], 0
        if last is not None:
            parts.append((uid, run, after, last))
        if last is not None and len(own) == PAGE_ROWS:
            return parts, [(uid, run, last), *now[number + 1 :], *later], budget
    return parts, later, budget


def _seq(row: Row) -> int:
    seq: int = row[2]
    return seq


async def entries(s: Session, uid: bytes, run: int, after: int, budget: int) -> tuple[list[Entry], bool]:
    """A page of the journal of one run, and whether it goes on."""
    found, cut, _ = await _journals(s, [(uid, run, after)], budget)
    return found.get(uid, []), cut is not None


async def pendings(s: Session, uids: Sequence[bytes]) -> dict[bytes, list[Pending]]:
    """The pending operations of each instance's run, by key."""
    found: dict[bytes, list[Pending]] = {uid: [] for uid in uids}
    for row in await s.listed(PENDINGS, uids):
        found[row[0]].append(to_pending(row))
    return found


async def exposed(s: Session, uid: bytes) -> dict[str, bytes]:
    """What the instance exposes."""
    return {row[0]: row[1] for row in await s.rows(EXPOSED, uid)}


async def find(
    s: Session, flow: str | None, states: Sequence[State] | None, since: float | None, after: bytes | None, limit: int
) -> list[Instance]:
    """See Store."""
    return [to_instance(row) for row in await s.all(finding(s, flow, states, since, after, limit))]


def finding(
    s: Session, flow: str | None, states: Sequence[State] | None, since: float | None, after: bytes | None, limit: int
) -> bytes:
    """The query for `find`. Few are in the rare states, and those have an index, one part for each state."""
    terms = [
        s.fill(term, value)
        for term, value in (("flow = %s", flow), ("created_at >= %s", since), ("uid > %s", after))
        if value is not None
    ]
    if not states or not RARE.issuperset(states):
        if states is not None:
            terms.append(s.fill("state in %s", [state.value for state in states]))
        return _ordered(s, "primary", terms, limit)
    each = [_ordered(s, "rare", [s.fill("rare = %s", state.value), *terms], limit) for state in dict.fromkeys(states)]
    return (
        each[0]
        if len(each) == 1
        else b" union all ".join(b"(%s)" % one for one in each) + s.fill(" order by uid limit %s", limit)
    )


def _ordered(s: Session, index: str, terms: list[bytes], limit: int) -> bytes:
    start = s.fill(f"select {quoted(INSTANCE)} from perdure_instance force index ({index})")
    where = b" where " + b" and ".join(terms) if terms else b""
    return start + where + s.fill(" order by uid limit %s", limit)
