"""Handles: one instance as seen from outside or from another flow."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from perdure.api.current import checked
from perdure.api.scope import Outside, Place, Started, finish, in_flow, scope
from perdure.clock import Duration, seconds
from perdure.errors import FlowCancelled, FlowFailed
from perdure.model.records import State

if TYPE_CHECKING:
    from typing_extensions import TypeForm

R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")


class Handle(Generic[R_co]):
    """One instance. In a flow every method is journaled; outside it asks the store.

    From an engine, `result`, `state` and `exposed` are those of one life, through all its runs: of the one that `start`
    started, or that `handle()` finds first. All else is about the life that (flow, id) has when it is called.
    """

    __slots__ = ("_outside", "_started", "_uid", "flow", "id")

    def __init__(
        self,
        flow: str,
        id: str,
        *,
        uid: bytes | None = None,
        outside: Outside | None = None,
        started: Started | None = None,
    ) -> None:
        self.flow = flow
        self.id = id
        self._uid = uid
        self._outside = outside
        self._started = started or Started(flow, id)

    def __repr__(self) -> str:
        return f"<handle of {self.flow} {self.id!r}>"

    def _place(self, what: str) -> Place | None:
        """Where the call is made: a flow's place, or None outside."""
        if self._outside is None or type(scope.get()) is Place:
            return in_flow(f"handle.{what}()")
        return None

    async def _life(self) -> tuple[Outside, bytes]:
        """The engine, and the life that this handle is bound to: from now on, if it was to none."""
        outside = self._outside
        assert outside is not None  # noqa: S101  who is in a flow does not come here
        if self._uid is None:
            self._uid = await outside.life_of(self.flow, self.id)
        return outside, self._uid

    async def result(self, *, timeout: Duration | None = None) -> R_co:
        """The instance's result, when it has ended. Waiting may be repeated, and cancelling or timing out cancels
        nothing.

        Raises:
            FlowFailed: it ended with an exception, which is the `__cause__`.
            FlowCancelled: it was cancelled.
            TimeoutError: it has not ended within `timeout`.
            InstanceNotFound: there is none (any more).
            AlreadyStarted: (in a flow) it existed and had been started with other arguments.
            EngineClosed: the engine was closed while waiting.
        """
        limit = None if timeout is None else seconds(timeout)
        place = self._place("result")
        if place is None:
            outside, uid = await self._life()
            return await outside.result(self.flow, self.id, uid, limit)
        operation: Any = place.run.wait(place, self._started, child=False, timeout=limit)
        try:
            return await finish(operation)
        except BaseException as error:
            if operation.own_failure and not isinstance(error, asyncio.CancelledError):
                raise FlowFailed(self.flow, self.id, f"{type(error).__name__}: {error}") from error
            raise

    async def send(self, message: object, /, *, key: str | None = None, name: str | None = None) -> None:
        """The message is in the instance's inbox, on disk (in a flow: when its entry is durable). With a `key` it is
        delivered once in the instance's life, however often it is sent.

        Raises:
            NotEncodable, PayloadTooLarge.
        """
        place = self._place("send")
        if place is None:
            assert self._outside is not None  # noqa: S101
            await self._outside.send_one(self.flow, self.id, message, key, name)
        else:
            await finish(place.run.send(place, self.flow, self.id, message, key, name))

    async def state(self) -> State:
        """Where the instance stands now.

        Raises:
            InstanceNotFound.
        """
        place = self._place("state")
        if place is None:
            outside, uid = await self._life()
            return await outside.state_of(self.flow, self.id, uid)
        return await finish(place.run.read(place, "state", self.flow, self.id, None))

    @overload
    async def exposed(self) -> Mapping[str, Any]: ...
    @overload
    async def exposed(self, key: str, /, *, returns: TypeForm[T]) -> T | None: ...
    async def exposed(self, key: Any = None, /, *, returns: Any = None) -> Any:  # pyright: ignore[reportInconsistentOverload]
        """All that the instance exposes; or the value under `key` (None if there is none), checked against `returns`.

        Raises:
            InstanceNotFound.
            DoesNotFit: the value is not of the type asked for.
        """
        place = self._place("exposed")
        if place is None:
            outside, uid = await self._life()
            values = await outside.exposed_by(self.flow, self.id, uid)
        else:
            values = cast("dict[str, Any]", await finish(place.run.read(place, "exposed", self.flow, self.id, key)))
        return (
            values if key is None else checked(values.get(key), returns, f"exposed {key!r} of {self.flow} {self.id!r}")
        )

    async def cancel(self, reason: str | None = None, /) -> None:
        """The request to end is on disk (in a flow: when its entry is durable); the instance gets it as
        `asyncio.CancelledError`. Nothing happens to an ended one.

        Raises:
            InstanceNotFound: (outside a flow) there is none.
        """
        place = self._place("cancel")
        if place is None:
            assert self._outside is not None  # noqa: S101
            await self._outside.cancel_one(self.flow, self.id, reason)
        else:
            await finish(place.run.cancel(place, self.flow, self.id, reason))


def raise_outcome(flow: str, id: str, state: State, outcome: Any, error: BaseException | None) -> Any:
    """The result of an ended instance, or the error that tells how it ended."""
    if state is State.SUCCEEDED:
        return outcome
    if state is State.CANCELLED:
        raise FlowCancelled(flow, id, outcome)
    raise FlowFailed(flow, id, f"{type(error).__name__}: {error}") from error
