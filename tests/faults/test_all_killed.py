"""All processes on one SQLite file are killed at once and started again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from perdure import Engine
from perdure.stores.sqlite import SqliteStore
from tests.faults import worker
from tests.faults.test_processes import Processes, whole
from tests.support.world import eventually


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    processes.end()


@pytest.fixture
async def client(processes: Processes) -> AsyncIterator[Engine]:
    """This process's engine, which runs nothing."""
    async with Engine(SqliteStore(processes.database), execute=False) as engine:
        yield engine


@pytest.mark.fault(2, 1, 28)
@pytest.mark.peer(2)
async def test_all_are_killed_and_started_again_and_nothing_is_lost(processes: Processes, client: Engine) -> None:
    def done() -> list[str]:
        ledger = processes.folder / "ledger"
        return ledger.read_text().splitlines() if ledger.exists() else []

    first = [processes.start(30) for _ in range(2)]
    parked = [await client.start(worker.echo, id=f"parked {i}") for i in range(50)]
    busy = [await client.start(worker.busy, 60, id=str(i)) for i in range(20)]
    await eventually(lambda: asyncio.sleep(0, len(done()) > 100))
    for process in first:
        process.kill()
    began, before = time.monotonic(), len(done())
    for _ in range(2):
        processes.start(30)
    await eventually(lambda: asyncio.sleep(0, len(done()) > before), seconds=10)
    assert time.monotonic() - began < 6  # python's own start among it; nobody waits for a lease of 30
    for handle in parked:
        await handle.send("go on")
        await handle.send("end")
    for handle in busy:
        assert len(await handle.result(timeout=30)) == 60
    for handle in parked:
        assert await handle.result(timeout=30) == ["go on"]
    await whole(client, busy, 60)
    ran = Counter(line.split(" ", 1)[1] for line in done())
    assert len(ran) == 20 * 60 + 50
    assert sum(ran.values()) <= len(ran) + 20  # what ran as they died runs again
