"""What is read, on the thread of the event loop: see `Reader`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from perdure.model.records import Entry, Instance, Loaded, Message, Pending, State
from perdure.stores.sqlite.bulk import Bulk, keyed
from perdure.stores.sqlite.rows import (
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

    from perdure.stores.sqlite.connection import Database, Value


BY_UIDS: Final = keyed(f"select {INSTANCE} from instance where uid in ({{rows}})")
RESULTS: Final = Bulk(
    f"select v.column1, {','.join(f'i.{column}' for column in INSTANCE.split(','))}"
    " from (values {rows}) as v left join instance i on i.uid = v.column1 where v.column1 is not null"
    " and (i.uid is null or i.state in ('succeeded', 'failed', 'cancelled', 'blocked'))",
    1,
)
JOURNALS: Final = keyed(
    f"select {ENTRY} from entry where uid in ({{rows}}) and run = (select i.run from instance i where i.uid = entry.uid)"
    " order by uid, run, seq"
)
ENTRIES: Final = f"select {ENTRY} from entry where uid = ? and run = ? and seq > ? order by seq"
PENDINGS: Final = keyed(f"select {PENDING} from pending where uid in ({{rows}}) order by uid, run, key")
UNTAKEN: Final = keyed(f"select uid, {MESSAGE} from inbox where uid in ({{rows}}) and open > 0 order by rowid")
BY_ID: Final = f"select {INSTANCE} from instance where flow = ? and id = ?"
EXPOSED: Final = "select key, value from exposed where uid = ?"

RARE: Final = frozenset({State.FAILED, State.CANCELLED, State.BLOCKED})
"""The states that have an index."""
_COLUMNS: Final = ENTRY.split(",")
_ARGUMENTS: Final = _COLUMNS.index("arguments")
_OUTCOME: Final = _COLUMNS.index("outcome")


def instances(db: Database, uids: Sequence[bytes]) -> list[Instance]:
    """The rows of these lives, in no order."""
    found: list[Instance] = []
    for text, values in BY_UIDS.chunks([(uid,) for uid in uids]):
        found += map(to_instance, db.execute(text, values))
    return found


def results(db: Database, uids: Sequence[bytes]) -> dict[bytes, Instance | None]:
    """Those of these lives that go on no more now, and None for each that is not there."""
    found: dict[bytes, Instance | None] = {}
    for text, values in RESULTS.chunks([(uid,) for uid in uids]):
        for uid, *row in db.execute(text, values):
            found[uid] = None if row[0] is None else to_instance(row)
    return found


def instance(db: Database, flow: str, id: str) -> Instance | None:
    """The current life of (flow, id)."""
    rows = db.execute(BY_ID, (flow, id)).fetchall()
    return to_instance(rows[0]) if rows else None


def inbox(db: Database, uids: Sequence[bytes]) -> dict[bytes, list[Message]]:
    """The untaken messages of each, oldest first."""
    found: dict[bytes, list[Message]] = {uid: [] for uid in uids}
    for text, values in UNTAKEN.chunks([(uid,) for uid in uids]):
        for row in db.execute(text, values):
            found[row[0]].append(to_message(row[1:]))
    return found


def load(db: Database, uids: Sequence[bytes], budget: int) -> list[Loaded]:
    """The first of these instances, as far as the budget goes, of one snapshot."""
    db.execute("begin")
    try:
        found = {row.uid: row for row in instances(db, uids)}
        journals, cut, last = _journals(db, sorted(found), budget)
        rows = [found[uid] for uid in sorted(found) if last is None or uid <= last]
        pending = pendings(db, rows)
        messages = inbox(db, [row.uid for row in rows])
    finally:
        db.execute("commit")
    return [Loaded(row, journals.get(row.uid, []), pending[row.uid], messages[row.uid], row.uid == cut) for row in rows]


def _journals(
    db: Database, uids: list[bytes], budget: int
) -> tuple[dict[bytes, list[Entry]], bytes | None, bytes | None]:
    """Journals in the order of the uids; whose was cut, if one was; and after whose nothing was read, if so."""
    journals: dict[bytes, list[Entry]] = {}
    journal: list[Entry] = []
    last: bytes | None = None
    for text, values in JOURNALS.chunks([(uid,) for uid in uids]):
        cursor = db.execute(text, values)
        for row in cursor:
            if budget <= 0 and last is not None:
                cursor.close()
                return journals, last if row[0] == last else None, last
            if row[0] != last:
                last = row[0]
                journals[row[0]] = journal = []
            journal.append(to_entry(row))
            budget -= len(row[_ARGUMENTS] or b"") + len(row[_OUTCOME] or b"")
    return journals, None, last if budget <= 0 else None


def entries(db: Database, uid: bytes, run: int, after: int, budget: int) -> tuple[list[Entry], bool]:
    """A page of the journal of one run, and whether it goes on."""
    found: list[Entry] = []
    cursor = db.execute(ENTRIES, (uid, run, after))
    for row in cursor:
        if budget <= 0 and found:
            cursor.close()
            return found, True
        found.append(to_entry(row))
        budget -= len(row[_ARGUMENTS] or b"") + len(row[_OUTCOME] or b"")
    return found, False


def pendings(db: Database, rows: Sequence[Instance]) -> dict[bytes, list[Pending]]:
    """The pending operations of each instance's run, by key."""
    runs = {row.uid: row.run for row in rows}
    found: dict[bytes, list[Pending]] = {uid: [] for uid in runs}
    for text, values in PENDINGS.chunks([(uid,) for uid in runs]):
        for row in db.execute(text, values):
            if runs[row[0]] == row[1]:
                found[row[0]].append(to_pending(row))
    return found


def exposed(db: Database, uid: bytes) -> dict[str, bytes]:
    """What the instance exposes."""
    return {row[0]: row[1] for row in db.execute(EXPOSED, (uid,))}


def find(
    db: Database, flow: str | None, states: Sequence[State] | None, since: float | None, after: bytes | None,
    limit: int,
) -> list[Instance]:  # fmt: skip
    """See Store."""
    text, values = finding(flow, states, since, after, limit)
    return [to_instance(row) for row in db.execute(text, values)]


def finding(
    flow: str | None, states: Sequence[State] | None, since: float | None, after: bytes | None, limit: int
) -> tuple[str, list[Value]]:
    """The query for `find`, with its values. Few are in the rare states, and those have an index, one for each state."""
    terms: list[str] = []
    values: list[Value] = []
    if flow is not None:
        terms.append("flow = ?")
        values.append(flow)
    if since is not None:
        terms.append("created_at >= ?")
        values.append(since)
    if after is not None:
        terms.append("uid > ?")
        values.append(after)
    if not states or not RARE.issuperset(states):
        if states is not None:
            terms.append(f"state in ({','.join(_literal(state) for state in states)})")
        text = f"select {INSTANCE} from instance where {' and '.join(terms or ['true'])}"
    else:
        wanted = [" and ".join([f"state = {_literal(state)}", *terms]) for state in dict.fromkeys(states)]
        text = " union all ".join(f"select {INSTANCE} from instance where {each}" for each in wanted)
        values *= len(wanted)
    return f"{text} order by uid limit ?", [*values, limit]


def _literal(state: State) -> str:
    return f"'{state.value}'"
