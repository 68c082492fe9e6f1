"""What is read, each in one statement or of one snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from perdure.model.records import Entry, Instance, Loaded, Message, Pending, State
from perdure.stores.postgres.rows import (
    ENTRY,
    INSTANCE,
    MESSAGE,
    PENDING,
    to_entry,
    to_instance,
    to_message,
    to_pending,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perdure.stores.postgres.connection import Row, Session

PAGE_ROWS: Final = 2000
"""So many entries are looked at in one statement."""

_I: Final = ",".join(f"i.{column}" for column in INSTANCE.split(","))
_E: Final = ",".join(f"e.{column}" for column in ENTRY.split(","))
BY_UIDS: Final = f"select {INSTANCE} from perdure.instance where uid = any($1::bytea[])"
RESULTS: Final = (
    f"select v.uid, {_I} from unnest($1::bytea[]) as v(uid) left join perdure.instance i on i.uid = v.uid"
    " where i.uid is null or i.state in ('succeeded', 'failed', 'cancelled', 'blocked')"
)
# The first rows of each journal, in the order of the uids, up to the row that brings them to $3 bytes. Sizes are known
# without reading the values.
JOURNALS: Final = (
    f"select {ENTRY}, upto from (select e.*, sum(size) over w as upto, sum(size) over w - size as before from ("
    f" select {_E}, coalesce(octet_length(e.arguments), 0) + coalesce(octet_length(e.outcome), 0) as size"
    " from unnest($1::bytea[], $2::bigint[], $5::bigint[]) with ordinality as v(uid, run, after, place)"
    " cross join lateral (select * from perdure.entry t where t.uid = v.uid and t.run = v.run and t.seq > v.after"
    " order by t.seq limit $4) e order by e.uid, e.seq limit $4"
    ") e window w as (order by uid, seq rows unbounded preceding)) e where before < $3 order by uid, seq"
)
MORE: Final = "select 1 from perdure.entry where uid = $1 and run = $2 and seq > $3 limit 1"
PENDINGS: Final = (
    f"select {','.join(f'p.{column}' for column in PENDING.split(','))} from perdure.instance i"
    " join perdure.pending p on p.uid = i.uid and p.run = i.run where i.uid = any($1::bytea[]) order by p.uid, p.key"
)
UNTAKEN: Final = f"select uid, {MESSAGE} from perdure.inbox where uid = any($1::bytea[]) and open > 0 order by uid, nr"
BY_ID: Final = (
    f"select {_I} from perdure.place p join perdure.instance i on i.uid = p.uid where p.flow = $1 and p.id = $2"
)
EXPOSED: Final = "select key, value from perdure.exposed where uid = $1"

RARE: Final = frozenset({State.FAILED, State.CANCELLED, State.BLOCKED})
"""The states that have an index."""


async def instances(s: Session, uids: Sequence[bytes]) -> list[Instance]:
    """The rows of these lives, in no order."""
    return [to_instance(row) for row in await s.rows(BY_UIDS, uids)]


async def results(s: Session, uids: Sequence[bytes]) -> dict[bytes, Instance | None]:
    """Those of these lives that go on no more now, and None for each that is not there."""
    return {row[0]: None if row[1] is None else to_instance(row[1:]) for row in await s.rows(RESULTS, uids)}


async def instance(s: Session, flow: str, id: str) -> Instance | None:
    """The current life of (flow, id)."""
    row = await s.row(BY_ID, flow, id)
    return None if row is None else to_instance(row)


async def inbox(s: Session, uids: Sequence[bytes]) -> dict[bytes, list[Message]]:
    """The untaken messages of each, oldest first."""
    found: dict[bytes, list[Message]] = {uid: [] for uid in uids}
    for uid, *message in await s.rows(UNTAKEN, uids):
        found[uid].append(to_message(message))
    return found


async def load(s: Session, uids: Sequence[bytes], budget: int) -> list[Loaded]:
    """The first of these instances, as far as the budget goes, of one snapshot."""
    found = {row.uid: row for row in await instances(s, uids)}
    rows = [found[uid] for uid in sorted(found)]
    journals, cut, last = await _journals(s, [(row.uid, row.run) for row in rows], budget)
    rows = [row for row in rows if last is None or row.uid <= last]
    pending = await pendings(s, [row.uid for row in rows])
    messages = await inbox(s, [row.uid for row in rows])
    return [
        Loaded(row, journals.get(row.uid, []), pending[row.uid], messages[row.uid], more=row.uid == cut) for row in rows
    ]


async def _journals(
    s: Session, runs: list[tuple[bytes, int]], budget: int
) -> tuple[dict[bytes, list[Entry]], bytes | None, bytes | None]:
    """Journals in the order of the uids; whose was cut, if one was; and after whose nothing was read, if so."""
    journals: dict[bytes, list[Entry]] = {}
    left = [(uid, run, _BEFORE_ALL) for uid, run in runs]
    while left:
        page, used = await _page(s, left, max(budget, 1))
        for entry in page:
            journals.setdefault(entry.uid, []).append(entry)
        budget -= used
        if not page:
            break
        last = page[-1]
        if budget <= 0:
            more = await s.row(MORE, last.uid, last.run, last.seq) is not None
            return journals, last.uid if more else None, last.uid
        if len(page) < PAGE_ROWS:
            break
        left = [(uid, run, last.seq if uid == last.uid else _BEFORE_ALL) for uid, run, _ in left if uid >= last.uid]
    return journals, None, None


_BEFORE_ALL: Final = -(1 << 62)


async def _page(s: Session, places: list[tuple[bytes, int, int]], budget: int) -> tuple[list[Entry], int]:
    """The first entries behind these places, and how many bytes of values they have."""
    uids, runs, afters = zip(*places, strict=True)
    rows: list[Row] = await s.rows(JOURNALS, uids, runs, budget, PAGE_ROWS, afters)
    return [to_entry(row[:-1]) for row in rows], int(rows[-1][-1]) if rows else 0


async def entries(s: Session, uid: bytes, run: int, after: int, budget: int) -> tuple[list[Entry], bool]:
    """A page of the journal of one run, and whether it goes on."""
    found: list[Entry] = []
    while True:
        page, used = await _page(s, [(uid, run, after)], max(budget, 1))
        found += page
        budget -= used
        if not page or (budget > 0 and len(page) < PAGE_ROWS):
            return found, False
        after = page[-1].seq
        if budget <= 0:
            return found, await s.row(MORE, uid, run, after) is not None


async def pendings(s: Session, uids: Sequence[bytes]) -> dict[bytes, list[Pending]]:
    """The pending operations of each instance's run, by key."""
    found: dict[bytes, list[Pending]] = {uid: [] for uid in uids}
    for row in await s.rows(PENDINGS, uids):
        found[row[0]].append(to_pending(row))
    return found


async def exposed(s: Session, uid: bytes) -> dict[str, bytes]:
    """What the instance exposes."""
    return {row[0]: row[1] for row in await s.rows(EXPOSED, uid)}


async def find(
    s: Session, flow: str | None, states: Sequence[State] | None, since: float | None, after: bytes | None, limit: int
) -> list[Instance]:
    """See Store."""
    text, values = finding(flow, states, since, after, limit)
    return [to_instance(row) for row in await s.rows(text, *values)]


def finding(
    flow: str | None, states: Sequence[State] | None, since: float | None, after: bytes | None, limit: int
) -> tuple[str, list[Any]]:
    """The query for `find`, with its values. Few are in the rare states, and those have an index, one for each state."""
    values: list[Any] = [limit]
    terms: list[str] = []
    for term, value in (("flow =", flow), ("created_at >=", since), ("uid >", after)):
        if value is not None:
            values.append(value)
            terms.append(f"{term} ${len(values)}")
    if not states or not RARE.issuperset(states):
        if states is not None:
            terms.append(f"state in ({','.join(map(_literal, states)) or 'null'})")
        return f"select {INSTANCE} from perdure.instance where {_all(terms)} order by uid limit $1", values
    wanted = [_all([f"state = {_literal(state)}", *terms]) for state in dict.fromkeys(states)]
    each = [f"(select {INSTANCE} from perdure.instance where {terms} order by uid limit $1)" for terms in wanted]
    return f"select * from ({' union all '.join(each)}) u order by uid limit $1", values


def _all(terms: list[str]) -> str:
    return " and ".join(terms or ["true"])


def _literal(state: State) -> str:
    return f"'{state.value}'"
