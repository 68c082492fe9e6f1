"""An execution on a host that does nothing: it goes over a journal and stands where the journal ends.

It knows no recording and no store: entries come from a function.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from perdure.api.flow import FlowFunction
from perdure.engine import ending
from perdure.engine.execution import Execution
from perdure.engine.loop import FlowLoop
from perdure.engine.operations import Pushed, begun
from perdure.engine.payloads import NO_DIGEST, Payloads
from perdure.model.records import Entry, Kind, Loaded
from perdure.model.writes import Continue, Create, Finish, Write

if TYPE_CHECKING:
    from perdure.engine.operations import ReadOp
    from perdure.engine.stepping import StepOp
    from perdure.engine.transacting import TransactionOp

SECONDS: Final = 60.0
"""A flow that still turns after so long will never wait for anything."""

Pages = Callable[[int], Awaitable[tuple[list[Entry], bool]]]
"""Gives the entries after a seq, and whether there are more."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How far the code came."""

    problem: BaseException | None
    """Why an engine would block the instance."""
    end: Finish | Continue | None
    """How the code ended; None: it has not."""
    entries: int
    """Of the journal, that the code went over."""
    asks_for: tuple[str, ...]
    """What it has asked for and not got."""
    line: str
    """Where its main task waits, as file:line; empty: nowhere."""
    read: int | None
    """The seq of the last entry; None: the journal goes on after what was read."""


def pages_of(entries: list[Entry]) -> Pages:
    """Of a journal that is in memory."""

    async def page(after: int) -> tuple[list[Entry], bool]:
        return [entry for entry in entries if entry.seq > after], False

    return page


async def run_over(
    loaded: Loaded,
    flow: FlowFunction[..., Any],
    payloads: Payloads,
    parent: tuple[str, str] | None,
    *,
    pages: Pages,
    timeout: float = SECONDS,
) -> Ran:
    """The code ran over the journal and is out of memory again; its `finally` blocks ran, as when an engine unloads it.

    One that has not begun begins, and stands before the first thing that it asks for. The lists of `loaded` are used up.
    """
    host = _Still(asyncio.get_running_loop())
    loaded = await _with_beginning(loaded, pages, host)
    execution = Execution(host, payloads, flow, loaded, parent)
    execution.restarted = execution.had_waited = True  # so that loggers are silent
    limit = asyncio.timeout(timeout)
    try:
        try:
            async with limit:
                await host.run(execution, pages)
        except TimeoutError:
            if not limit.expired():
                raise
            host.problem = TimeoutError(f"{execution!r} has not come to rest within {timeout:g} s: it turns for ever")
        read = None if execution.journal.more else execution.journal.read
        return Ran(host.problem, host.end, execution.seq, tuple(_asked(execution)), _line(execution), read)
    finally:
        ending.unload(execution)


async def _with_beginning(loaded: Loaded, pages: Pages, host: _Still) -> Loaded:
    """With the entry by which an engine would let it begin, if it has not begun."""
    row, entries, more = loaded.instance, loaded.entries, loaded.more
    while more and entries[-1].seq < 0:
        page, more = await pages(entries[-1].seq)
        entries = [*entries, *page]
    if not more and (not entries or entries[-1].seq < 0):
        entries = [*entries, host.begun(row.uid, row.run, row.flow, "", row.created_at)]
    return Loaded(row, entries, loaded.pending, loaded.inbox, more)


def _asked(execution: Execution) -> Iterator[str]:
    yield from (op.why_outstanding() for op in execution.ops.values())
    pushed = {item.kind for item in execution.completed if isinstance(item, Pushed)}
    if Kind.CANCEL in pushed:
        yield "a cancel request"
    if Kind.ARRIVAL in pushed or execution.mailbox.listening:
        yield "a message of a stream"


def _line(execution: Execution) -> str:
    main = execution.main
    stack = [] if main is None or main.done() else main.get_stack()
    return f"{stack[-1].f_code.co_filename}:{stack[-1].f_lineno}" if stack else ""


class _Still:
    """See `Host`: nothing that an execution wants done is done, and what it tells is kept."""

    def __init__(self, real: asyncio.AbstractEventLoop) -> None:
        self.real = real
        self.base_context = Context()
        self.holding = True  # nothing is delivered once the journal is used up
        self.problem: BaseException | None = None
        self.end: Finish | Continue | None = None
        self._page_wanted = False
        self._rests = asyncio.Event()

    async def run(self, execution: Execution, pages: Pages) -> None:
        """The execution stands still: at the end of its journal, or blocked."""
        execution.loop.wake()
        while True:
            await self._rests.wait()
            self._rests.clear()
            if not self._page_wanted or self.problem is not None:
                return
            self._page_wanted = False
            entries, more = await pages(execution.read)
            execution.page(entries, more=more)

    def schedule(self, loop: FlowLoop, /) -> None:
        self.real.call_soon(self._turn, loop)

    def _turn(self, loop: FlowLoop) -> None:
        try:
            loop.run()
        except Exception as error:  # the journal is of no kind that an engine writes
            self.problem = self.problem or error
        if not loop.scheduled:
            self._rests.set()

    def read_on(self, execution: Execution) -> None:
        self._page_wanted = True

    def finished(self, execution: Execution, finish: Finish | Continue) -> None:
        self.end = finish

    def blocked(self, execution: Execution, error: BaseException) -> None:
        self.problem = self.problem or error

    def now(self) -> float:
        return 0.0  # flow time is then that of the last entry

    def begun(self, uid: bytes, run: int, flow: str, version: str, now: float) -> Entry:
        return Entry(uid, run, 0, "", Kind.BEGUN, flow, begun(version), NO_DIGEST, False, None, 0, now, now)

    def version_of(self, flow: str) -> str:
        return ""

    def random(self) -> float:
        return 0.0

    def new_uid(self) -> bytes:
        return bytes(16)

    def new_instance(
        self, uid: bytes, flow: str, id: str, queue: str, arguments: bytes, digest: bytes, parent: bytes | None
    ) -> Create:
        return Create(uid, flow, id, flow, arguments, digest, parent, False, None, "", 0.0, None)

    queues = True

    def default_retry(self) -> None:
        return None

    def write(self, write: Write, /) -> int:
        return 0

    def gate(self, execution: Execution) -> None:
        execution.gated = False
        execution.caught_up()  # no step may begin, but what was read may be read again

    def start_step(self, op: StepOp | ReadOp | TransactionOp) -> None: ...
    def cancel_step(self, op: StepOp) -> None: ...
    def hand_over(self, execution: Execution, to: str) -> None: ...
    def arm(self, execution: Execution, when: float) -> None: ...
    def settled(self, execution: Execution) -> None: ...
