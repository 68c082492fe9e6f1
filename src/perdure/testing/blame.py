"""Which line of the user's code it was: what a task waits at, which line changed something, or asked for an operation.

Looks at frames; knows of Perdure only which files are its own, and how a flow gets from its own code into the engine.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import sysconfig
from collections.abc import Callable
from types import CodeType, FrameType, TracebackType
from typing import Any, Final, Self, cast

from perdure import errors
from perdure.api.current import Current
from perdure.api.scope import scope
from perdure.engine.execution import Execution
from perdure.engine.loop import FlowLoop

FLOWS_OWN: Final = "the flow's own code"
_OURS: Final = os.path.dirname(errors.__file__) + os.sep
_LIBRARY: Final = tuple({os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "purelib", "platlib")})


def is_users(code: CodeType) -> bool:
    """Whether this is code of the program's own, neither ours nor a library's."""
    return is_users_file(code.co_filename)


@functools.cache
def is_users_file(file: str) -> bool:
    """See `is_users`."""
    return not file.startswith((_OURS, *_LIBRARY, "<"))


def waits_at(waiting: Any) -> str:
    """file:line of the innermost line of the user's own code at which the task or coroutine waits."""
    found = ""
    if isinstance(waiting, asyncio.Task):
        waiting = cast("asyncio.Task[Any]", waiting).get_coro()
    while waiting is not None:
        frame: FrameType | None = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        frame = frame or getattr(waiting, "ag_frame", None)
        if frame is not None and is_users(frame.f_code):
            found = place(frame.f_code, frame.f_lineno)
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    return found


def place(code: CodeType, line: int) -> str:
    """file:line, the file as seen from the current folder if it lies in that."""
    return f"{short(code.co_filename)}:{line}"


def short(path: str) -> str:
    """The path as seen from the current folder, if it lies in that."""
    seen = os.path.relpath(path)
    return path if seen.startswith(os.pardir) else seen


class Change:
    """What is looked at was changed: at which line, in whose code, and what was there before and after."""

    def __init__(self, where: str, who: str, before: Any, after: Any) -> None:
        self.where = where
        """Empty: in no line of the user's code."""
        self.who = who
        self.before = before
        self.after = after

    @property
    def in_memory(self) -> bool:
        """Where (effects, memory) is looked at: whether it is the second that was changed."""
        return bool(self.before[1] != self.after[1])


class Watch:
    """Every change of what `look` gives, with who made it, while the user's code runs in `with`.

    Args:
        look: what is watched, as something to compare; called at every line.
        lines: False: only whose code it was is of interest; then it is looked once per call, not at every line.
    """

    told: Callable[[Change], None] | None = None
    """Called with each change."""

    def __init__(self, look: Callable[[], Any], *, lines: bool = True) -> None:
        self.found: list[Change] = []
        self.asked: list[tuple[Any, str]] = []
        """The operations that flows have asked for, and the lines at which they did."""
        self._look = look
        self._looking = False
        self.lines = lines
        self._at: dict[FrameType, int] = {}
        """The line that each frame has come to: what is seen now was done there."""

    def __enter__(self) -> Self:
        self.refresh()
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /) -> None:
        sys.settrace(self._before)
        self._at.clear()

    def refresh(self) -> None:
        """What has changed until now was done by nobody who is to blame."""
        self._last = self._seen()

    def _seen(self) -> Any:
        self._looking = True  # the test's own functions may be asked
        try:
            return self._look()
        finally:
            self._looking = False

    def blame(self, where: str, who: str) -> None:
        """If anything has changed since the last look, that was done by this one."""
        now = self._seen()
        if now != self._last:
            change = Change(where, who, self._last, now)
            self._last = now
            self.found.append(change)
            if self.told is not None:
                self.told(change)

    def _called(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code is _ASK:
            self.asked.append((frame.f_locals["op"], _asked_at(frame)))
        if event != "call" or self._looking or not is_users(frame.f_code):
            return None
        caller = _caller(frame)
        if caller is not None:
            self._blame(caller)
        else:
            self.blame("", "a library")
        frame.f_trace_lines = self.lines
        return self._traced

    def _traced(self, frame: FrameType, event: str, arg: Any) -> Any:
        self._blame(frame)
        self._at[frame] = frame.f_lineno
        if event == "return":
            del self._at[frame]
        return self._traced

    def _blame(self, frame: FrameType) -> None:
        self.blame(place(frame.f_code, self._at.get(frame, frame.f_lineno)), _who(frame))


def _caller(frame: FrameType) -> FrameType | None:
    """The user's frame that this one was called from, directly or through a library; None: the loop called it."""
    above = frame.f_back
    while above is not None and not above.f_code.co_filename.startswith((_OURS, _ASYNCIO)):
        if is_users(above.f_code):
            return above
        above = above.f_back
    return None


def _asked_at(frame: FrameType) -> str:
    """The user's line that an operation is asked for at: here, or where a library's task that does it is waited for."""
    above = frame.f_back
    while above is not None and above.f_code is not _TURN:
        if is_users(above.f_code):
            return place(above.f_code, above.f_lineno)
        above = above.f_back
    main = frame.f_locals["self"].main
    return waits_at(main) if main is not None else ""


_ASK: Final = Execution.ask.__code__
_TURN: Final = FlowLoop._turn.__code__  # pyright: ignore[reportPrivateUsage]
_ASYNCIO: Final = os.path.dirname(asyncio.__file__) + os.sep


def _who(frame: FrameType) -> str:
    if isinstance(asyncio._get_running_loop(), FlowLoop):
        return FLOWS_OWN
    here = scope.get()
    return f"step {here.step}" if isinstance(here, Current) and here.step else frame.f_code.co_qualname
