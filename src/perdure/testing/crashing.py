"""`crash_everywhere`: a flow is run once, and then once for each point of its journal and each way of failing there.

Plays are made by `perdure.testing.plays`; here is which there are, and what they are compared by.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from perdure.api.flow import unwrap
from perdure.api.handle import Handle
from perdure.model.records import State
from perdure.testing.blame import Watch
from perdure.testing.loops import apart
from perdure.testing.plays import Effects, Ending, Fault, Mode, Play, Script, play
from perdure.testing.reach import Memory
from perdure.testing.referred import referred
from perdure.testing.report import Difference, line_in, plain, report
from perdure.testing.stubs import Stubs
from perdure.testing.vain import Stuck

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
    stubs: Mapping[Any, Callable[..., Any]] | None = None,
    same: Callable[[Any, Any], bool] | None = None,
    check: Callable[[Ending], object] | None = None,
    crashes: int = 1,
    duplicates: bool = False,
) -> R:
    """A crash at any point of the flow makes no difference; gives the result of the run without one.

    The flow runs undisturbed, in virtual time on a store in memory, and then once for every commit of that run and every
    way of failing there: killed before the commit, killed after it, the commit done and reported as unknown, the lease
    lost right before it; and killed at every wait inside a step. After each a fresh engine (or the same, if it lives)
    goes on from the journal. Two more runs: once more undisturbed, since what is not the same then cannot be compared;
    and unloaded at every wait, so that it is replayed there. Compared are the end, what is exposed, and `effects`.

    Steps run for real, once more wherever a crash makes them: let them work on something that the test can look at, or
    stub them. All runs are in this process. Data in globals that the flow's own code changes, and no step, is put back
    before each "process" begins, as a new one would have it, and caches that it fills are emptied; what steps change is
    the outside world, and stays. Sync steps run where the loop runs.

    Args:
        flow: the flow; children that it names are found by themselves.
        messages: sent to it, in this order, right after it was started, by the process that is crashed; with a key each.
            An `Outgoing` brings its own key and name; its id is not looked at.
        drive: what else the outside does: called once per run with a handle, in a process that is not crashed. It may
            sleep (virtual time), send, cancel and look; the run lasts until it has ended as well.
        effects: what the steps have done to the world, as a list, dict or set (or several, in a tuple): it is emptied
            before every run and compared after it, lists without regard to order. Or a pair (reset, look) of functions.
        stubs: what is done instead of steps, or of functions given to `capture` and `transaction`: by these, or names.
        same: whether two results (or errors) are as good as each other; by default they must be equal.
        check: instead of comparing ends: called with how each run ended, and raises AssertionError if that is wrong.
        crashes: 2: also a second crash at every point of what follows the first (the runs are squared).
        duplicates: messages are sent without keys, so that a sender that begins anew sends them again.

    Raises:
        PromiseBroken: a crash has made a difference; it names the point, the difference, the lines to blame.
        Stuck: the undisturbed run does not end by itself: a message is missing, or it is blocked.
        ValueError: the options do not fit together, or a stub is for no step that ran.
        The flow's own error, if it fails in every run; and what `drive` raises.
    """
    function, positional = unwrap(flow, args)
    if isinstance(function, str):
        raise TypeError(f"crash_everywhere needs the flow itself, not its name {function!r}")
    if crashes not in (1, 2):
        raise ValueError(f"crashes={crashes}: 1 or 2")
    if same is not None and check is not None:
        raise ValueError("check= compares nothing: give same= or check=, not both")
    known, world = Stubs() if stubs else None, Effects.of(effects)
    for step, fake in (stubs or {}).items():
        cast("Stubs", known).put(step, fake=fake)
    memory = Memory(referred(function), (*world.given, drive, check))
    script = Script(function, positional, tuple(messages), drive, world, known, duplicates, memory)
    try:
        return await _Trial(script, same or _equal, check).run(crashes)
    finally:
        memory.forget()


@dataclass(frozen=True)
class _Trial:
    """All plays of one script."""

    script: Script
    same: Callable[[Any, Any], bool]
    check: Callable[[Ending], object] | None

    async def run(self, crashes: int) -> Any:
        """Gives the result of the first play, or raises its error. Between plays other tasks of the loop get their turn."""
        script, memory = self.script, self.script.memory
        watch = Watch(memory.look, lines=False) if memory else None
        calm = await apart(lambda: play(script, watch=watch, loud=True))
        if calm.ending is None:
            raise Stuck(plain(f"{script.flow.name} does not end without any crash: {calm.stuck}"))
        if script.stubs is not None and (unused := script.stubs.unused()):
            ran = ", ".join(dict.fromkeys(call.name for call in calm.calls)) or "none"
            raise ValueError(f"stubs for {', '.join(unused)}: no such step ran; those that did: {ran}")
        if self.check is not None:
            self.check(calm.ending)
        memory.learn(calm.changes)
        await self._compare(calm, second := await self._play(), ())
        await self._compare(calm, await self._play(unload=True), (), unload=True)
        points = range(1, second.commits[0] + 1)
        faults = [(Fault(1, point, mode),) for point in points for mode in ONE_CRASH]
        faults += [(Fault(1, point, "inside"),) for point in range(1, second.waits[0] + 1)]
        for one in faults:
            await self._compare(calm, await self._play(one), one)
        for first in [Fault(1, point, "before") for point in points] if crashes == 2 else []:
            for point in range(1, (await self._play((first,))).commits[1] + 1):
                two = (first, Fault(2, point, "before"))
                await self._compare(calm, await self._play(two), two)
        if calm.ending.error is not None:
            raise calm.ending.error
        return calm.ending.result

    async def _play(self, faults: tuple[Fault, ...] = (), *, unload: bool = False) -> Play:
        try:
            return await apart(lambda: play(self.script, faults, unload=unload))
        except Exception as error:
            error.add_note(
                f"It was raised in a run with {', '.join(map(str, faults)) or 'no crash'}, and not in the first."
            )
            raise

    async def _compare(self, calm: Play, other: Play, faults: tuple[Fault, ...], *, unload: bool = False) -> None:
        why = self._difference(calm, other)
        if why is not None:
            raise await apart(lambda: self._broken(why, faults, unload))

    def _difference(self, calm: Play, crashed: Play) -> Difference | None:
        """What a crash has changed; None: nothing."""
        was, now = calm.ending, crashed.ending
        assert was is not None  # noqa: S101  or it would be stuck
        if crashed.swallows:
            return Difference(
                "it cannot be unloaded: a task of it swallows its cancellation",
                line=crashed.swallows, because="Let CancelledError out: except Exception, or raise at the end.",
            )  # fmt: skip
        if now is None:
            line = line_in(crashed.stuck or "")
            return Difference("it does not end any more", crashed.stuck or "", _outcome(was), line=line)
        if self.check is not None:
            try:
                self.check(now)
            except AssertionError as error:
                said = str(error) or traceback.extract_tb(error.__traceback__)[-1].line
                return Difference(f"check says: {said}", _outcome(now), _outcome(was))
        elif (other := self._other_ending(was, now)) is not None:
            return other
        return _other_arguments(crashed)

    def _other_ending(self, was: Ending, now: Ending) -> Difference | None:
        if now.state is not was.state:
            return Difference("it ends in another way", _outcome(now), _outcome(was))
        pair = (was.result, now.result) if was.error is None else (was.error, now.error)
        if not self.same(*pair):
            alike = (
                ", though it looks alike: give its class an __eq__, or same=" if repr(pair[0]) == repr(pair[1]) else ""
            )
            return Difference(f"its result is another{alike}", _outcome(now), _outcome(was))
        if now.exposed != was.exposed:
            return Difference("it exposes something else", repr(now.exposed), repr(was.exposed))
        if not _alike(was.effects, now.effects):
            return Difference("its effects are others", repr(now.effects), repr(was.effects))
        return None

    def _broken(self, why: Difference, faults: tuple[Fault, ...], unload: bool) -> PromiseBroken:
        """Both runs are played once more, looking at every line, so that the report can name one."""
        script, memory = self.script, self.script.memory

        def traced(faults: tuple[Fault, ...], unload: bool) -> Play:
            return play(script, faults, unload=unload, watch=Watch(lambda: (script.effects.look(), memory.kept())))

        calm, crashed = traced((), unload=False), traced(faults, unload=unload)
        point = ", then ".join(crashed.faults)
        point = point or ("unloaded at every wait" if unload else "run once more without any crash")
        if script.duplicates and len(crashed.commits) > 1:
            point += ", its messages sent again"
        text, lines = report(referred(script.flow), point, why, calm, crashed, memory.names())
        return PromiseBroken(text, point=point, lines=lines)


def _other_arguments(crashed: Play) -> Difference | None:
    """A step that ran again got what it had got before: its key tells the other side that it is the same."""
    first: dict[str, Any] = {}
    for call in crashed.calls:
        before = first.setdefault(call.key, call)
        if before.digest != call.digest:
            return Difference(
                f"step {call.name} ran again with other arguments, and the other side takes it for the same",
                repr(call.args), repr(before.args), "at first", key=call.key,
            )  # fmt: skip
    return None


def _alike(a: Any, b: Any) -> bool:
    """Equal, lists without regard to order: a crash may change who is first among steps that run side by side."""
    if a == b:
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        mine, others = cast("dict[Any, Any]", a), cast("dict[Any, Any]", b)
        return mine.keys() == others.keys() and all(_alike(mine[key], others[key]) for key in mine)
    if isinstance(a, tuple) and isinstance(b, tuple):
        parts = cast("tuple[Any, ...]", a), cast("tuple[Any, ...]", b)
        return len(parts[0]) == len(parts[1]) and all(map(_alike, *parts))
    if not isinstance(a, list) or not isinstance(b, list):
        return False
    left = list(cast("list[Any]", b))
    for item in cast("list[Any]", a):
        found = next((number for number, other in enumerate(left) if _alike(item, other)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _outcome(ending: Ending) -> str:
    if ending.state is State.SUCCEEDED:
        return repr(ending.result)
    return f"{ending.state.value} with {ending.error!r}"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, BaseException):
        return type(a) is type(b) and str(a) == str(b)
    try:
        return bool(a == b)
    except Exception as error:
        raise TypeError(f"results of type {type(a).__name__} cannot be compared by ==: give same= or check=") from error
