"""What is said when a crash made a difference: where, which line is to blame, and both timelines side by side. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from itertools import zip_longest
from typing import Final

from perdure.testing.plays import Event, Fault, Play

WIDTH: Final = 62
LINES: Final = 80
"""Of a timeline so many lines are shown, around the first difference."""


def where(faults: Sequence[Fault], *, unload: bool) -> str:
    """Where it was crashed, in words."""
    if unload:
        return "unloaded at every wait"
    said = {
        "before": "killed before commit {}",
        "after": "killed after commit {}",
        "unknown": "commit {} done and its outcome reported as unknown",
        "lease": "the lease lost before commit {}",
    }
    return ", then ".join(said[fault.mode].format(fault.point) for fault in faults)


def report(name: str, point: str, why: str, calm: Play, crashed: Play) -> tuple[str, list[str]]:
    """The text, and the lines of code that are to blame, best guess first."""
    blame = _blame(calm, crashed)
    text = [f"{name}, {point}: {why}"]
    text += [f"  {line}: {because}" for line, because in blame]
    text += ["", *side_by_side(calm.events, crashed.events, "without a crash", point)]
    return "\n".join(text), [line for line, _ in blame]


def _blame(calm: Play, crashed: Play) -> list[tuple[str, str]]:
    """Lines that changed the effects more (or less) often than without a crash; else where it was crashed."""
    found: list[tuple[str, str]] = []
    before, after = (Counter((c.where, c.who) for c in play.changes) for play in (calm, crashed))
    for place, who in {**before, **after}:
        was, now = before[place, who], after[place, who]
        if now > was:
            found.append((place, f"{who} did this {_times(now)}, and {_times(was)} without a crash{_hint(who)}"))
        elif now < was:
            found.append((place, f"{who} did this {_times(now)}, and {_times(was)} without a crash"))
    if not found and (line := _crashed_at(crashed)):
        found.append((line, "what the flow asked for when it happened"))
    return found


def _hint(who: str) -> str:
    if who.startswith("step "):
        return (
            "; a step that is cut off runs again: let the other side know it by current().key, or say at_most_once=True"
        )
    return "; what a flow's own code does is done again at every replay: put it into a step"


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times" if n else "not at all"


def _crashed_at(crashed: Play) -> str:
    """The line that the flow had come to when the first fault happened."""
    line = ""
    for event in crashed.events:
        line = event.line or line
        if event.text.startswith(("killed", "the lease", "the outcome")):
            break
    return line


def side_by_side(left: Sequence[Event], right: Sequence[Event], over_left: str, over_right: str) -> list[str]:
    """Two timelines, as columns."""
    columns = [[f"{over_left}", *map(_line, left)], [f"{over_right}", *map(_line, right)]]
    rows = list(zip_longest(*columns, fillvalue=""))
    first = next((i for i, (a, b) in enumerate(rows) if i and a != b), len(rows))
    start = max(1, first - LINES // 2)
    shown = [rows[0], *rows[start : start + LINES]]
    cut = [f"  … {start - 1} lines alike"] if start > 1 else []
    body = [f"  {_cut(a):<{WIDTH}} │ {_cut(b)}".rstrip() for a, b in shown]
    more = len(rows) - start - LINES
    return [body[0], *cut, *body[1:], *([f"  … {more} more lines"] if more > 0 else [])]


def _line(event: Event) -> str:
    at = timedelta(seconds=round(event.at, 3))
    return f"{at!s:>8} {event.text}" + (f"  {event.line}" if event.line else "")


def _cut(text: str) -> str:
    text = " ".join(text.split("\n"))
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
