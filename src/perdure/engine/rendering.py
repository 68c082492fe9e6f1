"""An instance as a text for people: what it is, the tree of its entries, what is pending, what nobody took. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from perdure import codec
from perdure.api.info import shown
from perdure.clock import to_datetime
from perdure.model.records import Entry, Kind, Loaded, MessageKind, Pending, State

if TYPE_CHECKING:
    from perdure.engine.payloads import Payloads

WIDTH: Final = 80
"""Values longer than this are cut."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Control characters, ends of lines, and those that turn the direction of writing."""


def text_of(loaded: Loaded, payloads: Payloads) -> str:
    """The instance, in as many lines as it has entries, and some more."""
    row = loaded.instance
    state = shown(row)
    lines = [f"{_clean(row.flow)} {_clean(row.id)!r}: {state.value}" + (f", run {row.run}" if row.run else "")]
    lines.append(f"  arguments {_value(payloads.show(row.arguments))}")
    if row.due_at is not None:
        lines.append(f"  goes on at {_time(row.due_at)}")
    if state is State.BLOCKED and row.reason:
        lines.append(f"  because {_clean(row.reason)}")
    if row.outcome is not None and state is State.SUCCEEDED:
        lines.append(f"  result {_value(payloads.show(row.outcome))}")
    elif row.outcome is not None and state is State.FAILED:
        lines.append(f"  error {_error(payloads, row.outcome)}")
    lines += [_entry(entry, payloads) for entry in loaded.entries]
    lines += [_pending(one, payloads) for one in loaded.pending]
    for message in loaded.inbox:
        if message.kind == MessageKind.MESSAGE:
            body = None if message.body is None else payloads.show(message.body)
            lines.append(f"  inbox: {_clean(message.type)} {_value(body)}")
    return "\n".join(lines)


def _entry(entry: Entry, payloads: Payloads) -> str:
    if entry.kind == Kind.PATCHED:
        return f"  • patched {_clean(entry.name)}  {_time(entry.at)}"
    depth = 0 if entry.key.startswith("=") else entry.key.count(".")
    if entry.kind == Kind.AGAIN:
        mark, outcome = "↻", "runs again"
    elif entry.failed:
        mark, outcome = "✗", _error(payloads, entry.outcome or b"")
    else:
        mark = "✓" if entry.key else "•"
        outcome = "" if entry.outcome is None else _value(payloads.show(entry.outcome))
    id = entry.key.removeprefix("=") or entry.kind
    what = f" {entry.kind} {entry.name}".rstrip() if entry.key else ""
    if entry.kind == Kind.WAIT and entry.arguments:
        what += f" {codec.decode(entry.arguments)[1]!r}"
    line = f"  {'  ' * depth}{mark} {_clean(id)}{_clean(what)}"
    if outcome:
        line += f" → {outcome}"
    if entry.attempts > 1:
        line += f" (attempt {entry.attempts})"
    return f"{line}  {_time(entry.at)}" if entry.seq >= 0 else f"{line}  put there"


def _pending(row: Pending, payloads: Payloads) -> str:
    line = f"  … {_clean(row.key.removeprefix('='))} {row.kind} {_clean(row.name)}"
    if row.attempt:
        line += f", failed attempts: {row.attempt}"
    if row.error is not None:
        line += f", last: {_error(payloads, row.error)}"
    if row.intent:
        line += ", begun (at most once)"
    return line if row.next_at is None else f"{line}, next at {_time(row.next_at)}"


def _error(payloads: Payloads, data: bytes) -> str:
    error = payloads.show_error(data)
    return _cut(f"{type(error).__name__}: {error}")


def _value(value: Any) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    text = _clean(text)
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def _clean(text: str) -> str:
    """No control characters: a stored text cannot steer the terminal that it is printed on."""
    return _CONTROL.sub(" ", text)


def _time(at: float) -> str:
    return to_datetime(at).isoformat(" ", "milliseconds")
