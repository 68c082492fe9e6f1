"""Who am I, in a flow and in a step; the flow's logger; what it exposes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from perdure.api.scope import Place, in_flow, running_loop, scope
from perdure.codec import fits
from perdure.errors import DoesNotFit, NotInFlow
from perdure.model.records import Instance

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")


class Facts(Protocol):
    """What an execution tells of itself."""

    instance: Instance
    parent: tuple[str, str] | None
    restarted: bool

    @property
    def replaying(self) -> bool: ...


class Current:
    """Who am I: in a flow and in a step. Made by `current()`."""

    __slots__ = ("_facts",)

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    @property
    def flow(self) -> str:
        """The flow's registered name."""
        return self._facts.instance.flow

    @property
    def id(self) -> str:
        """The instance's id."""
        return self._facts.instance.id

    @property
    def parent(self) -> tuple[str, str] | None:
        """Flow and id of the instance that started this one, if it is attached to that."""
        return self._facts.parent

    @property
    def restarted(self) -> bool:
        """Whether this run had begun before, here or elsewhere, and was brought back from its journal."""
        return self._facts.restarted

    @property
    def replaying(self) -> bool:
        """Whether the flow is being run over what happened already. Do not decide by it."""
        return self._facts.replaying

    @property
    def step(self) -> str | None:
        """The step's name; None in a flow."""
        return None

    @property
    def attempt(self) -> int:
        """Which attempt of the step this is, from 1; 0 in a flow."""
        return 0

    @property
    def cancelled(self) -> bool:
        """Whether the step should end: for steps in threads, which cannot be interrupted."""
        return False

    @property
    def key(self) -> str:
        """The step's idempotency key: the same for every attempt, after every restart, and no other step's.

        Raises:
            NotInFlow: this is a flow's own body, which has none.
        """
        raise NotInFlow(
            "current().key is a step's idempotency key, and this is a flow's body: ask for it inside the step"
        )

    def heartbeat(self, progress: object = None, /) -> None:
        """The step lives, and `progress` is kept for its next attempt (as of the next commit).

        Raises:
            NotInFlow: this is a flow's own body, which needs none.
            NotEncodable, PayloadTooLarge.
        """
        raise NotInFlow("current().heartbeat() is a step's, and this is a flow's body: a flow needs none")

    def progress(self, returns: TypeForm[T], /) -> T | None:
        """What an earlier attempt gave to `heartbeat` last; None if nothing.

        Raises:
            NotInFlow: this is a flow's own body.
            DoesNotFit: it is not of that type.
        """
        raise NotInFlow("current().progress() is a step's, and this is a flow's body: use a variable")


class FlowMiddleware(Protocol):
    """What is put around each attempt of a step (`Engine(step_middleware=[...])`); on the engine's loop, not journaled.

    It gets who is called (`info.step`, `info.attempt`, `info.key`, ...), the positional arguments, and `next`, which runs
    what is inside it. What it gives or raises is the attempt's outcome.
    """

    async def __call__(self, info: Current, args: tuple[Any, ...], next: Callable[..., Awaitable[Any]], /) -> Any: ...


def current() -> Current:
    """Who am I, in a flow or in a step.

    Raises:
        NotInFlow: called elsewhere.
    """
    here: Any = scope.get()
    if type(here) is Place:
        in_flow("current()")
        return Current(here.run.facts)
    if here is not None:
        return here
    raise NotInFlow("current() was called outside a flow and outside a step")


class _SilentDuringReplay(logging.Filter):
    """Drops what a flow logs while it is run over what happened already."""

    def filter(self, record: logging.LogRecord) -> bool:
        here: Any = scope.get()
        if type(here) is not Place or running_loop() is not here.run.loop:
            return True
        facts = here.run.facts
        record.flow, record.instance = facts.instance.flow, facts.instance.id
        return not facts.replaying


def get_logger(name: str, /) -> logging.Logger:
    """The standard library's logger of that name, silent in a flow while it is replayed.

    A line may be logged twice if the process dies just after it; records carry `flow` and `instance`.
    """
    log = logging.getLogger(name)
    if not any(isinstance(f, _SilentDuringReplay) for f in log.filters):
        log.addFilter(_SilentDuringReplay())
    return log


logger = get_logger("perdure.flow")


def expose(key: str, value: object, /) -> None:
    """`value` can be read from outside under `key` as soon as the flow's next commit is durable.

    Raises:
        NotInFlow, NotEncodable, PayloadTooLarge.
    """
    in_flow("expose()").run.expose(key, value)


@overload
def exposed(key: str, /) -> Any: ...
@overload
def exposed(key: str, /, *, returns: TypeForm[T]) -> T | None: ...
def exposed(key: str, /, *, returns: Any = None) -> Any:
    """What this run exposed last under `key`, None if nothing.

    Raises:
        NotInFlow: called outside a flow's body.
        DoesNotFit: it is not of the type `returns`.
    """
    value = in_flow("exposed()").run.exposed(key)
    return checked(value, returns, f"exposed {key!r}")


def checked(value: Any, returns: Any, what: str) -> Any:
    """The value, if it is of the type asked for (or none was asked for, or it is None)."""
    if returns is not None and value is not None and not fits(value, returns):
        raise DoesNotFit(f"{what}: a {type(value).__qualname__} is not a {returns}")
    return value
