"""What is said when a crash made a difference: where, which line is to blame, and both timelines side by side."""

from __future__ import annotations

import inspect
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import Final

from perdure.api.flow import AnyFlow
from perdure.lint import check
from perdure.testing.blame import FLOWS_OWN, short
from perdure.testing.plays import Call, Event, Play

WIDTH: Final = 62
LINES: Final = 80
"""Of a timeline so many lines are shown, around the first difference."""
VALUE: Final = 500
"""Of a value so many characters are shown."""

CUT_OFF: Final = (
    "A step that is cut off runs again: let the other side know it by current().key, or say at_most_once=True and catch "
    "OutcomeUnknown."
)
NOT_TO_ITS_END: Final = (
    "A step that is cut off runs again from its beginning, and finds what it did before: let it get from there to its end, "
    "or make two steps of it."
)
IN_FLOW: Final = "What a flow's own code does is done again at every replay: put it into a step."
IN_MEMORY: Final = (
    "The flow's own code changes {names}, which is outside of its variables: a new process has none of it, and a replay "
    "changes it again. Keep it in a variable of the flow, or let a step write and read it."
)
UNKNOWN: Final = (
    "The outcome of step {name} got lost, and the flow was told so by OutcomeUnknown: it may have happened. Let a step ask "
    "the other side; if what the flow does then is right, say so by check=."
)
OTHER_STEP: Final = ": {now}, and not {was}. A step that runs again may do so: if all that follows is as right, say so by same= or check=."
NOT_THE_SAME: Final = "Replayed, the flow's code does not ask for the same again."


@dataclass(frozen=True)
class Difference:
    """What a crash has changed: in words, and the two sides, if there are two."""

    text: str
    then: str = ""
    before: str = ""
    when: str = "without a crash"
    """Which the second side is."""
    line: str = ""
    """file:line, where that is known at once, and `because` what is wrong there."""
    because: str = NOT_THE_SAME
    key: str = ""
    """Of the step whose line it is."""


def report(
    flows: Sequence[AnyFlow], point: str, why: Difference, calm: Play, crashed: Play, memory: Sequence[str]
) -> tuple[str, list[str]]:
    """The text, and the lines of code that are to blame, best guess first.

    Args:
        memory: what the flow's own code changes outside of its variables.
    """
    blamed: dict[str, str] = {}
    for line, because in _blame(flows, why, calm, crashed, memory):
        if line:
            blamed.setdefault(line, because)
    text = _wrapped("", 0, f"{flows[0].name}, {point}: {why.text}")
    if why.then or why.before:
        width = len(why.when) + 4
        text += [*_wrapped("  then: ", width, why.then), *_wrapped(f"  {why.when}: ", width, why.before)]
    text.append("")
    for line, because in blamed.items():
        text += [f"  {line}", *_wrapped("", 6, because)]
    text += ["", *side_by_side(calm.events, crashed.events, "without a crash", point)]
    return plain("\n".join(text)), list(blamed)


def plain(text: str) -> str:
    """The text, in which functions inside of functions are called by their own names, and files as seen from here."""
    return re.sub(r"[\w.<>]*<locals>\.", "", text).replace(f"{Path.cwd()}{os.sep}", "")


def _wrapped(first: str, indent: int, text: str) -> list[str]:
    lines = wrap(_cut(plain(text), VALUE), 2 * WIDTH - indent, break_on_hyphens=False) or [""]
    return [f"{first:{indent}}{lines[0]}", *(f"{'':{indent}}{line}" for line in lines[1:])]


def _blame(
    flows: Sequence[AnyFlow], why: Difference, calm: Play, crashed: Play, memory: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Lines, and what is wrong there; the best guess first."""
    done = [*_done(calm, crashed)]
    kept = [(c.where, IN_MEMORY.format(names=", ".join(memory))) for c in crashed.changes if c.in_memory]
    asked = [*_asked(calm, crashed)]
    yield from done
    yield from kept
    yield from asked
    yield from ((e.line, "Here the step waited when it was killed.") for e in crashed.events if "while step" in e.text)
    if not done and not asked:
        yield from _lint(flows)
    line = why.line or next((call.asked_at for call in crashed.calls if call.key == why.key), "")
    if line:
        yield line, why.because
    elif not (done or kept or asked):
        yield from _answers(calm, crashed)
        yield from (
            (e.line, "Here the flow waited when it happened.") for e in crashed.events if e.text in crashed.faults
        )


def _done(calm: Play, crashed: Play) -> Iterator[tuple[str, str]]:
    """Lines that changed the effects more or less often than without a crash, if the flow asked for these steps as often."""
    before, after = _effects(calm), _effects(crashed)
    other = {f"step {call.name}" for call in (*_other(crashed, calm), *_other(calm, crashed))}
    for line, who in {**after, **before}:
        was, now = before[line, who], after[line, who]
        if (now > was or (now < was and crashed.ending is not None)) and who not in other:
            hint = IN_FLOW if who == FLOWS_OWN else CUT_OFF if now > was else NOT_TO_ITS_END
            yield line, f"{who[:1].upper()}{who[1:]} did this {_times(now)}, and {_times(was)} without a crash. {hint}"


def _asked(calm: Play, crashed: Play) -> Iterator[tuple[str, str]]:
    """Lines at which the flow asked for what it does not ask for without a crash, or the other way round."""
    for call in _other(crashed, calm):
        yield call.asked_at, f"Here the flow asked for step {call.name} once more than without a crash."
    for call in (*crashed.calls, *calm.calls):
        if call.key in crashed.unknown:
            yield call.asked_at, UNKNOWN.format(name=call.name)
    for call in _other(calm, crashed) if crashed.ending is not None else ():
        yield call.asked_at, f"Here the flow asks for step {call.name} without a crash; after the crash it did not."


def _answers(calm: Play, crashed: Play) -> Iterator[tuple[str, str]]:
    """Lines at which the flow got something else than without a crash."""
    gave = {call.key: call.gave.removeprefix("gives ") for call in (*crashed.calls, *calm.calls)}
    now = {call.key: call.gave.removeprefix("gives ") for call in crashed.calls}
    for key, got in crashed.entries.items():
        was = calm.entries.get(key)
        if was is None:
            yield got.asked_at, f"Here the flow went on with {got.what}; without a crash it did not."
        elif was.outcome != got.outcome:
            said = OTHER_STEP.format(now=_cut(now.get(key, "?"), WIDTH), was=_cut(gave.get(key, "?"), WIDTH))
            yield got.asked_at, f"Here {got.what} gave something else than without a crash{said if key in now else '.'}"


def _effects(play: Play) -> Counter[tuple[str, str]]:
    return Counter((change.where, change.who) for change in play.changes if not change.in_memory)


def _other(play: Play, than: Play) -> list[Call]:
    """Steps that the flow asked for in this play only, once each."""
    known = {call.key for call in than.calls}
    return list({call.key: call for call in play.calls if call.key not in known}.values())


def _lint(flows: Sequence[AnyFlow]) -> Iterator[tuple[str, str]]:
    """What the lint finds in these flows."""
    files = {code.co_filename for flow in flows if (code := getattr(inspect.unwrap(flow.fn), "__code__", None))}
    texts = {file: Path(file).read_text(encoding="utf-8", errors="replace") for file in files if Path(file).is_file()}
    names = {flow.fn.__name__ for flow in flows}
    for finding in check(texts).findings:
        if finding.calls and finding.calls[0] in names and finding.code < "PD6":
            yield f"{short(finding.path)}:{finding.line}", f"perdure lint: {finding.code} {finding.text}"


def line_in(reason: str) -> str:
    """The line that the reason for which an instance is blocked ends with."""
    found = re.search(r"\bat (?P<line>[^,;]*:\d+)$", reason)
    if found is None:
        return ""
    path, _, number = found["line"].rpartition(":")
    return f"{short(path)}:{number}"


def _times(n: int) -> str:
    return ("not at all", "once", "twice")[n] if n < 3 else f"{n} times"


def side_by_side(left: Sequence[Event], right: Sequence[Event], over_left: str, over_right: str) -> list[str]:
    """Two timelines, as columns; what is the same stands side by side as far as it comes in the same order."""
    texts = [event.text for event in left], [event.text for event in right]
    alike = next((n for n, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    rows = [*zip(map(_line, left[:alike]), map(_line, right[:alike]), strict=True)]
    left, right = left[alike:], right[alike:]
    for _, i, i_end, j, j_end in SequenceMatcher(None, *(t[alike:] for t in texts), autojunk=False).get_opcodes():
        rows += zip_longest(map(_line, left[i:i_end]), map(_line, right[j:j_end]), fillvalue="")
    first = next((n for n, (a, b) in enumerate(rows) if a != b), 0)
    start = max(0, first - LINES // 2)
    shown = [(over_left, over_right), *rows[start : start + LINES]]
    text = [f"  {_cut(a, WIDTH):<{WIDTH}} │ {_cut(b, WIDTH)}".rstrip() for a, b in shown]
    more = len(rows) - start - LINES
    cut = [f"  … {start} lines alike"] if start else []
    return [text[0], *cut, *text[1:], *([f"  … {more} more lines"] if more > 0 else [])]


def _line(event: Event) -> str:
    """The event; what stands at its end is cut before its line is."""
    at, point, part = str(timedelta(seconds=round(event.at, 3))).partition(".")
    line = event.line.rpartition("/")[2]
    text = f"{at + point + part.rstrip('0'):>9} {plain(event.text)}"
    return f"{_cut(text, WIDTH - len(line) - 2)}  {line}" if line else text


def _cut(text: str, width: int) -> str:
    text = " ".join(text.split("\n"))
    return text if len(text) <= width else text[: width - 1] + "…"
