"""`Flows`: an engine for tests, in memory, whose time stands still and skips to the next timer while the test waits."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from types import MethodType, ModuleType, TracebackType
from typing import Any, Final, ParamSpec, Protocol, Self, TypeVar, cast, overload

from perdure.api.current import FlowMiddleware
from perdure.api.flow import AnyFlow, FlowFunction, name_of
from perdure.api.scope import running_loop, scope
from perdure.api.step import NOT_GIVEN, Step
from perdure.clock import Duration, seconds, to_datetime
from perdure.codec import Codec
from perdure.engine.engine import MAX_RESIDENT, Engine
from perdure.engine.membership import Membership
from perdure.engine.requests import Requests
from perdure.engine.serving import registered
from perdure.engine.steps import Attempt
from perdure.errors import EngineClosed, NotRegistered
from perdure.model.records import Instance, Kind
from perdure.model.retry import Retry
from perdure.testing.inside import FlowsStore, Inside
from perdure.testing.referred import place_of, referred
from perdure.testing.skipping import Skipping
from perdure.testing.stubs import Stubs
from perdure.testing.timeline import cut, timeline
from perdure.testing.vain import Stuck, Vain
from perdure.testing.virtual import VirtualSystem

__all__ = ["Flows", "Steps", "Stuck"]

P = ParamSpec("P")
R = TypeVar("R")

LEASE: Final = 1e12
"""Seconds: nobody's lease ends, however far time skips."""
STALL_LIMIT: Final = 0.5
"""So many real seconds a step's thread gets to end when the test is over."""
INSTANCES: Final = 20
"""Of so many instances the timelines are shown at most."""


class _Function(Protocol):
    """A function, as given to `capture` or `transaction`; and no step, whose types are known."""

    @property
    def __globals__(self) -> dict[str, Any]: ...


class Steps(list[str]):
    """Names of steps; a failing comparison in a test shows the timeline with it."""

    def __init__(self, names: Sequence[str], lines: Callable[[], list[str]]) -> None:
        super().__init__(names)
        self.timeline = lines


class Flows(Engine):
    """An engine for tests: `async with Flows() as flows`, or the pytest fixture `flows`.

    It keeps everything in memory. Flows need not be registered: what is started is known, and so is what it refers to.
    Time stands still, and skips to the next timer while the test waits in `result`, `run`, `sleep` or `advance`, and
    nothing else can happen: no step runs, no message is on its way. It is 1 January 2026 when the test begins.

    Args:
        retry, step_middleware, codec, max_resident: as those of the program's own engine; see `Engine`.
        seed: of ids and jitter, which are the same in every run of the test.
    """

    patience: float = 5.0
    """So many real seconds a test waits for a step that runs, or for what comes from outside, before it is an error."""

    def __init__(
        self,
        *,
        retry: Retry | None = None,
        step_middleware: Sequence[FlowMiddleware] = (),
        codec: Codec | None = None,
        max_resident: int = MAX_RESIDENT,
        seed: int = 0,
    ) -> None:
        self._system = VirtualSystem(seed=seed)
        self._memory = FlowsStore(self._system)
        self._stubs = Stubs()
        self._learned: set[AnyFlow] = set()
        self._inside: Inside | None = None
        self._skipping: Skipping | None = None
        super().__init__(
            self._memory,
            retry=retry,
            step_middleware=(*step_middleware, self._stubs.middleware),
            codec=codec,
            max_resident=max_resident,
            drain=0.0,
            version="test",
            lease=LEASE,
            stall_limit=STALL_LIMIT,
        )

    async def __aenter__(self) -> Self:
        if running_loop() is None:
            raise RuntimeError("flows run on asyncio; of anyio's backends only that one will do")
        await super().__aenter__()
        member = self._check()
        self._requests = _Requests(self._learn, self._payloads, self._flows, self._system)
        self._inside = Inside(member)
        self._inside.on_transaction(self._stubs.of_transaction)
        vain = Vain(self._memory, self._inside, self._lines, lambda: self.patience)
        self._skipping = Skipping(self._inside, self._system.virtual, vain, lambda: self.patience)
        return self

    async def __aexit__(
        self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        try:
            if self._skipping is not None and self._inside is not None:
                await self._skipping.close()
                await self._inside.cut_off(2 * STALL_LIMIT)  # before the engine drains, which would complain of them
        finally:
            await super().__aexit__(t, e, tb)
        for _ in range(3):  # what was cancelled has ended
            await asyncio.sleep(0)

    def _check(self) -> Membership:
        if not self._entered:
            raise EngineClosed(
                "the flows begin with the test itself: start, send and wait in the test, not in a fixture; elsewhere than in "
                "a test that has the fixture, use them as `async with Flows() as flows`"
            )
        return super()._check()

    # ------------------------------------------------------------ flows

    def register(self, *flows: AnyFlow | ModuleType) -> None:
        """These flows, or all of these modules, can be started, also by name and as children. Needed only for what is
        not started by the test and that no flow which is started refers to by name in its code.

        Raises:
            TypeError: something is not a flow.
            ValueError: there is no flow in a module.
            NotRegistered: two flows have the same name.
        """
        for item in flows:
            for flow in registered([item]).values():
                self._learn(flow)

    def _learn(self, flow: AnyFlow) -> None:
        if flow in self._learned:
            return
        for found in referred(flow):
            known = self._flows.setdefault(found.name, found)
            if known is not found:
                raise NotRegistered(
                    f"two flows are named {found.name!r}, at {place_of(known)} and {place_of(found)}; give one of them another name="
                )
            if found not in self._learned:
                self._learned.add(found)
                if self._inside is not None:
                    self._inside.know(found.name)

    # ------------------------------------------------------------ time

    def now(self) -> datetime:
        """What the clock shows."""
        return to_datetime(self._system.virtual.wall())

    async def advance(self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0) -> None:
        """It is exactly so much later. All timers on the way have fired in their order, and what each of them made
        happen has happened. Without arguments: everything that can happen now has happened.

        Raises:
            Stuck: a step runs longer than `patience`.
            ValueError: the time is negative.
        """
        __tracebackhide__ = True
        await self.sleep(timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds))

    async def sleep(self, duration: Duration, /) -> None:
        """It is so much later, and what was due by then has happened.

        In a fake (see `stub`) the step takes so long; with `math.inf` it takes for ever.

        Raises:
            Stuck: a step runs longer than `patience`.
            ValueError: the duration is negative.
        """
        __tracebackhide__ = True
        self._check()
        assert self._skipping is not None  # noqa: S101  it was entered
        length = seconds(duration)
        if not length >= 0:
            raise ValueError(f"time does not go back, and cannot be moved by {length:g} s")
        here = scope.get()
        if isinstance(here, Attempt):
            await self._skipping.sleep_in_step(here, length)
        else:
            await self._skipping.pass_by(length)

    async def result(self, flow: str, id: str, uid: bytes, timeout: float | None) -> Any:
        """See `Handle.result`. The timeout is of the flows' time, which skips while the test waits here.

        Raises:
            Stuck: the instance is blocked, or waits for what nothing will bring, or a step runs longer than `patience`.
        """
        __tracebackhide__ = True
        self._check()
        assert self._skipping is not None  # noqa: S101  it was entered
        ended, value = await self._skipping.result(uid, super().result(flow, id, uid, None), timeout)
        if not ended:
            raise TimeoutError(f"{flow} {id!r} has not ended within {timeout:g} s; it goes on")
        return value

    # ------------------------------------------------------------ steps

    @overload
    def stub(self, step: Step[P, R], /, *, returns: R) -> None: ...
    @overload
    def stub(self, step: Step[P, R], /, *, raises: BaseException | type[BaseException]) -> None: ...
    @overload
    def stub(self, step: Step[P, R], /, *, fake: Callable[P, R | Awaitable[R]]) -> None: ...
    @overload
    def stub(
        self,
        step: str | _Function | MethodType | functools.partial[Any],
        /,
        *,
        returns: Any = ...,
        raises: BaseException | type[BaseException] = ...,
        fake: Callable[..., Any] = ...,
    ) -> None: ...
    def stub(self, step: Any, /, *, returns: Any = NOT_GIVEN, raises: Any = NOT_GIVEN, fake: Any = NOT_GIVEN) -> None:
        """From now on the step is not run: this is done instead, in each attempt. All else of the step holds: its
        retries, its timeout, its place in the journal. Stubbing it again replaces what was said before.

        Args:
            step: the step, its name in the journal, or the function given to `capture` or `transaction`.
            returns: its result; each call gets a copy.
            raises: what it fails with.
            fake: is called instead, on the event loop, with the step's arguments; its result may be awaitable.

        Raises:
            TypeError: not exactly one of the three is given.
        """
        self._stubs.put(step, returns=returns, raises=raises, fake=fake)

    def steps(self, id: str, /, *, flow: AnyFlow | str | None = None) -> list[str]:
        """The names of the steps, captures and transactions whose outcome is in the instance's journal, in its order.

        Raises:
            LookupError: there is no such instance, or two flows have one of this id: then say which `flow`.
        """
        row = self._found(id, flow)
        loaded = self._memory.all_of(row)
        names = [e.name for e in loaded.entries if e.seq >= 0 and e.kind in (Kind.STEP, Kind.TRANSACTION)]
        return Steps(names, lambda: cut(timeline(loaded, self._payloads)))

    # ------------------------------------------------------------ looking

    def timeline(self, id: str, /, *, flow: AnyFlow | str | None = None) -> str:
        """What has happened to the instance so far, a line for each entry of its journal, for people.

        Raises:
            LookupError: as `steps`.
        """
        return "\n".join(self._lines(self._found(id, flow)))

    def timelines(self) -> str:
        """What has happened to all instances; of the first 20, and with the middle of long ones left out."""
        rows = self._memory.rows()
        parts = ["\n".join(cut(self._lines(row))) for row in rows[:INSTANCES]]
        if len(rows) > INSTANCES:
            parts.append(f"… and {len(rows) - INSTANCES} instances more")
        if unused := self._stubs.unused():
            parts.append(f"stubs that no step has used: {', '.join(unused)}")
        return "\n\n".join(parts)

    def _lines(self, row: Instance) -> list[str]:
        waits_for = self._inside.waits_for(row.uid) if self._inside is not None and self._member is not None else ""
        return timeline(self._memory.all_of(row), self._payloads, waits_for)

    def _found(self, id: str, flow: AnyFlow | str | None) -> Instance:
        rows = self._memory.rows()
        name = None if flow is None else name_of(flow)
        found = [row for row in rows if row.id == id and name in (None, row.flow)]
        if len(found) == 1:
            return found[0]
        if found:
            raise LookupError(f"{id!r} is the id of several instances; say which by flow=: {_listed(found)}")
        wanted = repr(id) if name is None else f"{name} {id!r}"
        raise LookupError(f"there is no instance {wanted}; there are: {_listed(rows)}")


def _listed(rows: list[Instance]) -> str:
    names = ", ".join(f"{row.flow} {row.id!r}" for row in rows[:INSTANCES]) or "none"
    return f"{names} and {len(rows) - INSTANCES} more" if len(rows) > INSTANCES else names


class _Requests(Requests):
    """What is started is known from then on, with all that it refers to."""

    def __init__(self, learn: Callable[[AnyFlow], None], *args: Any) -> None:
        super().__init__(*args, execute=True)
        self._learn = learn

    def fitting(self, flow: Any, args: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
        """See `Requests`."""
        function = flow
        while isinstance(function, functools.partial):
            function = cast("functools.partial[Any]", function).func
        if isinstance(function, FlowFunction):
            self._learn(cast("AnyFlow", function))
        return super().fitting(flow, args)
