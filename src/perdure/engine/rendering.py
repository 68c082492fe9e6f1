"""An instance as a text for people: what it is, the tree of its entries, what is pending, what nobody took. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from perdure import codec
from perdure.api.info import shown
from perdure.clock import to_datetime
from perdure.model.records import Entry, Instance, Kind, Loaded, MessageKind, Pending, State

if TYPE_CHECKING:
    from perdure.engine.payloads import Payloads

WIDTH: Final = 80
"""Values longer than this are cut."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Control characters, ends of lines, and those that turn the direction of writing."""


def text_of(loaded: Loaded, payloads: Payloads) -> str:
    """The instance, in as many lines as it has entries, and some more."""
    row = loaded.instance
    lines = [f"{clean(row.flow)} {clean(row.id)!r}: {shown(row).value}" + (f", run {row.run}" if row.run else "")]
    lines.append(f"  arguments {_value(payloads.show(row.arguments))}")
    if row.due_at is not None:
        lines.append(f"  goes on at {_time(row.due_at)}")
    lines += [f"  {line}" for line in outcome_of(row, payloads)]
    for entry in loaded.entries:
        when = "put there" if put_there(entry) else _time(entry.at)
        lines.append(f"  {entry_of(entry, payloads)}  {when}")
    lines += [f"  {pending_of(one, payloads, _time)}" for one in loaded.pending]
    lines += [f"  {line}" for line in inbox_of(loaded, payloads)]
    return "\n".join(lines)


def outcome_of(row: Instance, payloads: Payloads) -> list[str]:
    """Why it is blocked, or how it ended; nothing if it is neither."""
    if row.state is State.BLOCKED and row.reason:
        return [f"because {clean(row.reason)}"]
    if row.outcome is None:
        return []
    if row.state is State.FAILED:
        return [f"error {_error(payloads, row.outcome)}"]
    if row.state is State.CANCELLED:
        return [f"reason {_value(payloads.show(row.outcome))}"]
    return [f"result {_value(payloads.show(row.outcome))}"]


def put_there(entry: Entry) -> bool:
    """Whether it did not happen at a time of its own: `InitialState` or a control panel put it there."""
    return entry.seq < 0 and entry.kind != Kind.PATCHED


def entry_of(entry: Entry, payloads: Payloads) -> str:
    """What happened, without the time at which it did."""
    if entry.kind == Kind.PATCHED:
        return f"• patched {clean(entry.name)}"
    depth = 0 if entry.key.startswith("=") else entry.key.count(".")
    if entry.kind == Kind.AGAIN:
        mark, outcome = "↻", "runs again"
    elif entry.failed:
        mark, outcome = "✗", _error(payloads, entry.outcome or b"")
    else:
        mark = "✓" if entry.key else "•"
        outcome = "" if entry.outcome is None else _value(payloads.show(entry.outcome))
    id = entry.key.removeprefix("=") or entry.kind
    name = "" if entry.name == entry.kind else entry.name
    what = f" {entry.kind} {name}".rstrip() if entry.key else ""
    if entry.kind == Kind.WAIT and entry.arguments:
        what += f" {codec.decode(entry.arguments)[1]!r}"
    line = f"{'  ' * depth}{mark} {clean(id)}{clean(what)}"
    if outcome:
        line += f" → {outcome}"
    return f"{line} (attempt {entry.attempts})" if entry.attempts > 1 else line


def pending_of(row: Pending, payloads: Payloads, when: Callable[[float], str]) -> str:
    """What was begun and has no outcome yet; `when` says times."""
    line = f"… {clean(row.key.removeprefix('='))} {row.kind} {clean(row.name)}"
    if row.attempt:
        line += f", failed attempts: {row.attempt}"
    if row.error is not None:
        line += f", last: {_error(payloads, row.error)}"
    if row.intent:
        line += ", begun (at most once)"
    return line if row.next_at is None else f"{line}, next at {when(row.next_at)}"


def inbox_of(loaded: Loaded, payloads: Payloads) -> list[str]:
    """The messages that nobody took."""
    messages = [message for message in loaded.inbox if message.kind == MessageKind.MESSAGE]
    bodies = [None if message.body is None else payloads.show(message.body) for message in messages]
    return [f"inbox: {clean(message.type)} {_value(body)}" for message, body in zip(messages, bodies, strict=True)]


def _error(payloads: Payloads, data: bytes) -> str:
    error = payloads.show_error(data)
    return _cut(f"{type(error).__name__}: {error}")


def _value(value: Any) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    text = clean(text)
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def clean(text: str) -> str:
    """No control characters: a stored text cannot steer the terminal that it is printed on."""
    return _CONTROL.sub(" ", text)


def _time(at: float) -> str:
    return to_datetime(at).isoformat(" ", "milliseconds")
