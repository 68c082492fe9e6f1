"""Rows as SQLite gives them, and the records they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from perdure.model.records import Entry, Instance, Message, Pending, State

if TYPE_CHECKING:
    from collections.abc import Sequence

INSTANCE: Final = ",".join(Instance.__struct_fields__)
BORN: Final = INSTANCE.partition(",first,")[0]
"""The columns that a new instance is written with; the others come later, if ever."""
ENTRY: Final = ",".join(Entry.__struct_fields__)
PENDING: Final = ",".join(Pending.__struct_fields__)
MESSAGE: Final = ",".join(Message.__struct_fields__)
REPLACED: Final = "on conflict(uid, run, seq) do update set " + ", ".join(
    f"{column} = excluded.{column}" for column in Entry.__struct_fields__[3:]
)
"""Of an entry whose place is taken."""

STATES: Final = {state.value: state for state in State}
ENDED: Final = frozenset(state.value for state in State if state.ended)


def to_instance(row: Sequence[Any]) -> Instance:
    """The instance of a row of `INSTANCE`."""
    uid, run, flow, id, lane, state, owner, waiting, *rest = row
    if lane == flow:
        lane = flow  # one text in memory
    return Instance(uid, run, flow, id, lane, STATES[state], owner, waiting == 1, *rest)


def to_entry(row: Sequence[Any]) -> Entry:
    """The entry of a row of `ENTRY`."""
    uid, run, seq, key, kind, name, arguments, digest, failed, outcome, attempts, started_at, at, ref = row
    return Entry(
        uid, run, seq, key, kind, name, arguments, digest, failed == 1, outcome, attempts, started_at, at, ref
    )  # fmt: skip


def to_pending(row: Sequence[Any]) -> Pending:
    """The pending operation of a row of `PENDING`."""
    uid, run, key, kind, name, arguments, digest, intent, *rest = row
    return Pending(uid, run, key, kind, name, arguments, digest, intent == 1, *rest)


def to_message(row: Sequence[Any]) -> Message:
    """The message of a row of `MESSAGE`."""
    mid, kind, key, name, type, body, failed, run, sent_at = row
    return Message(mid, kind, key, name, type, body, failed == 1, run, sent_at)
