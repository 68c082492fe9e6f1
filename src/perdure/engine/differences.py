"""Why an execution cannot go on, in words: both sides of a difference, and the line of the user's code. Pure."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

from perdure.engine.loop import FlowLoop
from perdure.errors import NonDeterminismError, Spins, WaitsForNothing

if TYPE_CHECKING:
    from perdure.engine.execution import Execution
    from perdure.engine.operations import Op
    from perdure.model.records import Entry, Pending


def other_call(run: Execution, op: Op, recorded: str, where: str) -> NonDeterminismError:
    """The journal holds another operation under the key of the one that the code asks for, right now."""
    asked = f"{op.kind} {op.name}"
    here = sys._getframe(1) if run.loop.turning else None  # pyright: ignore[reportPrivateUsage]
    line = _users(_inwards(here)) or _main_line(run)
    same = " with other arguments" if recorded.startswith(asked) else ""
    message = f"{run!r}, operation {op.key}: the journal holds {recorded} ({where}), and the code asks for {asked}{same} at {line}"
    return NonDeterminismError(message, recorded=recorded, asked=asked, line=line)


def unasked_entry(run: Execution, entry: Entry) -> NonDeterminismError:
    """The next entry of the journal is one that the code does not ask for."""
    return _unasked(run, f"{entry.kind} {entry.name}", f"entry {entry.seq}, operation {entry.key}")


def unasked_pending(run: Execution, row: Pending) -> NonDeterminismError:
    """An operation was begun that the code does not ask for."""
    return _unasked(run, f"{row.kind} {row.name} (begun)", f"operation {row.key}")


def _unasked(run: Execution, recorded: str, where: str) -> NonDeterminismError:
    asked = ", ".join(op.why_outstanding() for op in run.ops.values()) or "nothing"
    line = _main_line(run)
    message = f"{run!r}: the journal goes on with {recorded} ({where}), which the code does not ask for; it asks for {asked}, at {line}"
    return NonDeterminismError(message, recorded=recorded, asked=asked, line=line)


def waits_for_nothing(run: Execution) -> WaitsForNothing:
    """Nothing is outstanding and the flow has not ended."""
    stacks = ((task.get_name(), task.get_stack()) for task in run.loop.tasks if not task.done())
    waiting = "; ".join(f"{name} at {_line_in(stack)}" for name, stack in stacks if stack)
    waiting = waiting or "no task is left"
    return WaitsForNothing(f"{run!r} waits for something that no step, message, timer or child will bring: {waiting}")


def spins(run: Execution) -> Spins:
    """The flow turns for ever with nothing outstanding."""
    return Spins(
        f"{run!r} keeps its loop busy without asking for anything durable, at {_main_line(run)}: await a delay() there"
    )


def _main_line(run: Execution) -> str:
    """The line of the user's code at which the main task waits, or raised."""
    main = run.main
    if main is None:
        return "its beginning"
    if main.done():
        error = None if main.cancelled() else main.exception()
        raised = [(f.f_code.co_filename, line) for f, line in traceback.walk_tb(error.__traceback__)] if error else []
        return _users(raised[::-1]) or "its end"
    return _line_in(main.get_stack())


def _line_in(stack: list[Any]) -> str:
    """The line in a task's stack, outermost frame first: the user's, if there is one."""
    if not stack:
        return "its end"
    lines = [*_inwards(stack[-1]), *((f.f_code.co_filename, f.f_lineno) for f in reversed(stack[:-1]))]
    return _users(lines) or f"{lines[0][0]}:{lines[0][1]}"


def _inwards(frame: Any) -> list[tuple[str, int]]:
    """File and line of the frame and of those that it was called from, up to the flow's loop."""
    lines: list[tuple[str, int]] = []
    while frame is not None and frame.f_code is not _TURN:
        lines.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return lines


def _users(lines: list[tuple[str, int]]) -> str | None:
    """file:line of the first that is neither asyncio's nor ours, and if possible no library's; None: there is none."""
    theirs = [line for line in lines if not any(part in line[0] for part in _OURS)]
    own = [line for line in theirs if not any(part in line[0] for part in _LIBRARIES)]
    found = own or theirs
    return f"{found[0][0]}:{found[0][1]}" if found else None


_OURS: Final = ("/perdure/engine/", "/perdure/api/", "/asyncio/")
_LIBRARIES: Final = ("/site-packages/", "/dist-packages/")
_TURN: Final = FlowLoop._turn.__code__  # pyright: ignore[reportPrivateUsage]
