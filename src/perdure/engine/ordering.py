"""Where asyncio and anyio iterate in the order of addresses, a flow gets the order of making; outside flows nothing
changes.

Importing this replaces `asyncio.as_completed`, the future that `asyncio.gather` returns, and (when anyio is loaded) two
methods of anyio, by equals that look first whether a flow is running.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import sys
from typing import Any, Final

from perdure.errors import NotDurable

_get_running = asyncio._get_running_loop

_original_as_completed: Any = asyncio.as_completed


@functools.wraps(_original_as_completed)
def _as_completed(fs: Any, *args: Any, **kwargs: Any) -> Any:
    if getattr(_get_running(), "is_flow_loop", False):
        fs = [asyncio.ensure_future(f) for f in fs]  # tasks in the order given; the original makes a set of coroutines
    return _original_as_completed(fs, *args, **kwargs)


def _codes_of_original() -> set[Any]:
    """The code objects in which the original makes its tasks: a set comprehension, inlined since 3.12."""
    maker = getattr(asyncio.tasks, "_AsCompletedIterator", None)
    code = (maker.__init__ if maker else _original_as_completed).__code__
    return {code, *(c for c in code.co_consts if hasattr(c, "co_code"))}


def made_by_as_completed() -> bool:
    """Whether `create_task` is called by asyncio's own `as_completed`, of which a module may hold a reference."""
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    while frame.f_code in _ENSURE_FUTURE and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code in _UNORDERED


_UNORDERED: Final = _codes_of_original()
_ENSURE_FUTURE: Final = {
    f.__code__ for f in (asyncio.ensure_future, getattr(asyncio.tasks, "_ensure_future", asyncio.ensure_future))
}
asyncio.as_completed = asyncio.tasks.as_completed = _as_completed


# ---------------------------------------------------------------- gather

_original_gathering: Any = getattr(asyncio.tasks, "_GatheringFuture")  # noqa: B009  private to type checkers


class _Gathering(_original_gathering):
    """What `asyncio.gather` returns; in a flow its hash is a number, as a task's: it may be put into a set."""

    def __init__(self, children: Any, *, loop: Any) -> None:
        self._number: int = loop.next_number() if getattr(loop, "is_flow_loop", False) else id(self) >> 4
        _original_gathering.__init__(self, children, loop=loop)

    def __hash__(self) -> int:
        return self._number


setattr(asyncio.tasks, "_GatheringFuture", _Gathering)  # noqa: B010


# ---------------------------------------------------------------- anyio


class _Ordered(dict[Any, None]):
    """A set that iterates in the order of adding."""

    __slots__ = ()

    def add(self, item: Any) -> None:
        self[item] = None

    def remove(self, item: Any) -> None:
        del self[item]

    def discard(self, item: Any) -> None:
        self.pop(item, None)


_anyio_ordered = False


def order_anyio() -> None:
    """In a flow, anyio's cancel scopes keep the scopes inside them (one for each task of a group) in the order of
    entering.

    They are cancelled in the order of that set, which otherwise is the order of addresses. And anyio's threads,
    which would
    do their work before they find that they cannot report it, are refused before.
    """
    global _anyio_ordered
    if _anyio_ordered or "anyio" not in sys.modules:
        return
    _anyio_ordered = True
    anyio_asyncio: Any = importlib.import_module("anyio._backends._asyncio")
    scope_class: Any = anyio_asyncio.CancelScope
    original = scope_class.__init__

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if getattr(_get_running(), "is_flow_loop", False):
            self._child_scopes = _Ordered()

    scope_class.__init__ = __init__

    backend: Any = anyio_asyncio.AsyncIOBackend
    in_thread = backend.run_sync_in_worker_thread.__func__

    @functools.wraps(in_thread)
    async def run_sync_in_worker_thread(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(_get_running(), "is_flow_loop", False):
            raise NotDurable(
                "a thread of anyio in a flow's own body cannot be replayed; put it in capture() or a @step"
            )
        return await in_thread(cls, *args, **kwargs)

    backend.run_sync_in_worker_thread = classmethod(run_sync_in_worker_thread)
