"""Steps: units of work whose outcome is journaled. `@step` for functions and methods, `capture` for any callable in
place.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from perdure.api.scope import Place, finish, in_flow, running_loop, scope
from perdure.clock import Duration, seconds
from perdure.model.retry import Retry

if TYPE_CHECKING:
    from typing import TypeVarTuple, Unpack

    from typing_extensions import TypeForm

    Ts = TypeVarTuple("Ts")

P = ParamSpec("P")
P2 = ParamSpec("P2")
R = TypeVar("R")
R2 = TypeVar("R2")
S = TypeVar("S")
T = TypeVar("T")


class _NotGiven:
    """The default of an argument whose every value means something."""


NOT_GIVEN: Any = _NotGiven()


_POLICY: Final = ("retry", "at_most_once", "timeout", "returns")


class StepSpec:
    """What is known of a step before it is called: the function and its policy. Shared, never changed."""

    __slots__ = (
        "as_registered", "at_most_once", "copy", "fn", "is_async", "key", "name", "queue", "registered", "retry", "returns",
        "signature", "timeout",
    )  # fmt: skip

    def __init__(  # noqa: PLR0913  all that `step` and `capture` may say
        self,
        fn: Callable[..., Any],
        name: str,
        *,
        retry: Retry | None = None,
        at_most_once: bool = False,
        timeout: Duration | None = None,
        copy: bool = True,
        returns: Any = NOT_GIVEN,
        queue: str | None = None,
        key: str | None = None,
        registered: str | None = None,
        as_registered: bool = True,
    ) -> None:
        if at_most_once and retry is not None and retry.attempts != 1 and not retry.says_which:
            raise ValueError(
                f"step {name!r}: at_most_once=True with retry= needs retry_on=, to say which failures prove that nothing happened"
            )
        self.fn = fn
        self.name = name
        self.is_async = is_async(fn)
        self.retry = retry
        self.at_most_once = at_most_once
        self.timeout = None if timeout is None else seconds(timeout)
        if self.timeout is not None and self.timeout <= 0:
            raise ValueError(f"step {name!r}: timeout={timeout!r} must be positive")
        self.copy = copy
        self.returns = returns
        self.queue = queue
        self.key = key
        """The idempotency key of whoever it runs for; None: it runs for itself."""
        self.registered = registered or name
        """The name by which a queue's replicas know it."""
        self.as_registered = as_registered
        """Whether its policy is the one that it was made with."""
        self.signature: inspect.Signature | None = None

    def changed(self, **options: Any) -> StepSpec:
        """The same step, but for what is given."""
        given: dict[str, Any] = {
            "fn": self.fn, "name": self.name, "retry": self.retry, "at_most_once": self.at_most_once, "timeout": self.timeout,
            "copy": self.copy, "returns": self.returns, "queue": self.queue, "key": self.key, "registered": self.registered,
        }  # fmt: skip
        same = all(options.get(name, given[name]) == given[name] for name in _POLICY)
        return StepSpec(**(given | options), as_registered=self.as_registered and same)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Arguments in one form however they were passed: by position as far as the signature allows."""
        if self.signature is None:
            self.signature = inspect.signature(self.fn)
        bound = self.signature.bind(*args, **kwargs)
        return bound.args, bound.kwargs


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling `fn` gives a coroutine: partials, methods and objects with an async `__call__` included."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


class Step(Generic[P, R]):
    """What `@step` makes of a function or method. Calling it gives a coroutine, in a flow and elsewhere.

    In a flow the call is journaled: its outcome is recorded once, and replay gives it without running the function
    again. In a step, or outside a flow, it just runs. To `inspect`, and so to libraries, it is a coroutine function.
    """

    if TYPE_CHECKING:
        name: str

    def __init__(self, spec: StepSpec, id: str | None = None) -> None:
        fn = spec.fn
        functools.update_wrapper(cast("Any", self), fn)
        self.spec = spec
        self.name = spec.name
        self.id = id
        self.of_class = not inspect.ismethod(fn) and _takes_class(fn)
        # These make a callable object a coroutine function to `inspect.iscoroutinefunction` (which asks for the
        # code's flags).
        plain = inspect.unwrap(fn)
        code = getattr(plain, "__code__", _template.__code__)
        self.__code__ = code.replace(co_flags=code.co_flags | inspect.CO_COROUTINE)
        self.__defaults__ = getattr(plain, "__defaults__", None)
        self.__kwdefaults__ = getattr(plain, "__kwdefaults__", None)

    @property
    def fn(self) -> Callable[P, Any]:
        """The undecorated function."""
        return self.spec.fn

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.of_class and args and isinstance(args[0], type):  # since 3.13 `classmethod` does not bind it
            return await _BoundStep(self, args[0])(*args[1:], **kwargs)
        here = scope.get()
        if type(here) is Place and running_loop() is here.run.loop:
            operation = here.run.step(here, self.spec, args, kwargs, self.id)
            try:
                return await operation.future
            except BaseException:
                operation.abandon()
                raise
        return await _run_plainly(f"step {self.name}", here, self.spec, args, kwargs)

    def options(
        self,
        *,
        retry: Retry | None = NOT_GIVEN,
        at_most_once: bool = NOT_GIVEN,
        timeout: Duration | None = NOT_GIVEN,
        queue: str | None = NOT_GIVEN,
        id: str | None = None,
    ) -> Step[P, R]:
        """The same step with another policy or queue for the calls made through what is returned; `id` identifies one
        operation of a run. The policy of a step on a queue is what it was registered with there, and no other.
        """
        given = {"retry": retry, "at_most_once": at_most_once, "timeout": timeout, "queue": queue}
        changed = {name: value for name, value in given.items() if value is not NOT_GIVEN}
        return Step(self.spec.changed(**changed) if changed else self.spec, self.id if id is None else id)

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> Step[P, R]: ...
    @overload
    def __get__(self: Step[Concatenate[S, P2], R2], instance: S, owner: type[Any]) -> Step[P2, R2]: ...
    def __get__(self, instance: Any, owner: type[Any]) -> Any:
        if instance is None:
            return self
        return _BoundStep(self, instance)

    def __repr__(self) -> str:
        return f"<step {self.name}>"


def _takes_class(fn: Callable[..., Any]) -> bool:
    """Whether the function is written as a class method: in a class, with `cls` first."""
    code = getattr(fn, "__code__", None)
    names: tuple[str, ...] = code.co_varnames[: code.co_argcount] if code is not None else ()
    return names[:1] == ("cls",) and "." in fn.__qualname__.rpartition("<locals>.")[2]


async def _template() -> None:
    """Its code's flags are a coroutine function's."""


class _BoundStep(Step[..., Any]):
    """A step that is a method, bound to its object, which is never an argument: not encoded, copied or digested."""

    def __init__(self, step: Step[..., Any], instance: Any) -> None:
        spec = step.spec
        method = cast("Any", spec.fn).__get__(instance, type(instance))
        super().__init__(spec.changed(fn=method), step.id)


async def _run_plainly(what: str, here: Any, spec: StepSpec, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if type(here) is Place or getattr(running_loop(), "is_flow_loop", False):
        in_flow(what)  # one of the two signs only: raises, and says which
    if spec.is_async:
        return await spec.fn(*args, **kwargs)
    value = await asyncio.to_thread(spec.fn, *args, **kwargs)
    return await value if inspect.isawaitable(value) else value


class _StepDecorator(Protocol):
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Step[P, R]: ...


@overload
def step(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(fn: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(
    *,
    name: str | None = None,
    retry: Retry | None = None,
    at_most_once: bool = False,
    timeout: Duration | None = None,
    queue: str | None = None,
    copy: bool = True,
) -> _StepDecorator: ...
def step(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retry: Retry | None = None,
    at_most_once: bool = False,
    timeout: Duration | None = None,
    queue: str | None = None,
    copy: bool = True,
) -> Any:
    """The function is a step: in a flow its outcome is journaled, elsewhere it just runs.

    Args:
        name: what the journal calls it; by default the function's qualified name. Keep it when the function is renamed.
        retry: when to try again; None leaves it to `Engine(retry=)`, `Retry(attempts=1)` means never.
        at_most_once: an attempt is never repeated; if its outcome is lost, the call raises `OutcomeUnknown`.
        timeout: of one attempt; after it the attempt is cancelled and has failed with `TimeoutError`, an at-most-once
            one with `OutcomeUnknown`.
        queue: in a flow, attempts run on a replica that serves this queue and was given the step (`Engine(steps=[...])`),
            with the policy that it has there; "" is what names no queue. All arguments must be such as can be kept.
        copy: whether the function gets copies of its arguments (so that changing them in place shows at once that it
        is not durable).

    Raises:
        ValueError: `at_most_once` together with a `retry` that does not say `retry_on`.
    """

    def decorate(fn: Callable[..., Any]) -> Step[..., Any]:
        return Step(
            StepSpec(
                fn, name or fn.__qualname__, retry=retry, at_most_once=at_most_once, timeout=timeout, queue=queue, copy=copy
            )
        )  # fmt: skip

    return decorate if fn is None else decorate(fn)


@overload
async def capture(
    work: Callable[[Unpack[Ts]], object],
    /,
    *args: Unpack[Ts],
    returns: TypeForm[T],
    id: str | None = None,
    name: str | None = None,
    retry: Retry | None = None,
    at_most_once: bool = False,
    timeout: Duration | None = None,
) -> T: ...
@overload
async def capture(
    work: Callable[[Unpack[Ts]], Awaitable[R]],
    /,
    *args: Unpack[Ts],
    id: str | None = None,
    name: str | None = None,
    retry: Retry | None = None,
    at_most_once: bool = False,
    timeout: Duration | None = None,
) -> R: ...
@overload
async def capture(
    work: Callable[[Unpack[Ts]], R],
    /,
    *args: Unpack[Ts],
    id: str | None = None,
    name: str | None = None,
    retry: Retry | None = None,
    at_most_once: bool = False,
    timeout: Duration | None = None,
) -> R: ...
async def capture(
    work: Callable[..., Any],
    /,
    *args: Any,
    returns: Any = NOT_GIVEN,
    id: str | None = None,
    name: str | None = None,
    retry: Retry | None = None,
    at_most_once: bool = False,
    timeout: Duration | None = None,
) -> Any:
    """The outcome of `work(*args)`, run as a step in place and journaled: the same after every restart.

    A sync `work` runs in a thread, an async one on the real loop. Keywords for `work` go in a `functools.partial`.

    Args:
        returns: the type of the value; `type(None)` (or None) drops a value that needs no keeping.
        id: identifies this operation within the run (each id once).
        name: what the journal calls it; by default the callable's qualified name.
        retry, at_most_once, timeout: as for `step`; if `work` is a step, what is not given here is as the step says.

    Raises:
        NotInFlow: called outside a flow's body.
        NotEncodable, PayloadTooLarge: the outcome cannot be kept; the work has run.
        DuplicateId: `id` was used before in this run.
        OutcomeUnknown: with `at_most_once`: it was begun, and whether it happened is not known.
    """
    place = in_flow("capture()")
    fn: Any = work
    kwargs: Mapping[str, Any] = {}
    while isinstance(fn, functools.partial):  # its keywords are arguments as well
        args, kwargs, fn = (*fn.args, *args), {**fn.keywords, **kwargs}, fn.func
    if not isinstance(fn, Step):
        label = name or getattr(fn, "__qualname__", None) or type(fn).__qualname__
        spec = StepSpec(fn, label, retry=retry, at_most_once=at_most_once, timeout=timeout, returns=returns)
        return await finish(place.run.step(place, spec, args, kwargs, id))
    own = cast("Step[..., Any]", fn)
    spec = own.spec
    changed = spec.changed(
        name=name or spec.name,
        retry=retry or spec.retry,
        at_most_once=at_most_once or spec.at_most_once,
        timeout=timeout or spec.timeout,
        returns=returns,
    )
    return await finish(place.run.step(place, changed, args, kwargs, own.id if id is None else id))
