"""What is read, on the thread of the event loop: see `Reader`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from perdure.model.records import Entry, Instance, Loaded, Message, Pending, State
from perdure.stores.sqlite.bulk import keyed
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

    from perdure.stores.sqlite.connection import Database, Row, Value


BY_UIDS: Final = keyed(f"select {INSTANCE} from instance where uid in ({{rows}})")
ENTRIES: Final = keyed(f"select {ENTRY} from entry where uid in ({{rows}}) order by uid, run, seq")
PENDINGS: Final = keyed(f"select {PENDING} from pending where uid in ({{rows}}) order by uid, run, key")
UNTAKEN: Final = keyed(f"select uid, {MESSAGE} from inbox where uid in ({{rows}}) and open > 0 order by rowid")
BY_ID: Final = f"select {INSTANCE} from instance where flow = ? and id = ?"
EXPOSED: Final = "select key, value from exposed where uid = ?"


def instances(db: Database, uids: Sequence[bytes]) -> list[Instance]:
    """The rows of these lives, in no order."""
    found: list[Instance] = []
    for text, values in BY_UIDS.chunks([(uid,) for uid in uids]):
        found += map(to_instance, db.execute(text, values))
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


def load(db: Database, uids: Sequence[bytes]) -> list[Loaded]:
    """All of these instances, of one snapshot."""
    rows: list[Row] = [(uid,) for uid in uids]
    db.execute("begin")
    try:
        found = {row.uid: row for row in instances(db, uids)}
        entries: dict[bytes, list[Entry]] = {uid: [] for uid in found}
        pending: dict[bytes, list[Pending]] = {uid: [] for uid in found}
        for text, values in ENTRIES.chunks(rows):
            for row in db.execute(text, values):
                if row[0] in entries:
                    entries[row[0]].append(to_entry(row))
        for text, values in PENDINGS.chunks(rows):
            for row in db.execute(text, values):
                if row[0] in pending:
                    pending[row[0]].append(to_pending(row))
        messages = inbox(db, uids)
    finally:
        db.execute("commit")
    return [Loaded(found[uid], entries[uid], pending[uid], messages[uid]) for uid in uids if uid in found]


def exposed(db: Database, uid: bytes) -> dict[str, bytes]:
    """What the instance exposes."""
    return {row[0]: row[1] for row in db.execute(EXPOSED, (uid,))}


def find(
    db: Database, flow: str | None, states: Sequence[State] | None, since: float | None, after: bytes | None,
    limit: int,
) -> list[Instance]:  # fmt: skip
    """See Store."""
    terms: list[str] = ["true"]
    values: list[Value] = []
    if flow is not None:
        terms.append("flow = ?")
        values.append(flow)
    if states is not None:
        terms.append(f"state in ({','.join('?' * len(states))})")
        values += [state.value for state in states]
    if since is not None:
        terms.append("created_at >= ?")
        values.append(since)
    if after is not None:
        terms.append("uid > ?")
        values.append(after)
    text = f"select {INSTANCE} from instance where {' and '.join(terms)} order by uid limit ?"
    return [to_instance(row) for row in db.execute(text, [*values, limit])]
