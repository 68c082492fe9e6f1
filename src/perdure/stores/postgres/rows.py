"""Rows as PostgreSQL gives them, the records they stand for, and records as the arrays that statements take."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from perdure.model.records import Entry, Instance, Message, Pending, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

INSTANCE: Final = ",".join(Instance.__struct_fields__)
BORN: Final = INSTANCE.partition(",first,")[0]
"""The columns that a new instance is written with; the others come later, if ever."""
ENTRY: Final = ",".join(Entry.__struct_fields__)
PENDING: Final = ",".join(Pending.__struct_fields__)
MESSAGE: Final = ",".join(Message.__struct_fields__)

_TYPES: Final = {
    **dict.fromkeys(("uid", "mid", "arguments", "digest", "parent", "outcome", "first", "edit", "ref", "error",
                     "progress", "body", "asker", "target", "value"), "bytea"),
    **dict.fromkeys(("flow", "id", "lane", "state", "owner", "reason", "version", "key", "kind", "name", "type", "process",
                     "replica"), "text"),
    **dict.fromkeys(("run", "seq", "attempts", "attempt", "edited_seq", "failed_seq", "open", "length", "n"), "bigint"),
    **dict.fromkeys(("waiting", "failed", "intent", "cancel"), "boolean"),
    **dict.fromkeys(("due_at", "created_at", "ended_at", "started_at", "at", "next_at", "sent_at"), "double precision"),
}  # fmt: skip

STATES: Final = {state.value: state for state in State}
ENDED: Final = frozenset(state.value for state in State if state.ended)
NOT_ENDED: Final = "not in ('succeeded', 'failed', 'cancelled')"


def arrays(columns: str, first: int = 1) -> str:
    """`unnest(...)` of one array for each column, the first one parameter `$first`, as a table `v` in the order given."""
    names = columns.split(",")
    taken = ",".join(f"${number}::{_TYPES[name]}[]" for number, name in enumerate(names, first))
    return f"unnest({taken}) with ordinality as v({columns},place)"


def insert(table: str, columns: str, suffix: str = "on conflict do nothing") -> str:
    """An insert of rows given as arrays, in their order."""
    picked = ",".join(f"v.{column}" for column in columns.split(","))
    return (
        f"insert into perdure.{table}({columns}) select {picked} from {arrays(columns)} order by v.place {suffix}"
    ).rstrip()


def by_columns(rows: Iterable[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """The rows as one array for each column. There is at least one row."""
    return list(zip(*rows, strict=True))


_GET_ENTRY: Final = [attrgetter(name) for name in Entry.__struct_fields__]


def entry_columns(entries: Sequence[Entry]) -> list[list[Any]]:
    """The entries as one array for each column."""
    return [list(map(get, entries)) for get in _GET_ENTRY]


def to_instance(row: Sequence[Any]) -> Instance:
    """The instance of a row of `INSTANCE`."""
    uid, run, flow, id, lane, state, *rest = row
    if lane == flow:
        lane = flow  # one text in memory
    return Instance(uid, run, flow, id, lane, STATES[state], *rest)


def to_entry(row: Sequence[Any]) -> Entry:
    """The entry of a row of `ENTRY`."""
    return Entry(*row)


def to_pending(row: Sequence[Any]) -> Pending:
    """The pending operation of a row of `PENDING`."""
    return Pending(*row)


def to_message(row: Sequence[Any]) -> Message:
    """The message of a row of `MESSAGE`."""
    return Message(*row)
