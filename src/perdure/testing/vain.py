"""What a test is told that waits in vain: for what, and what has happened so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from perdure.api.info import shown
from perdure.model.records import Instance, State
from perdure.testing.skipping import WRITES
from perdure.testing.timeline import cut, since

if TYPE_CHECKING:
    from perdure.engine.steps import Attempt
    from perdure.testing.inside import FlowsStore, Inside
    from perdure.testing.skipping import Wait


class Stuck(AssertionError):
    """The test waits for what will not come: the message says for what, and what has happened so far."""


class Vain:
    """What is said to a test that waits in vain; see `skipping.Explains`."""

    def __init__(
        self,
        store: FlowsStore,
        inside: Inside,
        lines: Callable[[Instance], list[str]],
        patience: Callable[[], float],
    ) -> None:
        self._patience = patience
        self._store = store
        self._inside = inside
        self._lines = lines

    def not_quiet(self, wait: Wait, attempts: list[Attempt]) -> BaseException:
        """Something runs for longer than is waited for it."""
        running = _steps(attempts) or "the engine"
        return Stuck(
            f"{running} has been running for more than {self._patience():g} s of real time, and no time passes meanwhile: "
            f"stub it (flows.stub), let it end, or have more patience (flows.patience = ...){self._story(wait)}"
        )

    def endless(self, wait: Wait) -> BaseException:
        """The instance goes on and on."""
        row = self._row(wait)
        late = "" if row is None else f" ({since(self._inside.now() - row.created_at)})"
        return Stuck(
            f"{self._name(wait)} has not ended after {WRITES} writes{late}: it seems "
            f"to go on for ever; wait for it with timeout=, or use flows.advance(){self._story(wait)}"
        )

    def timeless(self, wait: Wait) -> BaseException:
        """It never comes to rest."""
        return Stuck(
            f"{self._inside.longest()} does not come to rest: there were {WRITES} writes and no time has passed; it seems to go "
            f"on for ever{self._story(wait)}"
        )

    def nothing_left(self, wait: Wait, asleep: list[Attempt]) -> BaseException:
        """No step runs, no timer is set, and nobody sent anything."""
        row = self._row(wait)
        waits_for = "" if row is None else self._inside.waits_for(row.uid)
        does = "sleeps for ever" if row is None else f"waits for {waits_for}" if waits_for else f"is {shown(row).value}"
        unknown = sorted({row.flow for row in self._store.rows() if not row.state.ended} - self._inside.flows())
        hint = f"; nobody runs {', '.join(unknown)}: flows.register(...) it" if unknown else ""
        running = "no step runs" + (f" but what sleeps for ever ({_steps(asleep)})" if asleep else "")
        return Stuck(
            f"{self._name(wait)} {does}, and nothing can happen any more: {running}, no timer is set, and nothing came from outside for "
            f"{self._patience():g} s{hint}{self._story(wait)}"
        )

    def blocked(self, wait: Wait, *, children: bool) -> BaseException | None:
        """The instance cannot go on, or (if `children` count) one that it started cannot."""
        if wait.uid is None:
            return None
        for row in self._store.rows():
            if row.state is State.BLOCKED and (row.uid == wait.uid or (children and self._is_of(row, wait.uid))):
                which = "" if row.uid == wait.uid else f", for which {self._name(wait)} waits,"
                return Stuck(f"{row.flow} {row.id!r}{which} is blocked: {row.reason}{self._story(wait)}")
        return None

    def _is_of(self, row: Instance | None, ancestor: bytes) -> bool:
        while row is not None and row.parent is not None:
            if row.parent == ancestor:
                return True
            row = self._store.row(row.parent)
        return False

    def _row(self, wait: Wait) -> Instance | None:
        return None if wait.uid is None else self._store.row(wait.uid)

    def _name(self, wait: Wait) -> str:
        row = self._row(wait)
        return "the test" if row is None else f"{row.flow} {row.id!r}"

    def _story(self, wait: Wait) -> str:
        row = self._row(wait)
        return "" if row is None else "\n\n" + "\n".join(cut(self._lines(row)))


def _steps(attempts: list[Attempt]) -> str:
    return ", ".join(f"step {attempt.step} of {attempt.flow} {attempt.id!r}" for attempt in attempts)
