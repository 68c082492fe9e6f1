"""The beginning and the end of an engine without a loop: errors, drains, interrupts, forks, the end of the process."""
# pyright: reportPrivateUsage=false

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from perdure import (
    EngineClosed,
    State,
    StoreUnavailable,
    flow,
    receive,
    step,
)
from perdure.engine.sync_engine import SyncEngine
from perdure.stores.memory import MemoryStore
from tests.support.sync import (
    LIMIT_S,
    adds,
    engine_threads,
    every_call,
    every_handle_call,
    every_panel_call,
    until,
    waiting,
    waits,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store of each kind."""
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'sync.db'}"


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not engine_threads()


# ---------------------------------------------------------------- start and end


def test_errors_of_the_options_are_raised_at_once() -> None:
    with pytest.raises(ValueError, match="is no store"):
        SyncEngine("nowhere")
    with pytest.raises(ValueError, match="two flows are named"):
        SyncEngine("memory://", flows=[adds, flow(name="adds")(waits.fn)])


def test_errors_of_the_start_up_are_raised_where_it_is_entered_and_it_may_be_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    engine = SyncEngine(f"sqlite:///{folder / 'x.db'}", flows=(f for f in [adds]))
    entered = False
    with pytest.raises(StoreUnavailable), engine:
        entered = True
    assert not entered
    assert not engine_threads()
    engine = SyncEngine(f"sqlite:///{folder / 'x.db'}", flows=(f for f in [adds]))
    with pytest.raises(StoreUnavailable):
        engine.open()
    with pytest.raises(EngineClosed, match="is not running"):
        engine.start(adds, 1, id="1")
    folder.mkdir()
    engine.open()
    assert engine.run(adds, 1, id="1") == 11
    engine.close()


def test_opened_by_many_threads_at_once_it_runs_once() -> None:
    engine = SyncEngine("memory://", flows=[adds])
    together = threading.Barrier(8)

    def request(n: int) -> int:
        together.wait(LIMIT_S)
        engine.open()
        assert len(engine_threads()) == 1
        return engine.run(adds, n, id=str(n))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(request, range(8))) == [n + 10 for n in range(8)]
    engine.open()
    engine.close()


def test_before_it_is_opened_and_after_it_is_closed() -> None:
    engine = SyncEngine("memory://", flows=[adds, waits])
    for call in every_call(engine).values():
        with pytest.raises(EngineClosed, match=r"is not running; use it inside `with engine:`, or open\(\) it"):
            call()
    with engine:
        handle, panel = engine.start(waits, id="1"), engine.panel(waits, "1")
    for call in (*every_call(engine).values(), *every_handle_call(handle).values(), *every_panel_call(panel).values()):
        with pytest.raises(EngineClosed, match="was closed"):
            call()
    engine.close()
    for again in (engine.open, engine.__enter__):
        with pytest.raises(EngineClosed, match="make a new one"):
            again()
    never = SyncEngine("memory://")
    never.close()
    with pytest.raises(EngineClosed):
        never.open()


def test_who_waits_when_it_is_closed_is_told(url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        with SyncEngine(url, flows=[waits]) as engine:
            handles = engine.start_many(waits, [(str(n),) for n in range(8)])
            waiters = [pool.submit(handle.result) for handle in handles]
            until(lambda: waiting(engine) == 8)
        for waiter in waiters:
            with pytest.raises(EngineClosed):
                waiter.result(LIMIT_S)


class AwayStore(MemoryStore):
    """Its `check` never comes back."""

    async def check(self) -> None:
        await asyncio.Event().wait()


def test_a_call_that_nothing_answers_is_told_when_the_engine_is_closed() -> None:
    with ThreadPoolExecutor(1) as pool:
        with SyncEngine(AwayStore()) as engine:
            waiter = pool.submit(lambda: engine.health(timeout=1000))
            until(lambda: waiting(engine) == 1)
        with pytest.raises(EngineClosed):
            waiter.result(LIMIT_S)


def test_calls_while_it_is_closed_by_another_thread_are_answered_or_refused(tmp_path: Path) -> None:
    """None hangs, and what was acknowledged is there."""
    url = f"sqlite:///{tmp_path / 'x.db'}"
    acknowledged: list[str] = []

    def sends(n: int) -> None:
        try:
            for i in range(1_000_000):
                engine.start(adds, i, id=f"{n}.{i}")
                acknowledged.append(f"{n}.{i}")
        except EngineClosed:
            pass

    with ThreadPoolExecutor(4) as pool:
        with SyncEngine(url, flows=[adds]) as engine:
            jobs = [pool.submit(sends, n) for n in range(4)]
            until(lambda: len(acknowledged) > 20)
        for job in jobs:
            job.result(LIMIT_S)
    with SyncEngine(url, execute=False) as engine:
        assert {info.id for info in engine.find(adds)} >= set(acknowledged)


def test_the_end_drains_and_another_engine_goes_on(tmp_path: Path) -> None:
    url, began, may_end, ran = f"sqlite:///{tmp_path / 'x.db'}", threading.Event(), threading.Event(), list[str]()

    @step
    def slow() -> str:
        ran.append("slow")
        began.set()
        assert may_end.wait(LIMIT_S)
        return "recorded"

    @flow
    async def slowly() -> str:
        return f"{await slow()} {await receive(str)}"

    with SyncEngine(url, flows=[slowly]) as engine:
        engine.start(slowly, id="1")
        assert began.wait(LIMIT_S)
        life = engine._life
        assert life is not None
        closing = threading.Thread(target=engine.close)
        closing.start()
        until(life._stop.is_set)
        engine.send(slowly, "1", "go on")  # while it drains it still takes what others say
        may_end.set()
        closing.join(LIMIT_S)
    with SyncEngine(url, flows=[slowly]) as engine:
        assert engine.handle(slowly, "1").result(timeout=LIMIT_S) == "recorded go on"
    assert ran == ["slow"]


def test_an_error_in_the_block_is_raised_and_the_engine_is_closed() -> None:
    with pytest.raises(ZeroDivisionError), SyncEngine("memory://", flows=[adds]) as engine:
        engine.run(adds, 1, id=str(1 / 0))
    with pytest.raises(EngineClosed):
        engine.start(adds, 1, id="1")


def test_a_loop_that_does_not_close_well_is_told_and_no_error(caplog: pytest.LogCaptureFixture) -> None:
    class Stubborn(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait, cancel_futures=cancel_futures)
            raise RuntimeError("no thread can be made")

    @step
    async def lends() -> None:
        asyncio.get_running_loop().set_default_executor(Stubborn(1))

    @flow
    async def lending() -> None:
        await lends()

    with SyncEngine("memory://", flows=[lending]) as engine:
        engine.run(lending, id="1")
    assert "did not close well: no thread can be made" in caplog.text


# ---------------------------------------------------------------- interrupts, forks, the end of the process


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start_program() -> Iterator[Start]:
    """Starts the code, after the preamble, as a program of its own; none outlives the test."""
    with ExitStack() as stack:

        def start(code: str, *args: object) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", PREAMBLE + code, *map(str, args)],
                cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def said(process: subprocess.Popen[str]) -> str:
    """Its next line; the test's own time limit ends a wait in vain."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(f"it ended: {ended(process)}")
    return line.strip()


def ended(process: subprocess.Popen[str], say: str = "") -> tuple[int, str, str]:
    """How it ended, and what it still said."""
    out, errors = process.communicate(say, timeout=LIMIT_S)
    return process.returncode, out, errors


PREAMBLE = """
import asyncio, os, sys, threading, time
from perdure import EngineClosed, ForkedEngine, flow, receive, step
from perdure.engine.sync_engine import SyncEngine
from perdure.stores.memory import MemoryStore

def say(*what):
    print(*what, flush=True)

def when(condition, then):
    def watch():
        while not condition():
            time.sleep(0.002)
        then()
    threading.Thread(target=watch, daemon=True).start()

@flow(name="waits")
async def waits() -> str:
    return await receive(str)

began = threading.Event()

@step(name="brief")
async def brief() -> str:
    began.set()
    await asyncio.sleep(0.2)
    return "brief"

@step(name="endless")
async def endless() -> str:
    say("step")
    await asyncio.Event().wait()
    return "never"

@flow(name="briefly")
async def briefly() -> str:
    return await brief()

@flow(name="endlessly")
async def endlessly() -> str:
    return await endless()

def opened(*flows, **options):
    return SyncEngine("sqlite:///" + sys.argv[1], flows=flows, **options)
"""


def test_an_interrupt_ends_the_waiting_and_cancels_nothing(start_program: Start, tmp_path: Path) -> None:
    program = start_program(
        """
with opened(waits) as engine:
    handle = engine.start(waits, id="1")
    when(lambda: engine._life._answers, lambda: say("waiting"))
    try:
        handle.result()
    except KeyboardInterrupt:
        say("interrupted", len(engine._life._answers), handle.state().value)
    waiters = engine._life._engine._member.waiters
    when(lambda: not waiters._waiting, lambda: say("nobody waits"))
    sys.stdin.readline()
    handle.send("it")
    say(handle.result(timeout=10))
""",
        tmp_path / "x.db",
    )
    assert said(program) == "waiting"
    program.send_signal(signal.SIGINT)
    assert re.fullmatch("interrupted 0 (running|suspended)", said(program))
    assert said(program) == "nobody waits"
    assert ended(program, "go on\n") == (0, "it\n", "")


def test_a_second_interrupt_cuts_the_drain_short_and_nothing_is_lost(start_program: Start, tmp_path: Path) -> None:
    program = start_program(
        """
with opened(endlessly, drain=1000) as engine:
    when(lambda: engine._life._stop.is_set(), lambda: say("drains"))
    engine.run(endlessly, id="1")
""",
        tmp_path / "x.db",
    )
    assert said(program) == "step"
    program.send_signal(signal.SIGINT)
    assert said(program) == "drains"
    program.send_signal(signal.SIGINT)
    code, _, errors = ended(program)
    assert code == -signal.SIGINT  # as any program that an interrupt ends
    assert "stopping hard" in errors

    @step(name="endless")
    async def ends() -> str:
        return "at last"

    @flow(name="endlessly")
    async def endlessly() -> str:
        return await ends()

    with SyncEngine(f"sqlite:///{tmp_path / 'x.db'}", flows=[endlessly]) as engine:
        assert engine.handle(endlessly, "1").result(timeout=LIMIT_S) == "at last"


def test_an_interrupt_ends_a_start_up_that_hangs(start_program: Start) -> None:
    program = start_program("""
class Away(MemoryStore):
    async def open(self):
        say("opens")
        await asyncio.Event().wait()

try:
    SyncEngine(Away()).open()
except KeyboardInterrupt:
    say("interrupted", [t.name for t in threading.enumerate() if t.name == "perdure-engine"])
""")
    assert said(program) == "opens"
    program.send_signal(signal.SIGINT)
    assert ended(program) == (0, "interrupted []\n", "")


def test_an_interrupt_while_the_thread_is_made_leaves_none_behind(start_program: Start) -> None:
    """The thread is begun, and who begins it has not come back from that."""
    program = start_program("""
class Slow(threading.Thread):
    def start(self):
        super().start()
        raise KeyboardInterrupt

engine = SyncEngine("memory://", flows=[waits])
threading.Thread, kept = Slow, threading.Thread
try:
    engine.open()
except KeyboardInterrupt:
    threading.Thread = kept
    say([t.name for t in threading.enumerate() if t.name == "perdure-engine"])
with engine:
    say(engine.start(waits, id="1").id)
""")
    assert ended(program) == (0, "[]\n1\n", "")


def test_where_no_thread_is_to_be_had_that_is_said(start_program: Start) -> None:
    program = start_program("""
import resource
engine = SyncEngine("memory://", flows=[waits])
threading.stack_size(2**30)
resource.setrlimit(resource.RLIMIT_AS, (2**30, resource.RLIM_INFINITY))
try:
    engine.open()
except RuntimeError as error:
    say(error)
threading.stack_size(0)
engine.open()
engine.close()
""")
    assert ended(program) == (0, "can't start new thread\n", "")


def test_a_forked_child_is_told_and_opens_what_was_not_open(start_program: Start, tmp_path: Path) -> None:
    program = start_program(
        """
from tests.support.sync import every_call, every_handle_call, every_panel_call

made = SyncEngine("sqlite:///" + sys.argv[2], flows=[briefly])  # as a module does that is loaded before the server forks
with opened(waits, briefly) as engine:
    handle = engine.start(waits, id="1")
    found, panel = engine.find(), engine.panel(waits, "1")
    calls = [*every_call(engine).items(), *every_handle_call(handle).items(), *every_panel_call(panel).items()]
    calls += [("find on", lambda: next(found)), ("open", engine.open)]
    child = os.fork()
    if child == 0:
        for name, call in calls:
            try:
                call()
            except ForkedEngine as error:
                assert "fork first, and open the engine in the child" in str(error)
            else:
                say("not refused", name)
        engine.close()  # it is the parent's
        with made:
            say("child", made.run(briefly, id="c", timeout=10))
        sys.exit(0)  # through the parent's `with` and what is done at the end of a process
    assert os.waitpid(child, 0)[1] == 0
    handle.send("it goes on")
    say("parent", handle.result(timeout=10), engine.run(briefly, id="p", timeout=10))
""",
        tmp_path / "parent.db",
        tmp_path / "child.db",
    )
    assert ended(program) == (0, "child brief\nparent it goes on brief\n", "")


def test_what_is_acknowledged_in_a_fork_of_who_had_the_database_open_is_kept(
    start_program: Start, tmp_path: Path
) -> None:
    """Refused or kept: the parent's last close takes the log away under the child, whose locks SQLite thinks it has."""
    program = start_program(
        """
parent = opened(waits)
parent.open()
closed, tell = os.pipe()
child = os.fork()
if child == 0:
    os.close(tell)
    own = opened(waits)
    try:
        own.open()
    except ForkedEngine:
        say("refused")
        os._exit(0)
    say("opened")
    os.read(closed, 1)
    own.start(waits, id="1")
    say("acknowledged")
    os._exit(0)
sys.stdin.readline()
parent.close()
os.close(tell)
os.waitpid(child, 0)
""",
        tmp_path / "x.db",
    )
    answer = said(program)
    _, out, _ = ended(program, "go on\n")
    assert (answer, out) in [("refused", ""), ("opened", "acknowledged\n")]
    with SyncEngine(f"sqlite:///{tmp_path / 'x.db'}", execute=False) as engine:
        assert [info.id for info in engine.find()] == ([] if answer == "refused" else ["1"])


def test_it_is_closed_at_the_end_of_the_process(start_program: Start, tmp_path: Path) -> None:
    program = start_program(
        """
engine = opened(waits, briefly)
engine.open()
engine.start(waits, id="2")
engine.start(briefly, id="1")
assert began.wait(10)
""",
        tmp_path / "x.db",
    )
    assert ended(program) == (0, "", "")
    assert os.listdir(f"{tmp_path / 'x.db'}-replicas") == ["turnstile"]  # it has left; else its file is there

    @step(name="brief")
    async def again() -> str:
        raise AssertionError("the step is run again, so it was not drained")

    @flow(name="briefly")
    async def briefly() -> str:
        return await again()

    with SyncEngine(f"sqlite:///{tmp_path / 'x.db'}", flows=[briefly]) as engine:
        assert engine.handle("briefly", "1").result(timeout=LIMIT_S) == "brief"
        assert engine.handle("waits", "2").state() is State.SUSPENDED
