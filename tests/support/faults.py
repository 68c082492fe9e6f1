"""A store between engine and database that fails at one chosen call: the process is killed, or the answer is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Literal, cast

from perdure.errors import CommitUnknown, StoreUnavailable
from perdure.stores.contract import Store

Mode = Literal["before", "after", "failed", "unknown"]
"""Killed before the call; killed after it; the call is done and reported failed, once; the same, and if it writes, its
outcome is reported as unknown, as a disk may do that fails in the commit itself."""

COUNTED = frozenset(
    {
        "check",
        "claim",
        "claim_blocked",
        "commit",
        "edit",
        "entries",
        "exposed",
        "find",
        "forget",
        "inbox",
        "instance",
        "instances",
    }
    | {"join", "leave", "load", "open", "raise_epoch", "reap", "retire", "transact", "wakeups"}
)
"""The coroutines that touch the database. `renew` is called by a thread and touches a file of its own."""
WRITING = frozenset(
    {"check", "claim", "claim_blocked", "forget", "join", "leave", "raise_epoch", "reap", "retire", "wakeups"}
)
SETTLED = frozenset({"commit", "edit", "transact"})
"""Those that are done again until it is known whether they are done."""


class Faults:
    """Which call fails. Shared by all stores of a process; calls are counted in the order in which they begin.

    A call that asks again what was asked since the last change is an idle poll and is not counted, so that the number
    of calls depends little on time; one that turns out to have changed something is counted when that shows.
    """

    def __init__(
        self, n: int | None = None, mode: Mode = "before", *, tell: Callable[[str], object] = lambda _: None
    ) -> None:
        self.n = n
        self.mode: Mode = mode
        self.calls = 0
        self.happened: str | None = None
        self._tell = tell
        self._asked: set[str] = set()

    def begin(self, method: str) -> int | None:
        """The number of the call; None for an idle poll."""
        if method in SETTLED:
            self._asked.clear()
        elif method in self._asked:
            return None
        return self._next(method)

    def found(self, method: str, answer: object) -> int | None:
        """The number of a poll that was idle so far: None, unless it has changed something."""
        if not _something(method, answer):
            return None
        self._asked.clear()
        return self._next(method)

    def _next(self, method: str) -> int:
        self._asked.add(method)
        self.calls += 1
        return self.calls

    def strike(self, method: str, when: str) -> None:
        """The fault is told to the outside, and then it happens: killed, or the error is raised."""
        self.happened = f"{when} {method}"
        self._tell(self.happened)
        if self.mode in ("before", "after"):
            os.kill(os.getpid(), signal.SIGKILL)
        if method in SETTLED or (self.mode == "unknown" and method in WRITING):
            raise CommitUnknown("the test lost the answer")
        raise StoreUnavailable("the test lost the answer")


def _something(method: str, answer: Any) -> bool:
    match method:
        case "claim" | "claim_blocked":
            rows, _ = answer
            return bool(rows)
        case "reap":
            return bool(answer.taken)
        case "forget" | "retire" | "wakeups":
            return bool(answer)
        case _:
            return False


def faulty(store: Store, faults: Faults) -> Store:
    """The store, one call of which fails."""
    return cast("Store", _FaultyStore(store, faults))


class _FaultyStore:
    """Every method is the real store's; those that touch the database are counted, and one of them fails."""

    def __init__(self, store: Store, faults: Faults) -> None:
        self._store = store
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        return self._counted(name, real) if name in COUNTED else real

    def _counted(self, name: str, real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        faults = self._faults

        async def call(*args: Any, **kwargs: Any) -> Any:
            number = faults.begin(name)
            if number is not None and number == faults.n and faults.mode == "before":
                faults.strike(name, "before")
            answer = await real(*args, **kwargs)
            if number is None:
                number = faults.found(name, answer)
            if number is not None and number == faults.n:
                faults.strike(name, "after" if faults.mode == "before" else faults.mode)
            return answer

        return call
