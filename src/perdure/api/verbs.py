"""What a flow does to other instances: the engine's verbs, journaled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from perdure.api.flow import AnyFlow, FlowFunction, name_of, unwrap
from perdure.api.handle import Handle
from perdure.api.outgoing import Outgoing
from perdure.api.scope import Place, Started, finish, in_flow
from perdure.model.tx import Tx

if TYPE_CHECKING:
    from typing import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

R = TypeVar("R")


@overload
async def start(
    flow: str, /, *args: object, id: str | None = None, detached: bool = False, queue: str | None = None
) -> Handle[Any]: ...
@overload
async def start(
    flow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
    /,
    *args: Unpack[Ts],
    id: str | None = None,
    detached: bool = False,
    queue: str | None = None,
) -> Handle[R]: ...
async def start(
    flow: Any, /, *args: Any, id: str | None = None, detached: bool = False, queue: str | None = None
) -> Handle[Any]:
    """The instance is asked for; it exists when the flow's entry is durable. What only the store knows, such as that
    the id was started with other arguments, comes out at the handle's `result`.

    Args:
        id: of the new instance; without it one is made of this run and operation. One that exists with the same
            arguments is used as it is, and does not become a child.
        detached: it lives on when this flow ends; else it is cancelled then.
        queue: it runs where this queue is served; None: on this flow's own; "": on none.

    Raises:
        TypeError, ValueError: the arguments do not fit the flow; the id is empty or too long.
        NotEncodable, PayloadTooLarge, NotInFlow.
    """
    place = in_flow("start()")
    return await _start(place, flow, args, id, detached=detached, queue=queue)


async def _start(
    place: Place, flow: Any, args: tuple[Any, ...], id: str | None, *, detached: bool, queue: str | None
) -> Handle[Any]:  # fmt: skip
    function, positional = unwrap(flow, args)
    started: Started = await finish(place.run.start(place, function, positional, id, detached=detached, queue=queue))
    return Handle(started.flow, started.id, started=started)


@overload
async def run(flow: str, /, *args: object, id: str | None = None, queue: str | None = None) -> Any: ...
@overload
async def run(
    flow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
    /,
    *args: Unpack[Ts],
    id: str | None = None,
    queue: str | None = None,
) -> R: ...
async def run(flow: Any, /, *args: Any, id: str | None = None, queue: str | None = None) -> Any:
    """The result of a child. Its own exception is raised here; if the wait is cancelled, so is the child.

    Its `id` and `queue` are as for `start`.
    """
    place = in_flow("run()")
    function, positional = unwrap(flow, args)
    started: Started = await finish(place.run.start(place, function, positional, id, detached=False, queue=queue))
    return await finish(place.run.wait(place, started, child=True, timeout=None))


async def start_many(
    flow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
    items: Iterable[tuple[str, Unpack[Ts]]],
    /,
    *,
    queue: str | None = None,
) -> Sequence[Handle[R]]:
    """All instances are asked for as children, each (id, *arguments); handles in the order given. Raises as `start`."""
    place = in_flow("start_many()")
    return [await _start(place, flow, item[1:], item[0], detached=False, queue=queue) for item in items]


async def send(
    flow: AnyFlow | str, id: str, message: object, /, *, key: str | None = None, name: str | None = None
) -> None:
    """The message is on its way: it is in the inbox of (flow, id) when this flow's entry is durable, exactly once.

    Args:
        key: delivered once in that instance's life, whoever else sends it.
        name: makes it a named event, for `receive(..., name=)`.

    Raises:
        NotEncodable, PayloadTooLarge, NotInFlow.
    """
    place = in_flow("send()")
    await finish(place.run.send(place, name_of(flow), id, message, key, name))


async def send_many(flow: AnyFlow | str, items: Iterable[Outgoing], /) -> None:
    """All messages are on their way, in the order given."""
    place = in_flow("send_many()")
    for item in items:
        await finish(place.run.send(place, name_of(flow), item.id, item.message, item.key, item.name))


@overload
def handle(flow: FlowFunction[..., R], id: str, /) -> Handle[R]: ...
@overload
def handle(flow: str, id: str, /) -> Handle[Any]: ...
def handle(flow: Any, id: str, /) -> Handle[Any]:
    """A handle of (flow, id), whether or not it exists, whose methods are journaled."""
    in_flow("handle()")
    return Handle(name_of(flow), id)


async def cancel(flow: AnyFlow | str, id: str, reason: str | None = None, /) -> None:
    """The instance is asked to end when this flow's entry is durable. Nothing happens to one that has ended or is not
    there.
    """
    place = in_flow("cancel()")
    await finish(place.run.cancel(place, name_of(flow), id, reason))


async def continue_as_new(*args: object) -> NoReturn:
    """This run is over and the flow's next run begins with these arguments, under the same id, with an empty journal.

    One transaction: messages that no `receive` took move on (a stream of the next run reads them again), keys of
    messages stay known, what is exposed stays readable from outside, children that are not detached are cancelled, the
    old entries are gone. Who waits for the result waits on. Call it where nothing catches `BaseException`; `finally`
    blocks run, and may run steps.

    Raises:
        TypeError: the arguments do not fit the flow.
        NotEncodable, PayloadTooLarge, NotInFlow.
    """
    raise in_flow("continue_as_new()").run.next_run(args)


def patched(id: str, /) -> bool:
    """Whether this run is new enough for a change of the flow's code; costs nothing, and the first answer per id holds.

    True in runs that had not come this far when the change was deployed, False in those whose journal goes on behind
    this point. Write `if patched("tax-2027"): await new(...)`, `else: await old(...)`, and drop the old branch when no
    instance from before is left. A step that was begun here and had no entry yet counts as not done, unless it is
    at-most-once.

    Raises:
        NotInFlow: called outside a flow's body.
    """
    return in_flow("patched()").run.patched(id)


async def transaction(work: Callable[[Tx, Unpack[Ts]], Awaitable[R]], /, *args: Unpack[Ts], id: str | None = None) -> R:
    """`work(tx, *args)` has run on the flow's own database, and its writes are on disk together with its entry: once.

    Neither happens without the other, whatever crashes. The instance takes nothing else meanwhile, so keep it short: it
    holds the database's only write lock on SQLite, where `work` may await nothing but `tx` and has 500 ms. What it
    raises is raised here, recorded, and nothing of it was written.

    Args:
        id: an identity of its own, unique in this run.

    Raises:
        TimeoutError: it took too long; nothing was written.
        NotSupported: the store has no transactions (`memory://`).
        PermissionError: the SQL touches the store's own tables, or ends the transaction.
    """
    place = in_flow("transaction()")
    return await finish(place.run.transaction(place, work, args, id))
