"""Replicas on PostgreSQL that are all killed and started again, and such as have wrong clocks."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from perdure import Engine
from perdure.stores.postgres.connection import parse
from tests.servers import worker
from tests.servers.processes import Processes, whole
from tests.support.world import eventually

WAIT_S = 30


@pytest.fixture
def processes(tmp_path: Path, url: str) -> Iterator[Processes]:
    processes = Processes(tmp_path, url)
    yield processes
    processes.end()


@pytest.fixture
async def client(url: str) -> AsyncIterator[Engine]:
    """This process's engine, which runs nothing."""
    async with Engine(url, execute=False) as engine:
        yield engine


@pytest.mark.fault(2, 1)
@pytest.mark.peer(2)
async def test_all_are_killed_and_started_again_and_nothing_is_lost(processes: Processes, client: Engine) -> None:
    first = [processes.start(2) for _ in range(2)]
    parked = [await client.start(worker.echo, id=f"parked {i}") for i in range(100)]
    busy = [await client.start(worker.busy, 60, id=str(i)) for i in range(20)]
    await eventually(lambda: asyncio.sleep(0, len(processes.done) > 100))
    for process in first:
        process.kill()
    began, before = time.monotonic(), len(processes.done)
    for _ in range(2):
        processes.start(2)
    watcher = await asyncpg.connect(processes.url.partition("?")[0])
    try:
        await eventually(lambda: asyncio.sleep(0, len(processes.done) > before), seconds=10)
        assert time.monotonic() - began < 6  # python's own start among it; a lease is 2
        open_now = "select count(*) from pg_stat_activity where datname = current_database() and strpos(query, $1) > 0"
        assert (await watcher.fetchval(open_now, parse(processes.url).schema)) <= 3 * 14  # of three engines, with mine
    finally:
        await watcher.close()
    for handle in parked:
        await handle.send("go on")
        await handle.send("end")
    for handle in busy:
        assert len(await handle.result(timeout=WAIT_S)) == 60
    for handle in parked:
        assert await handle.result(timeout=WAIT_S) == ["go on"]
    await whole(client, busy, 60)
    await whole(client, parked, 1)
    ran = Counter(line.split(" ", 1)[1] for line in processes.done)
    assert len(ran) == 20 * 60 + 100
    assert sum(ran.values()) <= len(ran) + 20  # what ran as they died runs again


@pytest.mark.fault(21, 32)
@pytest.mark.peer(3, 31, 40)
async def test_wrong_clocks_of_replicas_move_no_timer_and_no_lease(processes: Processes, client: Engine) -> None:
    """One is an hour ahead, one an hour behind; what the one begins the other goes on with."""
    program = "tests.servers.skewed"
    ahead = processes.start(1, before=("env", "PERDURE_TEST_SKEW=3600"), program=program)
    began = time.monotonic()
    handles = [await client.start("servers.naps", 6, id=str(i)) for i in range(10)]
    await eventually(lambda: asyncio.sleep(0, processes.by(ahead) >= 10))
    assert time.monotonic() - began >= 0.5
    behind = processes.start(1, before=("env", "PERDURE_TEST_SKEW=-3600"), program=program)
    await asyncio.sleep(1.2)  # longer than the lease
    assert "took over" not in processes.logs
    assert "the lease was lost" not in processes.logs
    ahead.kill()
    took = [await handle.result(timeout=WAIT_S) for handle in handles]
    elapsed = time.monotonic() - began
    assert 3 <= min(took) <= max(took) <= elapsed
    assert elapsed < 10
    assert processes.by(behind) > 0
    await whole(client, handles, 6)
