"""Why an execution cannot go on, in words: both sides of a difference, and the line of the user's code. Pure."""

from __future__ import annotations

import sys
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
    line = _users_line(sys._getframe(1)) or _main_line(run)  # pyright: ignore[reportPrivateUsage]
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
    waiting = "; ".join(f"{name} at {_users_line(stack[-1]) or _line(stack[-1])}" for name, stack in stacks if stack)
    waiting = waiting or "no task is left"
    return WaitsForNothing(f"{run!r} waits for something that no step, message, timer or child will bring: {waiting}")


def spins(run: Execution) -> Spins:
    """The flow turns for ever with nothing outstanding."""
    return Spins(
        f"{run!r} keeps its loop busy without asking for anything durable, at {_main_line(run)}: await a delay() there"
    )


def _main_line(run: Execution) -> str:
    """The line of the user's code at which the main task waits."""
    if run.main is None:
        return "its beginning"
    stack = run.main.get_stack()
    return (_users_line(stack[-1]) or "unknown line") if stack else "its end"


def _users_line(frame: Any) -> str | None:
    """file:line of the innermost frame that is neither asyncio's nor ours; None: the loop itself runs ours, as a
    task.
    """
    while frame is not None and frame.f_code is not _TURN:
        filename = frame.f_code.co_filename
        if not any(part in filename for part in _OURS):
            return _line(frame)
        frame = frame.f_back
    return None


def _line(frame: Any) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


_OURS: Final = ("/perdure/engine/", "/perdure/api/", "/asyncio/")
_TURN: Final = FlowLoop._turn.__code__  # pyright: ignore[reportPrivateUsage]
