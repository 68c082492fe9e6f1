"""Flows: durable async functions. Calling one in a flow runs it as a child."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from perdure.api.scope import Started, finish, in_flow
from perdure.clock import Duration, seconds

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class FlowFunction(Generic[P, R_co]):
    """What `@flow` makes of an async function. Start it with an engine; in a flow, calling it runs a child."""

    if TYPE_CHECKING:
        name: str

    def __init__(
        self, fn: Callable[P, Coroutine[Any, Any, R_co]], name: str, version: str | None, timeout: float | None
    ) -> None:
        functools.update_wrapper(cast("Any", self), fn)
        self.fn = fn
        self.name = name
        self.version = version
        self.timeout = timeout
        self.body: Callable[..., Coroutine[Any, Any, Any]] = fn if timeout is None else self._limited
        self.signature = inspect.signature(fn)
        self._arity = _arity(self.signature)
        # As for steps: to `inspect` it is a coroutine function.
        self.__code__ = fn.__code__
        self.__defaults__ = fn.__defaults__
        self.__kwdefaults__ = fn.__kwdefaults__

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        place = in_flow(f"the flow {self.name}")
        started: Started = await finish(
            place.run.start(place, self, self.positional(args, kwargs), None, detached=False)
        )
        return await finish(place.run.wait(place, started, child=True, timeout=None))

    def positional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments by position, which is how they are stored.

        Raises:
            TypeError: they do not fit the function's signature, or one can only be passed by keyword.
        """
        if not kwargs and self._arity is not None and self._arity[0] <= len(args) <= self._arity[1]:
            return args
        bound = self.signature.bind(*args, **kwargs)
        if bound.kwargs:
            raise TypeError(
                f"flow {self.name}: {', '.join(bound.kwargs)} can only be passed by keyword; a flow's arguments are positional"
            )
        return bound.args

    async def _limited(self, *args: Any) -> Any:
        async with asyncio.timeout(self.timeout):
            return await cast("Any", self.fn)(*args)

    def __repr__(self) -> str:
        return f"<flow {self.name}>"


def _arity(signature: inspect.Signature) -> tuple[int, int] | None:
    """How many positional arguments the function takes, at least and at most; None if it also takes others."""
    least = most = 0
    for p in signature.parameters.values():
        if p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            return None
        most += 1
        least += p.default is p.empty
    return least, most


class _FlowDecorator(Protocol):
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> FlowFunction[P, R]: ...


@overload
def flow(fn: Callable[P, Coroutine[Any, Any, R]], /) -> FlowFunction[P, R]: ...
@overload
def flow(*, name: str | None = None, version: str | None = None, timeout: Duration | None = None) -> _FlowDecorator: ...
def flow(
    fn: Any = None, /, *, name: str | None = None, version: str | None = None, timeout: Duration | None = None
) -> Any:
    """The async function is a flow: its steps, waits and children are journaled, and it goes on where its journal ends.

    Args:
        name: what the store calls it; by default the function's qualified name. Keep it when the function is renamed.
        version: the identity of this flow's code, instead of the engine's: see `Engine(version=)`.
        timeout: for each run of the flow, durable: after it the body is cancelled, and the instance fails with
            `TimeoutError`.

    Raises:
        TypeError: the function is not `async def`.
    """

    def decorate(fn: Any) -> FlowFunction[..., Any]:
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(f"@flow needs an async function; {getattr(fn, '__qualname__', fn)!r} is none")
        return FlowFunction(fn, name or fn.__qualname__, version, None if timeout is None else seconds(timeout))

    return decorate if fn is None else decorate(fn)


AnyFlow = FlowFunction[..., Any]


def unwrap(flow: Any, args: tuple[Any, ...]) -> tuple[FlowFunction[..., Any] | str, tuple[Any, ...]]:
    """A flow, its name, or a `functools.partial` of it (which carries keywords), and all arguments by position.

    Raises:
        TypeError: it is none of these, or the arguments do not fit it.
    """
    kwargs: dict[str, Any] = {}
    while isinstance(flow, functools.partial):
        part = cast("functools.partial[Any]", flow)
        args, kwargs, flow = (*part.args, *args), {**part.keywords, **kwargs}, part.func
    if isinstance(flow, FlowFunction):
        function = cast("FlowFunction[..., Any]", flow)
        return function, function.positional(args, kwargs)
    if isinstance(flow, str):
        return flow, args
    raise TypeError(f"{flow!r} is not a flow; decorate the function with @flow, or give a registered name")


def name_of(flow: Any) -> str:
    """The registered name of a flow (or the name itself).

    Raises:
        TypeError: it is neither.
    """
    if isinstance(flow, str):
        return flow
    if isinstance(flow, FlowFunction):
        return flow.name
    raise TypeError(f"{flow!r} is not a flow; decorate the function with @flow, or give a registered name")
