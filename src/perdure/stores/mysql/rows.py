"""Rows as the server gives them, the records they stand for, and records as the rows that statements take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import astuple

from perdure.model.records import Entry, Instance, Message, Pending, State

if TYPE_CHECKING:
    from collections.abc import Sequence


def quoted(columns: str, of: str = "") -> str:
    """The columns as a statement names them; `of` is a table's name there."""
    dot = f"{of}." if of else ""
    return ",".join(f"{dot}`{column}`" for column in columns.split(","))


INSTANCE: Final = ",".join(Instance.__struct_fields__)
BORN: Final = INSTANCE.partition(",first,")[0]
"""The columns that a new instance is written with; the others come later, if ever."""
ENTRY: Final = ",".join(Entry.__struct_fields__)
PENDING: Final = ",".join(Pending.__struct_fields__)
MESSAGE: Final = ",".join(Message.__struct_fields__)

STATES: Final = {state.value: state for state in State}
ENDED: Final = frozenset(state.value for state in State if state.ended)
NOT_ENDED: Final = "not in ('succeeded', 'failed', 'cancelled')"
_REASON: Final = Instance.__struct_fields__.index("reason")


def insert(table: str, columns: str) -> str:
    """An insert of rows; one whose key is taken fails, and all with it."""
    return f"insert into perdure_{table}({quoted(columns)}) values %s"


def keep(table: str, columns: str) -> str:
    """An insert of rows given as a table; those whose key is taken are left out."""
    key = columns.split(",")[0]
    return (
        f"insert into perdure_{table}({quoted(columns)}) select {quoted(columns, 'v')} from %s v"
        f" on duplicate key update perdure_{table}.`{key}` = perdure_{table}.`{key}`"
    )


def replace(table: str, columns: str, keys: int, condition: str = "") -> str:
    """An insert of rows given as a table; of those whose key (the first columns) is taken the rest is replaced, where a
    condition holds if there is one.
    """
    changed = columns.split(",")[keys:]
    if condition:  # each is set from left to right, so what the condition looks at must come last
        changed.sort(key=lambda column: f"`{column}`" in condition)
        values = [f"if({condition}, v.`{column}`, perdure_{table}.`{column}`)" for column in changed]
    else:
        values = [f"v.`{column}`" for column in changed]
    sets = ", ".join(f"perdure_{table}.`{column}` = {value}" for column, value in zip(changed, values, strict=True))
    return (
        f"insert into perdure_{table}({quoted(columns)}) select {quoted(columns, 'v')} from %s v"
        f" on duplicate key update {sets}"
    )


def to_instance(row: Sequence[Any]) -> Instance:
    """The instance of a row of `INSTANCE`."""
    uid, run, flow, id, lane, state, *rest = row
    if lane == flow:
        lane = flow  # one text in memory
    reason: bytes | None = rest[_REASON - 6]
    if reason is not None:
        rest[_REASON - 6] = reason.decode()
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


def of_entries(entries: Sequence[Entry]) -> list[tuple[Any, ...]]:
    """The entries as rows of `ENTRY`."""
    return [astuple(entry) for entry in entries]
