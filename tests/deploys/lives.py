"""Lives of the corpus's flows: a first one that stops at every place, and later ones by other code, on SQLite files.

Each life is an engine of its own that dies at the end. What steps do to the world, and what every durable call gave to
the flow, is noted outside of the engine. As `python -m tests.deploys.lives` it is a process that plays lives on demand,
so that one can have another hash seed.
"""
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec

import perdure
from perdure import OutcomeUnknown, Retry, State, current, step
from perdure.api import step as library
from perdure.api.info import shown
from perdure.codec import decode, fits
from perdure.model.records import Entry, Instance, Kind, Loaded, Message, Pending
from perdure.stores.sqlite import SqliteStore
from tests.deploys.corpus import CASES, Cancel, Case, Event, Say
from tests.support.clock import ManualClock, until
from tests.support.world import World, eventually

ROOT = Path(__file__).parents[2]

# ---------------------------------------------------------------- outside: what steps do, and what calls give


class Outside:
    """What lies outside the flows of one life. Every value says which call it is for: "pay(1)#1", 1 being the life."""

    def __init__(self, life: str, *, scripted: bool) -> None:
        self.life = life
        self.scripted = scripted
        """A step hangs until the script lets it go on; else it is done at once."""
        self.hanging: dict[tuple[str, str], asyncio.Future[None]] = {}
        self.ran: list[tuple[str, str, str]] = []
        """Each attempt that was begun: root, key of the step, what was asked."""
        self.begun: set[str] = set()
        """The instances whose code has begun to run."""
        self.got: list[tuple[str, str]] = []
        """What a flow was given by a durable call: root, value."""
        self.wrong: list[str] = []
        """What a flow was given by a durable call, and is not for that call."""

    async def effect(self, name: str, args: tuple[Any, ...]) -> str:
        """A step's work."""
        me, asked = current(), label(name, args)
        self.ran.append((root(), me.key, asked))
        if self.scripted:
            await self._let_go(asked)
        if name == "shaky" and me.attempt <= args[0]:
            raise ConnectionError(f"{asked}#{self.life}")
        if name == "declined":
            raise ValueError(f"{asked}#{self.life}")
        return f"{asked}#{self.life}"

    async def _let_go(self, asked: str) -> None:
        place = (root(), asked)
        assert place not in self.hanging, f"{place} hangs twice: a script cannot tell them apart"
        self.hanging[place] = gate = asyncio.get_running_loop().create_future()
        try:
            await gate
        finally:
            del self.hanging[place]

    def hangs(self, root: str, token: str = "") -> asyncio.Future[None] | None:
        """The first step of this instance that hangs and is meant by the token."""
        for (whose, asked), gate in self.hanging.items():
            if whose == root and (not token or asked == token or asked.startswith(f"{token}(")):
                return gate
        return None

    def note(self, asked: str, got: object, fits: bool) -> None:
        """A durable call has given this to the flow."""
        self.got.append((root(), str(got)))
        if not fits:
            self.wrong.append(f"{root()}: {asked} got {got!r}")


def root() -> str:
    """The id of the instance that the script is about: the running one, its parent, or what its id begins with."""
    me = current()
    return (me.parent[1] if me.parent is not None else me.id).partition("-")[0]


def text(value: Any) -> str:
    """The same in every process."""
    if isinstance(value, set):
        words: list[str] = [str(one) for one in value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        return "{" + ", ".join(sorted(words)) + "}"
    return str(value)


def label(name: str, args: tuple[Any, ...]) -> str:
    """A call, in words."""
    return f"{name}({', '.join(map(text, args))})"


# ---------------------------------------------------------------- what a flow's source may call


Words = Callable[..., str]


def noted(outside: Outside, call: Callable[..., Any], words: Words, right: Callable[..., bool] | None = None) -> Any:
    """The durable call; what it gives is noted, with whether it fits what was asked."""

    async def noted_call(*args: Any, **options: Any) -> Any:
        got: Any
        try:
            got = await call(*args, **options)
        except Exception as error:
            outside.note(words(*args), error, describes(error, words(*args)) if right is None else right(error, *args))
            raise
        outside.note(words(*args), got, describes(got, words(*args)) if right is None else right(got, *args))
        return got

    # It counts as the library's own, so that a reason names the line of the flow and not the one above.
    noted_call.__code__ = noted_call.__code__.replace(co_filename=library.__file__)
    return noted_call


def describes(got: object, asked: str) -> bool:
    """Whether the value says that it is for this call."""
    if isinstance(got, OutcomeUnknown):
        return got.step == asked.partition("(")[0]
    return str(got).startswith(f"{asked}#")


def is_one_of(got: object, *forms: Any) -> bool:
    """Whether a receive may give it; a default here is None."""
    return isinstance(got, TimeoutError | None) or any(fits(got, form) for form in forms)


def namespace(outside: Outside) -> dict[str, Any]:
    """What a flow's source finds: the public names, and steps whose values say which call they are for."""

    def unit(name: str, **options: Any) -> Any:
        async def work(*args: Any) -> str:
            return await outside.effect(name, args)

        return noted(outside, step(name=name, **options)(work), lambda *args: label(name, args))

    async def look(*args: Any) -> str:
        return await outside.effect("look", args)

    def captured(work: Any, *args: Any) -> str:
        return label(work.__name__, args)

    def child(flow: Any, *args: Any) -> str:
        return label(flow.name, args)

    names = ["pay", "ship", "mail", "book", "fetch", "rate", "log", "undo", "check", "declined", "deliver"]
    found: dict[str, Any] = {name: getattr(perdure, name) for name in perdure.__all__}
    return found | {
        **{name: unit(name) for name in names},
        "anyio": anyio,
        "begun": lambda: outside.begun.add(root()),
        "capture": noted(outside, perdure.capture, captured),
        "look": look,
        "once": unit("once", at_most_once=True),
        "once_or_more": unit("once"),
        "other_once": unit("other_once", at_most_once=True),
        "quietly": noted(outside, perdure.capture, captured, lambda *_: True),
        "receive": noted(outside, perdure.receive, lambda *forms: f"receive {forms}", is_one_of),
        "run": noted(outside, perdure.run, child),
        "shaky": unit("shaky", retry=Retry(attempts=3, initial=10)),
        "stubborn": unit("shaky", retry=Retry(attempts=9, initial=5)),
    }


def flows(case: Case, change: str | None, outside: Outside) -> list[Any]:
    """The flow of the case, changed or not, and those beside it; compiled anew, as by a program that has just begun."""
    space = namespace(outside)
    exec(compile(case.text(change), case.file(change), "exec"), space)
    main = perdure.flow(name=case.name)(space["main"])
    return [main, *(value for value in space.values() if isinstance(value, perdure.FlowFunction))]


# ---------------------------------------------------------------- the first life


class Record(msgspec.Struct):
    """What is on disk of one instance."""

    name: str
    uid: bytes
    state: State
    reason: str | None
    journal: list[Entry]
    pending: list[Pending]
    inbox: list[Message]

    def values(self) -> list[str]:
        """What its steps gave."""
        steps = [e for e in self.journal if e.kind == Kind.STEP and not e.failed]
        return [decode(e.outcome) for e in steps if e.outcome is not None]

    def keys(self) -> set[str]:
        """The idempotency keys of its recorded steps."""
        return {f"{e.uid.hex()}.{e.run}.{e.key}" for e in self.journal if e.kind == Kind.STEP}


async def rows_of(engine: perdure.Engine, case: Case) -> dict[int, list[Instance]]:
    """By the place where it stopped: the instance, first, and those that it started."""
    rows = await engine._store.find(flow=None, states=None, since=None, after=None, limit=500)
    found = {int(row.id): [row] for row in rows if row.flow == case.name}
    starters = {row.uid.hex(): k for k, (row,) in found.items()}
    for row in rows:
        if row.flow != case.name:  # its id begins with that of the instance that started it, or is made of its uid
            starter = row.id.partition(".")[0]
            found[starters[starter] if starter in starters else int(row.id.partition("-")[0])].append(row)
    return found


async def family(engine: perdure.Engine, case: Case, k: int) -> list[Record]:
    """What is on disk of the instance that stopped there, and then of those that it started."""
    uids = [row.uid for row in (await rows_of(engine, case))[k]]
    return [
        Record(f"{row.flow} {row.id!r}", row.uid, shown(row), row.reason, one.entries, one.pending, one.inbox)
        for one in sorted(await engine._store.load(uids, budget=1 << 30), key=lambda one: uids.index(one.instance.uid))
        for row in [one.instance]
    ]


class First(msgspec.Struct):
    """A first life: how long it took, and what was on disk of the instance that lived through so many events."""

    seconds: float
    stops: dict[int, list[Record]]


class Pace:
    """Time passes when all lives wait for it."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._wanted: list[tuple[float, asyncio.Future[None]]] = []

    async def at(self, when: float) -> None:
        """It is that time."""
        done = asyncio.get_running_loop().create_future()
        self._wanted.append((when, done))
        await done

    async def conduct(self, lives: list[asyncio.Task[Any]]) -> None:
        """All lives have ended."""
        while left := [life for life in lives if not life.done()]:
            if len(self._wanted) < len(left):
                await asyncio.sleep(0.001)
                continue
            when = min(when for when, _ in self._wanted)
            self._clock.advance(max(0.0, when - self._clock.wall()))
            for wanted in [w for w in self._wanted if w[0] <= when]:
                self._wanted.remove(wanted)
                wanted[1].set_result(None)


def lasts(events: tuple[Event, ...]) -> float:
    return float(sum(e for e in events if isinstance(e, int | float)))


async def first_life(case: Case, folder: Path) -> First:
    """For each place of the script an instance lived up to there; then the engine died.

    Those that live longer begin earlier, so that all stop at the same time and none gets older than its script says.
    """
    outside = Outside("1", scripted=True)
    world = World("sqlite", folder)
    engine = await world.engine(*flows(case, None, outside), version="1")
    pace, begin = Pace(world.clock), world.clock.wall()

    async def marks(k: int, event: Event) -> list[int]:
        """Others when the event is on disk; the only trace of a time may be that a step begins again."""
        begun = sum(whose == str(k) for whose, _, _ in outside.ran) if isinstance(event, int) else 0
        records = await family(engine, case, k)
        return [begun, *(len(r.journal) for r in records), *(row.attempt for r in records for row in r.pending)]

    async def ready(k: int, event: Event) -> None:
        if isinstance(event, str):
            await until(lambda: outside.hangs(str(k), event), told=lambda: f"{k} {event} {list(outside.hanging)}")
        else:
            assert not outside.hangs(str(k)), "a script says when a step ends before it says something else"
            await world.parked(engine.handle(case.name, str(k)))

    async def live(k: int) -> None:
        now = begin + lasts(case.script) - lasts(case.script[:k])
        await pace.at(now)
        handle = await engine.start(case.name, id=str(k))
        for event in case.script[:k]:
            await ready(k, event)
            before = await marks(k, event)
            match event:
                case str():
                    gate = outside.hangs(str(k), event)
                    assert gate is not None
                    gate.set_result(None)
                case Say(message, name):
                    await handle.send(message, name=name)
                case Cancel():
                    await handle.cancel()
                case seconds:
                    now += seconds
                    await pace.at(now)
            await eventually(functools.partial(marks, k, event), before.__ne__)
        await ready(k, case.script[k])

    lives = [asyncio.create_task(live(k)) for k in case.stops]
    await pace.conduct(lives)
    await asyncio.gather(*lives)
    stops = {k: await family(engine, case, k) for k in case.stops}
    await world.crash(engine)
    return First(world.clock.wall() - begin, stops)


# ---------------------------------------------------------------- later lives


class Pages(SqliteStore):
    """Journals come in pages of one entry."""

    async def load(self, uids: Sequence[bytes], *, budget: int = 1) -> list[Loaded]:
        return await super().load(uids, budget=budget)

    async def entries(self, uid: bytes, run: int, after: int, *, budget: int = 1) -> tuple[list[Entry], bool]:
        return await super().entries(uid, run, after, budget=budget)


class Found(msgspec.Struct):
    """What became of one instance in a later life."""

    state: State
    """Blocked, if a child of it is."""
    result: str
    family: list[Record]
    ran: list[tuple[str, str]]
    """Key of the step and what was asked, of each attempt that was begun."""
    got: list[str]
    wrong: list[str]


class Later(msgspec.Struct):
    """A later life: when it ended, since the first one began, and what it did to each instance."""

    seconds: float
    found: dict[int, Found]


async def later_life(
    case: Case,
    change: str | None,
    folder: Path,
    seconds: float,
    *,
    version: str,
    only: Collection[int] | None = None,
    pages: bool = False,
) -> Later:
    """An engine with this code took over what is in the folder, and died when every instance had ended or was blocked.

    What the rest of the script says was said to them; with `only` it was said before, and it is these that end.
    """
    outside = Outside("2", scripted=False)
    world = World("sqlite", folder)
    if pages:
        world.store = lambda: Pages(world.path, world.system)
    begin = world.clock.wall()
    world.clock.advance(seconds)
    engine = await world.engine(*flows(case, change, outside), version=version)
    handles = {k: engine.handle(case.name, str(k)) for k in (case.stops if only is None else only)}
    waits = case.changes[change].waits if change is not None else set[int]()
    told: set[int] = set()
    for k, handle in handles.items() if only is None else ():
        for event in case.script[k:]:
            if isinstance(event, Say):
                await handle.send(event.message, name=event.name)
                told.add(k)
            elif isinstance(event, Cancel):
                await handle.cancel()
                told.add(k)

    def stands(rows: list[Instance]) -> State:
        state = shown(rows[0])
        return State.BLOCKED if not state.ended and any(row.state is State.BLOCKED for row in rows) else state

    async def over() -> bool:
        """Whether nothing more happens to any of them."""
        states = {k: stands(rows) for k, rows in (await rows_of(engine, case)).items() if k in handles}
        left = {k: state for k, state in states.items() if not state.ended and (only or state is not State.BLOCKED)}
        for k, state in left.items():
            if state is not State.SUSPENDED or (k in told and str(k) not in outside.begun):
                return False  # something moves, or is about to
        if left.keys() <= waits and all(str(k) in outside.begun for k in left):
            return True
        world.clock.advance(60)  # nobody does anything but wait
        return False

    await eventually(over, seconds=10)
    found: dict[int, Found] = {}
    for k, handle in handles.items():
        state = stands((await rows_of(engine, case))[k])
        found[k] = Found(
            state,
            await _result(handle, state),
            await family(engine, case, k),
            [(key, asked) for whose, key, asked in outside.ran if whose == str(k)],
            [value for whose, value in outside.got if whose == str(k)],
            [words for words in outside.wrong if words.startswith(f"{k}: ")],
        )
    await world.crash(engine)
    return Later(world.clock.wall() - begin, found)


async def _result(handle: perdure.Handle[Any], state: State) -> str:
    if not state.ended:
        return ""
    try:
        return repr(await handle.result(timeout=5))
    except (perdure.FlowFailed, perdure.FlowCancelled) as error:
        return f"{type(error).__name__}: {error.__cause__!r}"


# ---------------------------------------------------------------- in other processes


class Job(msgspec.Struct):
    """A life to be played; without `version` it is a first one."""

    case: str
    change: str | None
    folder: str
    seconds: float = 0.0
    version: str = ""
    only: list[int] | None = None


async def play(job: Job) -> First | Later:
    case, folder = CASES[job.case], Path(job.folder)
    if not job.version:
        return await first_life(case, folder)
    return await later_life(case, job.change, folder, job.seconds, version=job.version, only=job.only)


class Process:
    """A process with a hash seed of its own that plays lives."""

    def __init__(self, hash_seed: int) -> None:
        environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "tests.deploys.lives"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment
        )

    def play(self, job: Job, form: Any) -> Any:
        """The life, as First or Later."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: PT018
        stdin.write(msgspec.json.encode(job) + b"\n")
        stdin.flush()
        line = stdout.readline()
        assert line, f"the process ended with {self._process.wait()}"
        return msgspec.json.decode(line, type=form)

    def close(self) -> None:
        """The process has ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: PT018
        stdin.close()
        self._process.wait(10)
        stdout.close()


def main() -> None:
    for line in sys.stdin.buffer:
        life = asyncio.run(play(msgspec.json.decode(line, type=Job)))
        sys.stdout.buffer.write(msgspec.json.encode(life) + b"\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
