"""Where a call is made: in a flow, in a step, or elsewhere; and what a flow's calls may ask of the engine, as
protocols.

Two signs say "in a flow": the running loop, and the place in the context. A call with only one of them raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from perdure.errors import NotInFlow

if TYPE_CHECKING:
    import random

    from perdure.api.current import Facts
    from perdure.api.flow import FlowFunction
    from perdure.api.step import StepSpec
    from perdure.model.records import State

running_loop = asyncio._get_running_loop  # None outside a loop, where get_running_loop() raises


class Place:
    """A task of a flow, as the path that its operations' keys begin with.

    A task takes its number only when it or a descendant first asks for something durable, so that a library's one-off
    housekeeping task shifts no other key.
    """

    __slots__ = ("children", "draws", "operations", "parent", "prefix", "run")

    def __init__(self, run: FlowRun, parent: Place | None) -> None:
        self.run = run
        self.parent = parent
        self.prefix: str | None = "" if parent is None else None
        self.operations = 0
        self.children = 0
        self.draws = 0

    def path(self) -> str:
        """The prefix of this task's keys; numbers the task if it has no number yet."""
        if self.prefix is None:
            parent = self.parent
            assert parent is not None  # noqa: S101  only the root has none, and its prefix is ""
            self.prefix = f"{parent.path()}{parent.children}."
            parent.children += 1
        return self.prefix

    def next_key(self) -> str:
        """The key of the operation that this task asks for now."""
        prefix = self.prefix
        if prefix is None:
            prefix = self.path()
        n = self.operations
        self.operations = n + 1
        self.draws = 0
        return prefix + str(n)


class NextRun(BaseException):
    """Raised through a flow's body by `continue_as_new`, with the encoded arguments of the next run."""

    def __init__(self, arguments: bytes) -> None:
        super().__init__("continue_as_new() was called: the flow's next run begins; do not catch this")
        self.arguments = arguments


class FlowRun(Protocol):
    """What the calls in a flow's body ask of the execution that runs it."""

    loop: asyncio.AbstractEventLoop

    @property
    def facts(self) -> Facts: ...

    def step(
        self, place: Place, spec: StepSpec, args: tuple[Any, ...], kwargs: Mapping[str, Any], id: str | None
    ) -> Operation: ...
    def receive(
        self,
        place: Place,
        forms: tuple[Any, ...],
        name: str | None,
        where: Callable[[Any], bool] | None,
        timeout: float | None,
    ) -> Operation: ...
    def start(
        self, place: Place, flow: FlowFunction[..., Any] | str, args: tuple[Any, ...], id: str | None, *, detached: bool,
        queue: str | None = None,
    ) -> Operation: ...  # fmt: skip
    def wait(self, place: Place, started: Started, *, child: bool, timeout: float | None) -> Operation: ...
    def send(
        self, place: Place, flow: str, id: str, message: object, key: str | None, name: str | None
    ) -> Operation: ...
    def cancel(self, place: Place, flow: str, id: str, reason: str | None) -> Operation: ...
    def read(self, place: Place, what: str, flow: str, id: str, key: str | None) -> Operation: ...
    def transaction(
        self, place: Place, work: Callable[..., Awaitable[Any]], args: tuple[Any, ...], id: str | None
    ) -> Operation: ...
    def next_run(self, args: tuple[Any, ...]) -> NextRun: ...
    def patched(self, id: str) -> bool: ...
    def random(self, place: Place) -> random.Random: ...
    def now(self) -> float: ...
    def expose(self, key: str, value: object) -> None: ...
    def exposed(self, key: str) -> Any: ...
    def open_stream(self) -> None: ...
    def arrival(self, cursor: int) -> Any: ...
    def arrived(self) -> asyncio.Future[None]: ...
    def decode(self, body: bytes) -> Any: ...


class Operation(Protocol):
    """Something durable that a flow asked for: await its `future`; `abandon` if the waiting is cut off."""

    future: asyncio.Future[Any]

    def abandon(self) -> None:
        """The flow does not want it any more (no effect when it is delivered): it leaves no entry."""
        ...


class Started:
    """An instance that a flow knows: as started by it (`digest` and `uid` given), or by name."""

    __slots__ = ("digest", "flow", "id", "uid")

    def __init__(self, flow: str, id: str, digest: bytes | None = None, uid: bytes | None = None) -> None:
        self.flow = flow
        self.id = id
        self.digest = digest
        self.uid = uid


class Outside(Protocol):
    """How a handle that was made outside a flow reaches its instance."""

    async def life_of(self, flow: str, id: str) -> bytes: ...
    async def result(self, flow: str, id: str, uid: bytes, timeout: float | None) -> Any: ...
    async def send_one(self, flow: str, id: str, message: object, key: str | None, name: str | None) -> None: ...
    async def state_of(self, flow: str, id: str, uid: bytes) -> State: ...
    async def exposed_by(self, flow: str, id: str, uid: bytes) -> dict[str, Any]: ...
    async def cancel_one(self, flow: str, id: str, reason: str | None) -> None: ...


scope: ContextVar[Any] = ContextVar("perdure_scope", default=None)
"""A `Place` in a flow, the running attempt in a step, None elsewhere."""


async def finish(operation: Operation) -> Any:
    """The operation's outcome; abandons it if the waiting task is cancelled or closed."""
    try:
        return await operation.future
    except BaseException:
        operation.abandon()  # no effect if it is the operation itself that failed
        raise


def in_flow(what: str) -> Place:
    """The place of the running task of a flow.

    Raises:
        NotInFlow: the call is made elsewhere; the message says where and what to do.
    """
    here = scope.get()
    if type(here) is Place and running_loop() is here.run.loop:
        return here
    raise NotInFlow(_where_instead(what, here))


def _where_instead(what: str, here: Any) -> str:
    if type(here) is Place:
        return (
            f"{what} was called with a flow's context but outside its loop (in a thread, or a callback of the real loop): "
            "call it in the flow's own body"
        )
    if here is not None:
        return f"{what} was called inside a step; only a flow's own body may call it: return from the step first"
    if getattr(running_loop(), "is_flow_loop", False):
        return f"{what} was called in a flow's loop without the flow's context; do not run it in a context of your own"
    return f"{what} was called outside a flow; it works in the body of a function decorated with @flow"


def outside_flow(what: str, instead: str) -> None:
    """Raises NotInFlow if the caller is a flow, which must use its own journaled verbs."""
    if getattr(running_loop(), "is_flow_loop", False):
        raise NotInFlow(f"{what} was called inside a flow; use {instead}, which is journaled")


def fresh_context(value: object, base: Context) -> Context:
    """A copy of `base` in which the scope is `value`."""
    context = base.copy()
    context.run(scope.set, value)
    return context
