"""Who am I, in a flow and in a step; the flow's logger; what it exposes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from perdure.api.scope import Place, in_flow, running_loop, scope
from perdure.codec import fits
from perdure.errors import DoesNotFit, NotInFlow

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")


class Current(Protocol):
    """Who am I: in a flow and in a step."""

    @property
    def flow(self) -> str:
        """The flow's registered name."""
        ...

    @property
    def id(self) -> str:
        """The instance's id."""
        ...

    @property
    def parent(self) -> tuple[str, str] | None:
        """Flow and id of the instance that started this one, if it is attached to that."""
        ...

    @property
    def restarted(self) -> bool:
        """Whether the instance was loaded with a journal of an earlier life in memory."""
        ...

    @property
    def replaying(self) -> bool:
        """Whether the flow is being run over what happened already. Do not decide by it."""
        ...

    @property
    def step(self) -> str | None:
        """The step's name; None in a flow."""
        ...

    @property
    def attempt(self) -> int:
        """Which attempt of the step this is, from 1; 0 in a flow."""
        ...

    @property
    def key(self) -> str:
        """The step's idempotency key: the same for every attempt, after every restart, and no other step's."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether the step should end: for steps in threads, which cannot be interrupted."""
        ...

    def heartbeat(self, progress: object = None, /) -> None:
        """The step lives, and `progress` is kept for its next attempt (as of the next commit)."""
        ...

    def progress(self, returns: TypeForm[T], /) -> T | None:
        """What an earlier attempt gave to `heartbeat` last; None if nothing.

        Raises:
            DoesNotFit: it is not of that type.
        """
        ...


class StepCurrent:
    """What is the same for all attempts of steps."""

    __slots__ = ("cancelled",)
    replaying = False
    cancelled: bool


class FlowCurrent:
    """`current()` in a flow's own body."""

    __slots__ = ("_place",)
    step = None
    attempt = 0
    cancelled = False

    def __init__(self, place: Place) -> None:
        self._place = place

    @property
    def flow(self) -> str:
        """See `Current`."""
        return self._place.run.flow_name

    @property
    def id(self) -> str:
        """See `Current`."""
        return self._place.run.instance_id

    @property
    def parent(self) -> tuple[str, str] | None:
        """See `Current`."""
        return self._place.run.parent

    @property
    def restarted(self) -> bool:
        """See `Current`."""
        return self._place.run.restarted

    @property
    def replaying(self) -> bool:
        """See `Current`."""
        return self._place.run.replaying

    @property
    def key(self) -> str:
        """Only a step has one."""
        raise NotInFlow(
            "current().key is a step's idempotency key, and this is a flow's own body: ask for it inside the step"
        )

    def heartbeat(self, progress: object = None, /) -> None:
        """Only a step has one."""
        raise NotInFlow("current().heartbeat() is a step's, and this is a flow's own body: a flow needs none")

    def progress(self, returns: Any, /) -> Any:
        """Only a step has one."""
        raise NotInFlow("current().progress() is a step's, and this is a flow's own body: use a variable")


def current() -> Current:
    """Who am I, in a flow or in a step.

    Raises:
        NotInFlow: called elsewhere.
    """
    here: Any = scope.get()
    if type(here) is Place:
        in_flow("current()")
        return FlowCurrent(here)
    if here is not None:
        return here
    raise NotInFlow("current() was called outside a flow and outside a step")


class _SilentDuringReplay(logging.Filter):
    """Drops what a flow logs while it is run over what happened already."""

    def filter(self, record: logging.LogRecord) -> bool:
        here: Any = scope.get()
        if type(here) is not Place or running_loop() is not here.run.loop:
            return True
        record.flow, record.instance = here.run.flow_name, here.run.instance_id
        return not here.run.replaying


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
    """What this flow exposed last under `key`, None if nothing.

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


_Plain = Callable[..., Any]
