"""Nothing is left behind, wherever it runs and however it ends."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from perdure import current, delay, flow, logger, receive, step
from perdure.engine import collector
from perdure.testing.crashing import PromiseBroken, Stuck, crash_everywhere
from perdure.testing.loops import Time, VirtualLoop

done: dict[str, int] = {}
interrupt: Callable[[], object] = int


@step
async def put(value: int) -> int:
    done[current().key] = value
    interrupt()
    await asyncio.sleep(1)
    return value


@flow
async def three() -> int:
    found = await put(1) + await put(2)
    await delay(60)
    return found + await put(3)


@flow
async def never() -> None:
    await receive(int)


@flow
async def doubled() -> None:
    done[f"{len(done)}"] = 0
    await put(1)


def state() -> tuple[object, ...]:
    gc.collect()
    return (
        len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        threading.active_count(), list(logging.getLogger("perdure").filters), gc.get_threshold(), sys.gettrace(),
        sys.getprofile(), sys.get_asyncgen_hooks(), len(asyncio.all_tasks()),
    )  # fmt: skip


async def fails(what: Callable[[], Coroutine[Any, Any, object]], error: type[BaseException]) -> None:
    with pytest.raises(error):
        await what()


async def drive_that_fails(handle: object) -> None:
    await asyncio.sleep(30)
    raise LookupError


async def test_nothing_is_left_behind() -> None:
    await crash_everywhere(three, effects=done)
    before = state()
    await crash_everywhere(three, effects=done)
    await fails(lambda: crash_everywhere(never), Stuck)
    await fails(lambda: crash_everywhere(doubled, effects=done), PromiseBroken)
    await fails(lambda: crash_everywhere(three, drive=drive_that_fails), LookupError)
    await asyncio.sleep(0)
    assert state() == before


async def test_the_collector_counts_engines_right() -> None:
    before = collector._engines
    try:
        await crash_everywhere(three, effects=done)
        assert collector._engines == before
    finally:
        collector._engines = before


def test_a_loop_comes_to_rest_however_late_it_is() -> None:
    time = Time()
    time.now = 1e9
    loop = VirtualLoop(time)
    looked = 0

    def late() -> float:
        nonlocal looked
        looked += 1
        if looked > 1000:
            loop.stop()
        return time.now

    loop.time = late  # type: ignore[method-assign]
    loop.call_later(0, int)
    loop.run_until_idle()
    loop.close()
    assert looked <= 1000


async def test_a_tracer_is_there_again() -> None:
    lines: list[int] = []

    def tracer(frame: Any, event: str, arg: Any) -> None:
        lines.append(frame.f_lineno)

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        await fails(lambda: crash_everywhere(doubled, effects=done), PromiseBroken)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)


async def test_other_tasks_of_the_loop_go_on_between_the_plays() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await crash_everywhere(three, effects=done)
    task.cancel()
    assert turns > 20


async def test_it_can_be_cancelled_and_timed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    began = 0

    def count() -> None:
        nonlocal began
        began += 1
        if began == 10:
            task.cancel()

    monkeypatch.setattr(f"{__name__}.interrupt", count)
    before = state()
    task = asyncio.create_task(crash_everywhere(three, effects=done))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert began < 20
    assert state() == before


async def test_two_at_once() -> None:
    mine: dict[str, int] = {}

    @step
    async def put_mine(value: int) -> int:
        mine[current().key] = value
        return value

    @flow
    async def two() -> int:
        return await put_mine(1) + await put_mine(2)

    assert await asyncio.gather(crash_everywhere(three, effects=done), crash_everywhere(two, effects=mine)) == [6, 3]


def test_by_asyncio_run_without_a_loop_before() -> None:
    assert asyncio.run(crash_everywhere(three, effects=done)) == 6


def test_by_anyio() -> None:
    anyio = pytest.importorskip("anyio")
    assert anyio.run(lambda: crash_everywhere(three, effects=done)) == 6


@pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed")
def test_by_uvloop() -> None:
    uvloop = importlib.import_module("uvloop")
    assert uvloop.run(crash_everywhere(three, effects=done)) == 6


PROGRAM = """
import asyncio, gc, os, signal, sys, logging
from perdure import flow, step

runs = 0
count = [0]

@step
async def put(value: int) -> int:
    global runs
    runs += 1
    if runs == 7:
        {interrupt}
    return value

@flow
async def three() -> int:
    count[0] += 1
    return await put(1) + await put(2) + await put(3)

from perdure.testing.crashing import crash_everywhere

try:
    asyncio.run(crash_everywhere(three))
except KeyboardInterrupt:
    print("interrupted", runs, count, sys.gettrace(), logging.getLogger("perdure").filters, len(os.listdir("/proc/self/fd")))
"""


def run(*program: str, **environment: str) -> str:
    child = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *program], env={**os.environ, **environment},
        capture_output=True, text=True, timeout=50, check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    # Playing takes a while, of which asyncio's debug mode tells, on a slow machine.
    assert [line for line in child.stderr.splitlines() if not line.startswith("Executing <Handle apart.")] == []
    return child.stdout


@pytest.mark.parametrize(
    ("how", "runs"),
    [("raise KeyboardInterrupt", 7), ("os.kill(os.getpid(), signal.SIGINT)", 9)],
    ids=["raised", "by ctrl-c"],
)
def test_an_interrupt_ends_it_and_leaves_nothing(how: str, runs: int, tmp_path: Path) -> None:
    """Ctrl-C is asyncio's affair, which cancels the task: the play that runs ends."""
    (program := tmp_path / "program.py").write_text(PROGRAM.format(interrupt=how))
    assert run(str(program)).startswith(f"interrupted {runs} [0] None []")


DEBUG = """
import asyncio
from tests.testing.crashing.test_right_flows import gathers, with_generators, world
from perdure.testing.crashing import crash_everywhere

for body in (gathers, with_generators):
    print(len(asyncio.run(crash_everywhere(body, effects=world))))
"""


def test_in_debug_mode() -> None:
    assert run("-c", "import logging; logging.disable()\n" + DEBUG, PYTHONASYNCIODEBUG="1") == "5\n3\n"


# ------------------------------------------------------------ what steps may use


@step
async def by_socket(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"hello\n")
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer.decode()


@flow
async def asks_a_server(port: int) -> str:
    return await by_socket(port) + await by_socket(port)


async def test_steps_that_use_sockets_wait_for_them() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def serve() -> None:
        server.settimeout(0.1)
        while not stop.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            with connection:
                if line := connection.makefile("rb").readline():
                    connection.sendall(line)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert await crash_everywhere(asks_a_server, server.getsockname()[1]) == "hello\nhello\n"
    finally:
        stop.set()
        thread.join()
        server.close()


@step
async def in_threads() -> int:
    loop = asyncio.get_running_loop()
    return await asyncio.to_thread(threading.get_ident) + await loop.run_in_executor(None, threading.get_ident)


@flow
async def uses_threads() -> int:
    return await in_threads()


async def test_what_steps_give_to_threads_runs_in_this_one() -> None:
    assert await crash_everywhere(uses_threads) == 2 * threading.get_ident()


@flow
async def speaks() -> None:
    logger.info("begun")
    await put(1)
    logger.info("ended")


async def test_what_the_flow_logs_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await crash_everywhere(speaks, effects=done)
    assert {record.message for record in caplog.records if record.name == "perdure.flow"} == {"begun", "ended"}


@flow
async def forgets_a_task() -> int:
    asyncio.create_task(receive(int))  # noqa: RUF006
    return await put(1)


async def test_what_the_engine_says_of_the_undisturbed_run_is_heard_once(caplog: pytest.LogCaptureFixture) -> None:
    await crash_everywhere(forgets_a_task, effects=done)
    (record,) = [record for record in caplog.records if record.name == "perdure"]
    assert "returned with unfinished tasks" in record.message


def test_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    asyncio.run(crash_everywhere(three, effects=done))
    assert signal.getsignal(signal.SIGINT) is before
