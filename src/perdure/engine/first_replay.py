"""When a flow is first replayed in this process, what the lint finds in its code is told by Python's warnings.

Sources are read and looked through beside the loop, one file at a time. Nothing of this is durable, and nothing that
goes wrong here stops a flow or an engine.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import threading
import warnings
from collections.abc import Callable
from types import CodeType
from typing import TYPE_CHECKING, Any, Final

from perdure.api.flow import FlowFunction
from perdure.errors import FlowWarning, PerdureError

if TYPE_CHECKING:
    from perdure.lint.findings import Finding

logger = logging.getLogger("perdure")

LATER_SECONDS: Final = 0.5
"""So long what is replayed has the processor for itself: a restart would take a third longer."""

Run = Callable[[asyncio.AbstractEventLoop, Callable[[], Any]], "asyncio.Future[Any]"]
Found = list[tuple["Finding", str]]
"""Findings, each with the name of its module."""

_one_at_a_time: Final = threading.Lock()
_looked_at: Final[set[tuple[str, int]]] = set()
"""By this process: the flows, by file and line, of which was told what there was."""
_told: Final[set[tuple[str, int, int, str]]] = set()
"""By this process, by place and code: several flows may reach one line."""


class FirstReplays:
    """One per scheduler; used in its loop.

    Args:
        run: gives the result of some work, done beside the loop: `Threads.run`. None: it was not done.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, run: Run) -> None:
        self._loop = loop
        self._run = run
        self._seen: set[FlowFunction[..., Any]] = set()
        self._left: dict[tuple[str, str], list[CodeType]] = {}
        self._busy = False

    def look(self, flow: FlowFunction[..., Any]) -> None:
        """The flow, which is to be replayed, will be looked at soon, unless it was before."""
        if flow in self._seen:
            return
        self._seen.add(flow)
        function = inspect.unwrap(flow.fn)
        code, module = getattr(function, "__code__", None), getattr(function, "__module__", None) or ""
        if code is not None and _place(code) not in _looked_at and not module.startswith("perdure."):
            self._left.setdefault((code.co_filename, module), []).append(code)
            if not self._busy:
                self._busy = True
                self._loop.call_later(LATER_SECONDS, self._next)

    def _next(self) -> None:
        """The flows of one file that wait are looked at."""
        self._busy = bool(self._left)
        if self._left:
            (path, module), codes = self._left.popitem()
            future = self._run(self._loop, lambda: _look(codes, module))
            future.add_done_callback(functools.partial(self._looked, path, codes))

    def _looked(self, path: str, codes: list[CodeType], future: asyncio.Future[Found | None]) -> None:
        error = future.exception()
        if error is not None:
            trace = None if isinstance(error, PerdureError) else error
            logger.warning("the flows in %s were not looked through for mistakes: %s", path, error, exc_info=trace)
        elif (found := future.result()) is None:
            return  # the engine has closed
        else:
            _looked_at.update(map(_place, codes))
            for finding, module in found:
                self._tell(finding, module)
        self._next()

    def _tell(self, finding: Finding, module: str) -> None:
        place = (finding.path, finding.line, finding.column, finding.code)
        if place in _told:
            return
        _told.add(place)
        text = f"{finding.code} {finding.text}"
        try:
            warnings.warn_explicit(text, FlowWarning, finding.path, finding.line, module)
        except Exception as error:  # an error, if the program's filters say so
            what = f"{finding.path}:{finding.line}: a warning about a flow, which goes on"
            self._loop.call_exception_handler({"message": what, "exception": error})


def _place(code: CodeType) -> tuple[str, int]:
    return code.co_filename, code.co_firstlineno


def _look(codes: list[CodeType], module: str) -> Found:
    """What is wrong in these flows of one module; takes tens of milliseconds."""
    with _one_at_a_time:
        from perdure.lint.flows import findings_in, loaded_files  # a program that replays nothing does without

        files = loaded_files(module.partition(".")[0])
        return [(finding, files.get(finding.path, module)) for finding in findings_in(codes, files)]
