"""Which line of the user's code it was: what a suspended task waits at, and which line changed something.

Looks at frames; knows of Perdure only which files are its own.
"""

from __future__ import annotations

import asyncio
import os
import sys
import sysconfig
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, Final

import perdure
from perdure.api.current import Current
from perdure.api.scope import scope
from perdure.engine.loop import FlowLoop

_OURS: Final = os.path.dirname(perdure.__file__) + os.sep
_LIBRARY: Final = tuple({os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "purelib", "platlib")})


def is_users(code: CodeType) -> bool:
    """Whether this is code of the program's own, neither ours nor a library's."""
    file = code.co_filename
    return not file.startswith((_OURS, *_LIBRARY, "<"))


def waits_at(task: asyncio.Task[Any]) -> str:
    """file:line of the innermost line of the user's own code at which the task waits."""
    found = ""
    waiting: Any = task.get_coro()
    while waiting is not None:
        frame: FrameType | None = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
        frame = frame or getattr(waiting, "ag_frame", None)
        if frame is not None and is_users(frame.f_code):
            found = place(frame.f_code, frame.f_lineno)
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
    return found


def place(code: CodeType, line: int) -> str:
    """file:line, the file as seen from the current folder if it lies in that."""
    file = os.path.relpath(code.co_filename)
    return f"{code.co_filename if file.startswith(os.pardir) else file}:{line}"


class Change:
    """A line changed what is looked at: which, in whose code, and what was there before and after."""

    def __init__(self, where: str, who: str, before: Any, after: Any) -> None:
        self.where = where
        self.who = who
        self.before = before
        self.after = after

    def __str__(self) -> str:
        return f"{self.where} in {self.who}"


@contextmanager
def changes(snapshot: Callable[[], Any]) -> Generator[list[Change]]:
    """Every change of what `snapshot` gives, with the line that made it: filled while the user's code runs in the block."""
    found: list[Change] = []
    last = snapshot()
    lines: dict[FrameType, int] = {}

    def look(frame: FrameType) -> None:
        nonlocal last
        now = snapshot()
        if now != last:
            line = lines.get(frame, frame.f_lineno)
            found.append(Change(place(frame.f_code, line), _who(frame), last, now))
            last = now

    def local(frame: FrameType, event: str, arg: Any) -> Any:
        look(frame)
        lines[frame] = frame.f_lineno
        if event == "return":
            lines.pop(frame, None)
        return local

    def begin(frame: FrameType, event: str, arg: Any) -> Any:
        return local if event == "call" and is_users(frame.f_code) else None

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        yield found
    finally:
        sys.settrace(before)


def _who(frame: FrameType) -> str:
    if isinstance(asyncio._get_running_loop(), FlowLoop):
        return "the flow's own code"
    here = scope.get()
    return f"step {here.step}" if isinstance(here, Current) and here.step else frame.f_code.co_qualname
