"""Processes on one SQLite file: killed, stopped and continued, stopped in mid-transaction; clients, messages."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import Engine, Handle, State
from perdure.errors import PerdureError
from perdure.model.records import Entry, Kind
from perdure.stores.sqlite import SqliteStore
from perdure.stores.sqlite.replicas import write_lock_holder
from tests.faults import worker
from tests.support.clock import until
from tests.support.world import eventually

ROOT = Path(__file__).parents[2]


class Processes:
    """Engines in processes of their own, on one file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "flows.db"
        self._all: list[subprocess.Popen[str]] = []

    def start(self, lease: float, *more: str) -> subprocess.Popen[str]:
        """The engine runs."""
        log = (self.folder / f"log{len(self._all)}").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.worker", self.database, self.folder / "ledger", str(lease), *more],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        log.close()
        self._all.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == str(process.pid), self.log(process)
        return process

    def log(self, process: subprocess.Popen[str]) -> str:
        return (self.folder / f"log{self._all.index(process)}").read_text()

    def by(self, pid: int) -> int:
        """How many steps the process ran."""
        ledger = self.folder / "ledger"
        return sum(line.startswith(f"{pid} ") for line in ledger.read_text().splitlines()) if ledger.exists() else 0

    def end(self) -> None:
        for process in self._all:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    processes.end()


@pytest.fixture
async def client(processes: Processes) -> AsyncIterator[Engine]:
    """A third process's engine, which runs nothing."""
    async with Engine(SqliteStore(processes.database), execute=False) as engine:
        yield engine


async def journal(client: Engine, handle: Handle[Any]) -> list[Entry]:
    store = client._store
    row = await store.instance(handle.flow, handle.id)
    assert row is not None
    (loaded,) = await store.load([row.uid])
    return loaded.entries


async def whole(client: Engine, handles: list[Handle[Any]], steps: int) -> None:
    """Every journal has every entry once."""
    for handle in handles:
        entries = await journal(client, handle)
        assert [e.seq for e in entries] == list(range(len(entries)))
        assert sum(e.kind == Kind.STEP for e in entries) == steps


def stop_outside_a_transaction(processes: Processes, pid: int) -> None:
    """The process is stopped, and holds no lock of the database."""
    for _ in range(1_000):
        os.kill(pid, signal.SIGSTOP)
        if write_lock_holder(str(processes.database)) != pid:
            return
        os.kill(pid, signal.SIGCONT)
    raise AssertionError("it was always in a transaction")


@pytest.mark.fault(1)
@pytest.mark.peer(2)
async def test_a_killed_process_is_taken_over_at_once(processes: Processes, client: Engine) -> None:
    first = processes.start(30)
    handles = [await client.start(worker.busy, 40, id=str(i)) for i in range(10)]
    await eventually(lambda: asyncio.sleep(0, processes.by(first.pid) > 20))
    second = processes.start(30)
    assert processes.by(second.pid) == 0
    first.kill()
    killed = time.monotonic()
    await eventually(lambda: asyncio.sleep(0, processes.by(second.pid) > 0))
    assert time.monotonic() - killed < 1.0
    for handle in handles:
        assert set(await handle.result(timeout=20)) == {first.pid, second.pid}
    await whole(client, handles, 40)
    assert processes.by(first.pid) + processes.by(second.pid) <= 40 * 10 + 10


@pytest.mark.fault(3)
@pytest.mark.peer(5, 27, 31)
async def test_a_stopped_process_is_taken_over_and_writes_nothing_more(processes: Processes, client: Engine) -> None:
    first = processes.start(1)
    handles = [await client.start(worker.busy, 60, id=str(i)) for i in range(5)]
    await eventually(lambda: asyncio.sleep(0, processes.by(first.pid) > 10))
    second = processes.start(1)
    stop_outside_a_transaction(processes, first.pid)
    done = processes.by(first.pid)
    results = [await handle.result(timeout=20) for handle in handles]
    journals = [await journal(client, handle) for handle in handles]
    os.kill(first.pid, signal.SIGCONT)
    await eventually(lambda: asyncio.sleep(0, "the lease was lost" in processes.log(first)))
    for result in results:
        turn = result.index(second.pid)
        assert result[turn:] == [second.pid] * (60 - turn)
    assert [await journal(client, handle) for handle in handles] == journals
    assert processes.by(first.pid) == done
    await whole(client, handles, 60)
    second.kill()
    assert await client.run(worker.busy, 3, id="after", timeout=10) == [first.pid] * 3  # it has joined again


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.fault(3, 22)
async def test_a_process_stopped_in_mid_transaction_is_named(processes: Processes, client: Engine) -> None:
    first = processes.start(2, "stop")
    async with Engine(SqliteStore(processes.database), lease=2) as engine:
        await client.start(worker.hangs, id="h")
        await until(lambda: is_stopped(first.pid), seconds=20, told=lambda: processes.log(first))

        async def hung() -> object:
            try:
                return (await engine.health()).hung
            except PerdureError as error:
                return error

        await eventually(hung, lambda seen: seen == (first.pid,), seconds=20)
        os.kill(first.pid, signal.SIGCONT)
        await eventually(hung, lambda seen: seen == (), seconds=20)


async def test_a_process_stopped_in_mid_transaction_is_killed_if_wanted(processes: Processes, client: Engine) -> None:
    first = processes.start(1, "stop")
    async with Engine(SqliteStore(processes.database), flows=worker.FLOWS, lease=1, kill_hung=True):
        handle = await client.start(worker.hangs, id="h")
        if (await handle.result(timeout=20)) == os.getpid() and first.poll() is None:
            return  # this engine was quicker; nothing hung
        assert first.wait(5) == -signal.SIGKILL
        assert await handle.state() is State.SUCCEEDED


@pytest.mark.fault(28)
@pytest.mark.peer(41)
async def test_a_message_through_one_process_wakes_a_flow_in_another(processes: Processes, client: Engine) -> None:
    first = processes.start(30)
    handle = await client.start(worker.echo, id="e")
    await eventually(handle.state, lambda state: state is State.SUSPENDED)
    took: list[float] = []
    for i in range(20):
        before, sent = processes.by(first.pid), time.monotonic()
        await handle.send(str(i))
        await eventually(lambda before=before: asyncio.sleep(0, processes.by(first.pid) > before))
        took.append(time.monotonic() - sent)
        await eventually(handle.state, lambda state: state is State.SUSPENDED)
    await handle.send("end")
    assert await handle.result(timeout=10) == [str(i) for i in range(20)]
    assert statistics.median(took) < 0.1, took
