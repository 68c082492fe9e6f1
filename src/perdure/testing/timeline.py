"""An instance's journal as people read it in a failing test: what happened, and how long after its start. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from perdure.api.info import shown
from perdure.engine.rendering import clean, entry_of, inbox_of, outcome_of, pending_of, put_there

if TYPE_CHECKING:
    from collections.abc import Iterable

    from perdure.engine.payloads import Payloads
    from perdure.model.records import Loaded

LINES: Final = 100
"""So many lines of an instance are shown where there may be many of them."""
_FIRST: Final = 20
_DAY: Final = 86_400


def timeline(loaded: Loaded, payloads: Payloads, waits_for: str = "") -> list[str]:
    """The lines: one for the instance, one for each entry, and for what is pending, untaken, or awaited."""
    row = loaded.instance
    start = row.created_at
    run = f", run {row.run}" if row.run else ""
    lines = [f"{clean(row.flow)} {clean(row.id)!r}: {shown(row).value}{run}"]
    times = ["put there" if put_there(e) else since(e.at - start) for e in loaded.entries]
    width = max(map(len, times), default=0)
    lines += [f"  {when:>{width}}  {entry_of(e, payloads)}" for when, e in zip(times, loaded.entries, strict=True)]
    rest = [pending_of(one, payloads, lambda at: since(at - start)) for one in loaded.pending]
    if waits_for:
        rest.append(f"… waits for {clean(waits_for)}")
    if row.due_at is not None:
        rest.append(f"… goes on at {since(row.due_at - start)}")
    rest += inbox_of(loaded, payloads) + outcome_of(row, payloads)
    return lines + [f"  {'':{width}}  {line}" for line in rest]


def since(seconds: float) -> str:
    """A time after the start, as `+7d 00:05:00`."""
    if not math.isfinite(seconds):
        return "never"
    milliseconds = round(seconds * 1000)
    days, rest = divmod(milliseconds // 1000, _DAY)
    text = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    if milliseconds % 1000:
        text += f".{milliseconds % 1000:03}"
    return f"+{days}d {text}" if days else f"+{text}"


def cut(lines: Iterable[str]) -> list[str]:
    """At most `LINES` of the lines: the first ones, and the end."""
    lines = list(lines)
    if len(lines) <= LINES:
        return lines
    left_out = len(lines) - LINES + 1
    return [*lines[:_FIRST], f"  … {left_out} lines are left out …", *lines[_FIRST + left_out :]]
