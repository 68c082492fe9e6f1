"""Messages: `receive` takes one, `messages` reads them all as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from perdure import codec
from perdure.api.scope import Place, finish, in_flow
from perdure.api.step import NOT_GIVEN
from perdure.clock import Duration, seconds
from perdure.errors import DoesNotFit, UnknownType

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
U = TypeVar("U")
D = TypeVar("D")
R_co = TypeVar("R_co", covariant=True)


@overload
async def receive(
    t: type[T], /, *, name: str | None = None, where: Callable[[T], bool] | None = None, timeout: Duration | None = None
) -> T: ...
@overload
async def receive(
    t: type[T], /, *, name: str | None = None, where: Callable[[T], bool] | None = None, timeout: Duration, default: D
) -> T | D: ...
@overload
async def receive(
    t: type[T],
    t2: type[T2],
    /,
    *,
    name: str | None = None,
    where: Callable[[T | T2], bool] | None = None,
    timeout: Duration | None = None,
) -> T | T2: ...
@overload
async def receive(
    t: type[T],
    t2: type[T2],
    /,
    *,
    name: str | None = None,
    where: Callable[[T | T2], bool] | None = None,
    timeout: Duration,
    default: D,
) -> T | T2 | D: ...
@overload
async def receive(
    t: type[T],
    t2: type[T2],
    t3: type[T3],
    /,
    *,
    name: str | None = None,
    where: Callable[[T | T2 | T3], bool] | None = None,
    timeout: Duration | None = None,
) -> T | T2 | T3: ...
@overload
async def receive(
    t: type[T],
    t2: type[T2],
    t3: type[T3],
    /,
    *,
    name: str | None = None,
    where: Callable[[T | T2 | T3], bool] | None = None,
    timeout: Duration,
    default: D,
) -> T | T2 | T3 | D: ...
@overload
async def receive(
    *types: TypeForm[T],
    name: str | None = None,
    where: Callable[[T], bool] | None = None,
    timeout: Duration | None = None,
) -> T: ...
@overload
async def receive(
    *types: TypeForm[T],
    name: str | None = None,
    where: Callable[[T], bool] | None = None,
    timeout: Duration,
    default: D,
) -> T | D: ...
async def receive(
    *types: Any,
    name: str | None = None,
    where: Callable[[Any], bool] | None = None,
    timeout: Duration | None = None,
    default: Any = NOT_GIVEN,
) -> Any:
    """The next message that fits, taken from the inbox: each message is taken once.

    Messages are looked at in the order in which they came, those that came before they were asked for included.

    Args:
        types: which types fit (classes, unions, generics).
        name: takes only messages sent with this name; without it only those sent without one.
        where: which of them fit; asked once per message, never at replay. Its error is raised here.
        timeout: how long to wait at most; 0 takes what is there.
        default: what to return instead of raising when that is over.

    Raises:
        TimeoutError: nothing came in time, and no `default` was given.
        NotInFlow: called outside a flow's body.
    """
    place = in_flow("receive()")
    _need_types("receive", types)
    if default is not NOT_GIVEN and timeout is None:
        raise TypeError("receive(default=) needs timeout=: without it the default would never be used")
    operation: Any = place.run.receive(place, types, name, where, None if timeout is None else seconds(timeout))
    try:
        return await finish(operation)
    except TimeoutError:
        if default is not NOT_GIVEN and operation.expired:
            return default
        raise


def _need_types(what: str, types: tuple[Any, ...]) -> None:
    if not types:
        raise TypeError(
            f"{what}() needs at least one type, e.g. {what}(FundsCaptured); for any message: {what}(object)"
        )


Operator = Callable[[], Callable[[Any], Sequence[Any]]]
"""Makes the state for one reading: from each element to the elements that follow from it. Raises _Last with the last
ones.
"""


class Stream(Generic[R_co]):
    """The messages of this run that fit, from its beginning, taken by `receive` or not; every reading has its own
    cursor. Those that no `receive` took are the next run's as well.

    Operators are pure and run again at replay. Nothing is read before a terminal call: `first`, `last`, `list`,
    `async for`.
    """

    __slots__ = ("limit", "name", "operators", "types")

    def __init__(
        self, types: tuple[Any, ...], name: str | None, operators: tuple[Operator, ...] = (), limit: float | None = None
    ) -> None:
        self.types = types
        self.name = name
        self.operators = operators
        self.limit = limit

    def _with(self, operator: Operator) -> Stream[Any]:
        return Stream(self.types, self.name, (*self.operators, operator), self.limit)

    def of_types(self, *types: TypeForm[T]) -> Stream[T]:
        """Only elements of these types."""
        _need_types("of_types", types)
        return self._with(_filter(lambda v: any(codec.fits(v, t) for t in types)))

    def where(self, f: Callable[[R_co], bool], /) -> Stream[R_co]:
        """Only elements for which `f` is true."""
        return self._with(_filter(f))

    def map(self, f: Callable[[R_co], U], /) -> Stream[U]:
        """`f` of every element."""
        return self._with(lambda: lambda v: (f(v),))

    def scan(self, seed: U, f: Callable[[U, R_co], U], /) -> Stream[U]:
        """The running fold: `f(seed, first)`, `f(that, second)`, and so on."""

        def begin() -> Callable[[Any], Sequence[Any]]:
            state = seed

            def each(value: Any) -> Sequence[Any]:
                nonlocal state
                state = f(state, value)
                return (state,)

            return each

        return self._with(begin)

    def take(self, n: int, /) -> Stream[R_co]:
        """The first `n` elements (at least 1); then the stream ends."""
        if n < 1:
            raise ValueError(f"take({n}): at least 1")

        def begin() -> Callable[[Any], Sequence[Any]]:
            left = n

            def each(value: Any) -> Sequence[Any]:
                nonlocal left
                left -= 1
                if left == 0:
                    raise _Last((value,))
                return (value,)

            return each

        return self._with(begin)

    def skip(self, n: int, /) -> Stream[R_co]:
        """All but the first `n` elements."""

        def begin() -> Callable[[Any], Sequence[Any]]:
            left = n

            def each(value: Any) -> Sequence[Any]:
                nonlocal left
                left -= 1
                return () if left >= 0 else (value,)

            return each

        return self._with(begin)

    def take_until(self, f: Callable[[R_co], bool], /) -> Stream[R_co]:
        """The elements before the first one for which `f` is true; then the stream ends."""

        def each(value: Any) -> Sequence[Any]:
            if f(value):
                raise _Last(())
            return (value,)

        return self._with(lambda: each)

    def skip_until(self, f: Callable[[R_co], bool], /) -> Stream[R_co]:
        """The elements from the first one on for which `f` is true."""

        def begin() -> Callable[[Any], Sequence[Any]]:
            on = False

            def each(value: Any) -> Sequence[Any]:
                nonlocal on
                on = on or bool(f(value))
                return (value,) if on else ()

            return each

        return self._with(begin)

    def distinct(self, key: Callable[[R_co], object] | None = None, /) -> Stream[R_co]:
        """Every element whose key (by default itself) did not come before."""

        def begin() -> Callable[[Any], Sequence[Any]]:
            seen: set[bytes] = set()

            def each(value: Any) -> Sequence[Any]:
                mark = codec.encode(value if key is None else key(value))
                if mark in seen:
                    return ()
                seen.add(mark)
                return (value,)

            return each

        return self._with(begin)

    def chunk(self, n: int, /) -> Stream[Sequence[R_co]]:
        """Lists of `n` elements; an incomplete one at the end is given when the stream ends."""
        if n < 1:
            raise ValueError(f"chunk({n}): at least 1")
        return self._with(lambda: _Chunk(n))

    def until(self, timeout: Duration, /) -> Stream[R_co]:
        """The stream ends this long after the reading began; of several the shortest counts."""
        limit = seconds(timeout)
        return Stream(self.types, self.name, self.operators, limit if self.limit is None else min(limit, self.limit))

    async def first(self) -> R_co:
        """The first element.

        Raises:
            TimeoutError: the time of `until` was over before.
            LookupError: the stream ended before.
        """
        reading = _Reading(self, "first")
        try:
            async for value in reading:
                return value
        finally:
            reading.close()
        raise reading.nothing()

    async def last(self) -> R_co:
        """The last element, when the stream has ended (by `take`, `take_until` or `until`). Raises as `first`."""
        values = await self.list()
        if not values:
            raise _nothing(self.limit)
        return values[-1]

    async def list(self) -> Sequence[R_co]:
        """All elements, when the stream has ended (by `take`, `take_until` or `until`)."""
        reading = _Reading(self, "list")
        try:
            return [value async for value in reading]
        finally:
            reading.close()

    async def __aiter__(self) -> AsyncIterator[R_co]:
        reading = _Reading(self, "async for")
        try:
            async for value in reading:
                yield value
        finally:
            reading.close()


class _Last(Exception):
    """These are the last elements of a stream."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values


class _Chunk:
    """The state of `chunk`; `rest` is what the end of the stream leaves."""

    __slots__ = ("_n", "_values")

    def __init__(self, n: int) -> None:
        self._n = n
        self._values: list[Any] = []

    def __call__(self, value: Any) -> Sequence[Any]:
        self._values.append(value)
        return self.rest() if len(self._values) == self._n else ()

    def rest(self) -> Sequence[Any]:
        """The elements gathered so far, as one chunk, if any."""
        values, self._values = self._values, []
        return (values,) if values else ()


def _filter(f: Callable[[Any], object]) -> Operator:
    return lambda: lambda v: (v,) if f(v) else ()


def _nothing(limit: float | None) -> Exception:
    return (
        TimeoutError(f"no such message within {limit:g} s")
        if limit is not None
        else LookupError("the stream ended without an element")
    )


class _Reading:
    """One reading of a stream: a cursor into the run's messages, and the operators' state."""

    def __init__(self, stream: Stream[Any], what: str) -> None:
        self._place: Place = in_flow(f"messages().{what}")
        self._stream = stream
        self._stages = [operator() for operator in stream.operators]
        self._cursor = 0
        self._ready: list[Any] = []
        self._ended = False
        self._expired = False
        self._waiting: asyncio.Future[None] | None = None
        run = self._place.run
        run.open_stream()
        limit = stream.limit
        self._timer = None if limit is None else run.loop.call_later(max(0.0, limit), self._expire)

    def close(self) -> None:
        """The time limit is off."""
        if self._timer is not None:
            self._timer.cancel()

    def nothing(self) -> Exception:
        """Why there is no element."""
        return _nothing(self._stream.limit if self._expired else None)

    def _expire(self) -> None:
        self._expired = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def __aiter__(self) -> _Reading:
        return self

    async def __anext__(self) -> Any:
        while not self._ready:
            if self._ended:
                raise StopAsyncIteration
            row = self._place.run.arrival(self._cursor)
            if row is not None:
                self._cursor += 1
                self._feed(*row)
            elif self._expired:
                self._end([])
            else:
                self._waiting = self._place.run.arrived()
                await self._waiting
        return self._ready.pop(0)

    def _feed(self, name: str | None, body: bytes | None) -> None:
        stream = self._stream
        if name != stream.name:
            return
        try:
            value: Any = None if body is None else self._place.run.decode(body)
        except (UnknownType, DoesNotFit):
            return  # of no type that could be asked for here; `receive` leaves it in the inbox with a warning
        if any(codec.fits(value, t) for t in stream.types):
            self._through([value], 0)

    def _through(self, values: Sequence[Any], stage: int) -> None:
        """The elements go through the operators from `stage` on."""
        for value in values:
            if self._ended:
                return
            if stage == len(self._stages):
                self._ready.append(value)
                continue
            try:
                following = self._stages[stage](value)
            except _Last as last:
                self._through(last.values, stage + 1)
                self._end_after(stage + 1)
                return
            self._through(following, stage + 1)

    def _end(self, values: Sequence[Any]) -> None:
        self._through(values, 0)
        self._end_after(0)

    def _end_after(self, stage: int) -> None:
        """The elements before `stage` have ended: what the later operators hold back is given."""
        if self._ended:
            return
        for i in range(stage, len(self._stages)):
            held = self._stages[i]
            if isinstance(held, _Chunk):
                self._through(held.rest(), i + 1)
        self._ended = True


@overload
def messages(t: type[T], /, *, name: str | None = None) -> Stream[T]: ...
@overload
def messages(t: type[T], t2: type[T2], /, *, name: str | None = None) -> Stream[T | T2]: ...
@overload
def messages(*types: TypeForm[T], name: str | None = None) -> Stream[T]: ...
def messages(*types: Any, name: str | None = None) -> Stream[Any]:
    """The messages of this run that fit, as a stream: it reads from the beginning and takes nothing.

    Args:
        types: which types fit (classes, unions, generics).
        name: reads only messages sent with this name; without it only those sent without one.
    """
    _need_types("messages", types)
    return Stream(types, name)
