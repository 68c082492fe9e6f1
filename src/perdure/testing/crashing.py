"""`crash_everywhere`: a flow is run once, and then once for each point of its journal and each way of failing there.

Plays are made by `perdure.testing.plays`; here is which there are, and what they are compared by.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from perdure.api.flow import unwrap
from perdure.api.handle import Handle
from perdure.testing.loops import apart
from perdure.testing.plays import Effects, Fault, Mode, Play, Script, Stuck, play
from perdure.testing.report import report, where

if TYPE_CHECKING:
    from typing import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

R = TypeVar("R")

ONE_CRASH: Final[tuple[Mode, ...]] = ("before", "after", "unknown", "lease")


class PromiseBroken(AssertionError):
    """A crash has made a difference. The text says where it happened, which difference, and which line made it."""

    def __init__(self, text: str, *, point: str, lines: Sequence[str]) -> None:
        super().__init__(text)
        self.point = point
        """Where it was crashed, in words."""
        self.lines = list(lines)
        """file:line of what is to blame, as far as that could be found; the first is the best guess."""


async def crash_everywhere(
    flow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
    /,
    *args: Unpack[Ts],
    messages: Iterable[object] = (),
    drive: Callable[[Handle[R]], Awaitable[object]] | None = None,
    effects: Any = None,
    same: Callable[[Any, Any], bool] | None = None,
    crashes: int = 1,
    duplicates: bool = False,
) -> R:
    """A crash at any point of the flow makes no difference; gives the result of the run without one.

    The flow runs once undisturbed, in virtual time on a store in memory, and then once for every commit of that run and
    every way of failing there: killed before the commit, killed after it, the commit done and reported as unknown, the
    lease lost right before it. After each a fresh engine (or the same, if it lives) goes on from the journal. Compared are
    the outcome, what is exposed, and `effects`. One more run unloads the flow at every wait, so that it is replayed then.

    Steps run for real, once more wherever a crash makes them: let them work on something that the test can look at. All
    runs are in this process: what it holds in memory, globals included, is there after a crash, unlike a real one. A
    step that waits for sockets is waited for in real time; sync steps run where the loop runs.

    Args:
        flow: the flow; children that it names are found by themselves.
        messages: sent to it, in this order, right after it was started.
        drive: called with the handle when the instance is started, in every process: what else the outside does. It may
            sleep (virtual time), send, look. It begins anew after a crash, so its messages want a `key`.
        effects: what the steps have done to the world, as a list, dict or set (or several, in a tuple): it is emptied
            before every run and compared after it, lists without regard to order. Or a pair (reset, look) of functions.
        same: whether two results (or errors) are as good as each other; by default they must be equal.
        crashes: 2: also a second crash at every point of what follows the first (the runs are squared).
        duplicates: messages are sent without keys, so that a sender that begins anew sends them again.

    Raises:
        PromiseBroken: with the point, the difference, the line to blame and both timelines.
        Stuck: the undisturbed run does not end by itself: a message is missing, or it is blocked.
        The error of `drive`, if it raises.
    """
    function, positional = unwrap(flow, args)
    if isinstance(function, str):
        raise TypeError(f"crash_everywhere needs the flow itself, not its name {function!r}")
    if crashes not in (1, 2):
        raise ValueError(f"crashes={crashes}: 1 or 2")
    script = Script(function, positional, tuple(messages), drive, Effects.of(effects), duplicates)
    return await apart(lambda: _everywhere(script, same or _equal, crashes))


def _everywhere(script: Script, same: Callable[[Any, Any], bool], crashes: int) -> Any:
    calm = play(script, ())
    if calm.stuck is not None:
        raise Stuck(f"{script.flow.name} does not end without any crash: {calm.stuck}")
    for faults, unload in _plans(script, calm, crashes):
        crashed = play(script, faults, unload=unload)
        why = difference(calm, crashed, same)
        if why is not None:
            raise _broken(script, faults, unload, why)
    if calm.error is not None:
        raise calm.error
    return calm.result


def _plans(script: Script, calm: Play, crashes: int) -> Iterator[tuple[tuple[Fault, ...], bool]]:
    yield (), True
    for point, mode in itertools.product(range(1, calm.commits[0] + 1), ONE_CRASH):
        yield (Fault(1, point, mode),), False
    if crashes == 2:
        for point in range(1, calm.commits[0] + 1):
            first = Fault(1, point, "before")
            for second in range(1, play(script, (first,)).commits[1] + 1):
                yield (first, Fault(2, second, "before")), False


def difference(calm: Play, crashed: Play, same: Callable[[Any, Any], bool]) -> str | None:
    """What a crash has changed, in words; None: nothing."""
    if crashed.stuck is not None:
        return f"it does not end any more: {crashed.stuck}"
    if crashed.state != calm.state:
        return f"it has {_outcome(crashed)}, and without a crash it has {_outcome(calm)}"
    if calm.error is not None:
        if not same(calm.error, crashed.error):
            return f"it has {_outcome(crashed)}, and without a crash it has {_outcome(calm)}"
    elif not same(calm.result, crashed.result):
        return f"its result is {crashed.result!r}, and without a crash {calm.result!r}"
    if calm.exposed != crashed.exposed:
        return f"it exposes {crashed.exposed!r}, and without a crash {calm.exposed!r}"
    if not _alike(calm.effects, crashed.effects):
        return f"its effects are {crashed.effects!r}, and without a crash {calm.effects!r}"
    return _other_arguments(crashed)


def _other_arguments(crashed: Play) -> str | None:
    """A step that ran again got what it had got before: its key tells the other side that it is the same."""
    first: dict[str, tuple[Any, ...]] = {}
    for name, key, args in crashed.calls:
        if first.setdefault(key, args) != args:
            return f"step {name} ran again with the arguments {args!r}, and the first time with {first[key]!r}"
    return None


def _alike(a: Any, b: Any) -> bool:
    """Equal, lists without regard to order: a crash may change who is first among steps that run side by side."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        parts = cast("tuple[Any, ...]", a), cast("tuple[Any, ...]", b)
        return len(parts[0]) == len(parts[1]) and all(map(_alike, *parts))
    if not isinstance(a, list) or not isinstance(b, list):
        return bool(a == b)
    left = list(cast("list[Any]", b))
    for item in cast("list[Any]", a):
        if item not in left:
            return False
        left.remove(item)
    return not left


def _outcome(play: Play) -> str:
    return f"{play.state}" + (f" with {play.error!r}" if play.error is not None else "")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, BaseException):
        return type(a) is type(b) and str(a) == str(b)
    return bool(a == b)


def _broken(script: Script, faults: tuple[Fault, ...], unload: bool, why: str) -> PromiseBroken:
    """Both runs are played once more, looking at every line, so that the report can name one."""
    calm = play(script, (), traced=True)
    crashed = play(script, faults, unload=unload, traced=True)
    point = where(faults, unload=unload)
    text, lines = report(script.flow.name, point, why, calm, crashed)
    return PromiseBroken(text, point=point, lines=lines)
