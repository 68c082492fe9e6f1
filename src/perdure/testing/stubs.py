"""What is done instead of steps and of the work of transactions, by their names in the journal."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, cast

from perdure.api.current import Current
from perdure.api.step import NOT_GIVEN, Step
from perdure.engine.steps import Attempt

Stub = Callable[..., Any]


class Stubs:
    """See the module. `middleware` is a step middleware of an engine."""

    def __init__(self) -> None:
        self._stubs: dict[str, Stub] = {}
        self._unused: set[str] = set()

    def put(self, step: Any, *, returns: Any = NOT_GIVEN, raises: Any = NOT_GIVEN, fake: Any = NOT_GIVEN) -> None:
        """From now on that is done instead of the step.

        Raises:
            TypeError: not exactly one of `returns`, `raises` and `fake` is given.
        """
        name = name_of(step)
        given = [value for value in (returns, raises, fake) if value is not NOT_GIVEN]
        if len(given) != 1:
            raise TypeError(f"stub({name!r}) takes one of returns=, raises= and fake=")
        if fake is not NOT_GIVEN:
            stub = fake
        elif raises is not NOT_GIVEN:
            stub = functools.partial(_raise, raises)
        else:
            stub = functools.partial(_return, returns)
        self._stubs[name] = stub
        self._unused.add(name)

    def unused(self) -> list[str]:
        """The names that no step had so far."""
        return sorted(self._unused)

    async def middleware(self, info: Current, args: tuple[Any, ...], next: Callable[..., Awaitable[Any]], /) -> Any:
        """See `FlowMiddleware`."""
        attempt = cast("Attempt", info)
        op = attempt.op
        stub = self._stubs.get(op.name)
        if stub is None:
            return await next(*args)
        kwargs = op.kwargs
        if kwargs and op.spec.copy:
            _, kwargs = op.run.payloads.copies(op.arguments or b"", op.args, op.kwargs, op.opaque)
        return await self._done(op.name, stub, *args, **kwargs)

    def of_transaction(self, name: str) -> Callable[..., Any] | None:
        """What is done instead of the work of that name; None: nothing."""
        stub = self._stubs.get(name)
        return None if stub is None else functools.partial(self._done, name, stub)

    async def _done(self, name: str, stub: Stub, /, *args: Any, **kwargs: Any) -> Any:
        self._unused.discard(name)
        value = stub(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value


def name_of(step: Any) -> str:
    """What the journal calls the step, or the function given to `capture` or `transaction`."""
    if isinstance(step, str):
        return step
    while isinstance(step, functools.partial):
        step = cast("functools.partial[Any]", step).func
    if isinstance(step, Step):
        return cast("Step[..., Any]", step).name
    name = getattr(step, "__qualname__", None)
    if not isinstance(name, str):
        raise TypeError(f"stub() takes a step, its name, or the function given to capture(); {step!r} is none of these")
    return name


def _return(value: Any, *_: Any, **__: Any) -> Any:
    return value  # it is encoded and decoded on its way: each call gets a copy


def _raise(error: BaseException | type[BaseException], *_: Any, **__: Any) -> Any:
    raise error.with_traceback(None) if isinstance(error, BaseException) else error
