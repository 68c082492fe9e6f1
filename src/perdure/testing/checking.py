"""Which unfinished instances of a database today's code would block, found by replaying each: nothing is written.

It claims nothing and is no replica, so that engines may run on the database meanwhile. It does not print.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from perdure.api.flow import FlowFunction
from perdure.api.info import shown
from perdure.errors import NonDeterminismError, PerdureError
from perdure.model.records import Instance, Loaded, MessageKind, State
from perdure.stores.contract import Store
from perdure.testing.record_source import Parts
from perdure.testing.recording import copied
from perdure.testing.replay_host import Ran, run_over

UNFINISHED: Final = (State.SCHEDULED, State.RUNNING, State.SUSPENDED, State.BLOCKED)
PAGE: Final = 100
"""So many instances are listed at a time; of their journals comes what `load` has budget for."""
TRIES: Final = 3
"""So often an instance is read that does not fit and goes on meanwhile."""

Verdict = Literal["blocks", "fits again", "not served"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What there is to say of one instance, or of a flow type."""

    verdict: Verdict
    """`blocks`: today's code would block it; `fits again`: it is blocked, and today's code would go on with it;
    `not served`: no flow that was given has this type.
    """
    flow: str
    id: str = ""
    state: State | None = None
    """How the instance stands now."""
    error: str = ""
    """The class of the error that it would be blocked with."""
    message: str = ""
    recorded: str = ""
    asked: str = ""
    path: str = ""
    line: int = 0
    """Where in the code; of the flow itself, where the error does not say."""
    instances: int = 1


@dataclass(slots=True)
class Checked:
    """How many instances there were so far."""

    fit: int = 0
    blocks: int = 0
    fits_again: int = 0
    """Those of `fit` that are blocked now."""
    not_served: Counter[str] = field(default_factory=Counter[str])
    """By flow type."""

    @property
    def replayed(self) -> int:
        """Instances whose code is here."""
        return self.fit + self.blocks


class _Over(Exception):
    """The instance has no code to run any more."""


async def check(
    parts: Parts,
    store: Store,
    flow: str | None = None,
    *,
    checked: Checked | None = None,
    progress: Callable[[Checked], object] = lambda _: None,
) -> AsyncGenerator[Finding]:
    """What there is to say of the unfinished instances of the store (of one flow type, or all), as it is found.

    Args:
        parts: what the engine was given whose flows are today's code.
        store: open; it is only read.
        checked: is counted up.
        progress: is called after each page of instances.
    """
    checked = checked if checked is not None else Checked()
    after: bytes | None = None
    while True:
        rows = await store.find(flow=flow, states=UNFINISHED, since=None, after=after, limit=PAGE)
        served = [row for row in rows if row.flow in parts.flows]
        checked.not_served.update(row.flow for row in rows if row.flow not in parts.flows)
        async for finding in _of_page(parts, store, served, checked):
            yield finding
        progress(checked)
        if len(rows) < PAGE:
            break
        after = rows[-1].uid
    for name, count in sorted(checked.not_served.items()):
        yield Finding(verdict="not served", flow=name, instances=count)


async def _of_page(
    parts: Parts, store: Store, rows: Sequence[Instance], checked: Checked
) -> AsyncGenerator[Finding]:  # fmt: skip
    left = [row.uid for row in rows]
    while left:
        found = await store.load(left)
        # Of long journals only a part comes at a time: what is not there yet is asked for again.
        done = found[-1].instance.uid if found else left[-1]
        left = left[left.index(done) + 1 :]
        parents = await _names(store, found)
        for loaded in found:
            row = loaded.instance
            try:
                problem = await _problem(parts, store, loaded, parents.get(row.parent or b""))
            except _Over:
                continue
            if problem is not None:
                checked.blocks += 1
                yield _finding(parts.flows[row.flow], row, problem)
                continue
            checked.fit += 1
            if row.state is State.BLOCKED:
                checked.fits_again += 1
                yield Finding(verdict="fits again", flow=row.flow, id=row.id, state=row.state)


async def _names(store: Store, found: Sequence[Loaded]) -> dict[bytes, tuple[str, str]]:
    """Flow and id of their parents."""
    wanted = {loaded.instance.parent for loaded in found} - {None}
    rows = await store.instances([uid for uid in wanted if uid is not None]) if wanted else []
    return {row.uid: (row.flow, row.id) for row in rows}


async def _problem(
    parts: Parts, store: Store, loaded: Loaded, parent: tuple[str, str] | None
) -> BaseException | None:  # fmt: skip
    """Why today's code would block the instance. If that is so, it is read again: it may have gone on meanwhile.

    Raises:
        _Over: it has ended, or is gone.
    """
    problem: BaseException | None = None
    for _ in range(TRIES):
        if loaded.instance.state.ended:
            raise _Over
        if _ends_without_code(loaded):
            return None
        ran = await _ran(parts, store, copied(loaded), parent)
        problem = ran.problem
        if problem is None:
            return None
        again = await store.load([loaded.instance.uid])
        if not again:
            raise _Over
        if not await _went_on(store, loaded, again[0], ran):
            return problem
        loaded = again[0]
    return problem


def _ends_without_code(loaded: Loaded) -> bool:
    """Whether an engine would end it before its code runs: it was cancelled, and is blocked or has not begun."""
    cancelled = any(message.kind == MessageKind.CANCEL for message in loaded.inbox)
    begun = loaded.more or (bool(loaded.entries) and loaded.entries[-1].seq >= 0)
    return cancelled and (not begun or loaded.instance.state is State.BLOCKED)


async def _ran(parts: Parts, store: Store, loaded: Loaded, parent: tuple[str, str] | None) -> Ran:
    row = loaded.instance

    async def pages(after: int) -> tuple[list[Any], bool]:
        return await store.entries(row.uid, row.run, after)

    return await run_over(loaded, parts.flows[row.flow], parts.payloads, parent, pages=pages)


async def _went_on(store: Store, before: Loaded, now: Loaded, ran: Ran) -> bool:
    """Whether the instance is not as it was read."""
    row = now.instance
    if row.state.ended or (row.run, row.edit) != (before.instance.run, before.instance.edit):
        return True
    if now.entries != before.entries or now.pending != before.pending:
        return True
    if ran.read is None:
        return False  # what the code was compared with are entries, which stay
    entries, _ = await store.entries(row.uid, row.run, ran.read, budget=1)
    return bool(entries)


def _finding(flow: FlowFunction[..., Any], row: Instance, problem: BaseException) -> Finding:
    message = str(problem)
    recorded, asked, place = "", "", ""
    if isinstance(problem, NonDeterminismError):
        recorded, asked, place = problem.recorded, problem.asked, problem.line
    path, _, line = place.rpartition(":")
    if not path or not line.isdecimal():  # "its end": there is no line
        path, line = flow.fn.__code__.co_filename, str(flow.fn.__code__.co_firstlineno)
    name = f"{row.flow} {row.id!r}"
    if isinstance(problem, PerdureError) and message.startswith(name):
        message = message[len(name) :].lstrip(" ,:")
    return Finding(
        verdict="blocks", flow=row.flow, id=row.id, state=shown(row), error=type(problem).__name__, message=message,
        recorded=recorded, asked=asked, path=path, line=int(line),
    )  # fmt: skip
