"""Replicas in processes of their own on PostgreSQL: killed, stopped and continued, cut off, and the server restarted."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from perdure import Engine
from perdure.stores.postgres.connection import parse
from tests.servers import worker
from tests.servers.processes import BINARIES, Processes, Server, journal, whole
from tests.servers.services import POSTGRES_VERSIONS, Services
from tests.support.world import eventually

WAIT_S = 40


@pytest.fixture(params=POSTGRES_VERSIONS)
def postgresql(request: pytest.FixtureRequest, services: Services) -> str:
    """The URL of a PostgreSQL: of each version that is here."""
    return services.url(request.param)


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


async def test_two_processes_share_the_work_and_send_to_each_other(processes: Processes, client: Engine) -> None:
    first, second = processes.start(10), processes.start(10)
    handles = [await client.start(worker.busy, 5, id=str(i)) for i in range(20)]
    families = [await client.start(worker.family, 4, id=f"family {i}") for i in range(4)]
    echoes = [await client.start(worker.echo, id=f"echo {i}") for i in range(4)]
    for echo in echoes:
        for message in ("a", "b", "end"):
            await echo.send(message)
    ran = {pid for handle in handles for pid in await handle.result(timeout=WAIT_S)}
    assert ran <= {first.pid, second.pid}
    assert [await family.result(timeout=WAIT_S) for family in families] == [4] * 4
    assert [await echo.result(timeout=WAIT_S) for echo in echoes] == [["a", "b"]] * 4
    await whole(client, handles, 5)
    steps = [line.split(" ", 1)[1] for line in processes.done]
    assert len(steps) == len(set(steps)) == 20 * 5 + 4 * 4 * 2 + 4 * 2


@pytest.mark.fault(1)
@pytest.mark.peer(2)
@pytest.mark.parametrize("lease", [2, 30], ids=["by its lease or before", "long before its lease is over"])
async def test_a_killed_process_is_taken_over(processes: Processes, client: Engine, lease: float) -> None:
    first = processes.start(lease)
    handles = [await client.start(worker.busy, 40, id=str(i)) for i in range(10)]
    await eventually(lambda: asyncio.sleep(0, processes.by(first) > 20))
    second = processes.start(lease)
    first.kill()
    ran = {pid for handle in handles for pid in await handle.result(timeout=WAIT_S / 2)}
    assert ran == {first.pid, second.pid}
    await whole(client, handles, 40)
    assert len(processes.done) <= 40 * 10 + 10


@pytest.mark.fault(3)
@pytest.mark.peer(5, 27, 31)
async def test_a_stopped_process_is_taken_over_and_writes_nothing_more(processes: Processes, client: Engine) -> None:
    first = processes.start(1)
    handles = [await client.start(worker.busy, 60, id=str(i)) for i in range(5)]
    await eventually(lambda: asyncio.sleep(0, processes.by(first) > 10))
    second = processes.start(1)
    os.kill(first.pid, signal.SIGSTOP)
    done = processes.by(first)
    results = [await handle.result(timeout=WAIT_S) for handle in handles]
    journals = [await journal(client, handle) for handle in handles]
    os.kill(first.pid, signal.SIGCONT)
    await eventually(lambda: asyncio.sleep(0, "the lease was lost" in processes.log(first)))
    for result in results:
        turn = result.index(second.pid)
        assert result[turn:] == [second.pid] * (60 - turn)
    assert [await journal(client, handle) for handle in handles] == journals
    assert processes.by(first) == done
    await whole(client, handles, 60)


@pytest.mark.fault(12)
@pytest.mark.peer(1, 41, 42)
async def test_connections_that_are_cut_off_again_and_again_lose_nothing(processes: Processes, client: Engine) -> None:
    processes.start(3)
    processes.start(3)
    handles = [await client.start(worker.busy, 30, id=str(i)) for i in range(20)]
    schema = parse(processes.url).schema
    cutter = await asyncpg.connect(processes.url.partition("?")[0], server_settings={"application_name": "cutter"})
    try:
        for _ in range(20):
            await cutter.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
                " and datname = current_database() and strpos(query, $1) > 0",
                schema,
            )
            await asyncio.sleep(0.1)
    finally:
        await cutter.close()
    for handle in handles:
        assert len(await handle.result(timeout=WAIT_S)) == 30
    await whole(client, handles, 30)
    steps = [line.split(" ", 1)[1] for line in processes.done]
    assert len(steps) == len(set(steps)) == 600
    assert "took over" not in processes.logs


@pytest.fixture
def own_server() -> Iterator[Server]:
    if not (BINARIES / "initdb").exists():
        pytest.skip(f"no PostgreSQL programs in {BINARIES}; name their folder by PERDURE_TEST_POSTGRES_BIN")
    server = Server()
    server.start()
    yield server
    server.remove()


@pytest.mark.fault(10, 11)
@pytest.mark.peer(1, 31)
@pytest.mark.parametrize("mode", ["immediate", "fast"])
async def test_a_server_that_is_restarted_loses_nothing_and_moves_nothing(
    tmp_path: Path, own_server: Server, mode: str
) -> None:
    processes = Processes(tmp_path, own_server.url)
    try:
        async with Engine(own_server.url, execute=False) as client:
            processes.start(4)
            processes.start(4)
            handles = [await client.start(worker.busy, 60, id=str(i)) for i in range(10)]
            for _ in range(3):
                await asyncio.sleep(0.3)
                await asyncio.to_thread(own_server.stop, mode)
                await asyncio.to_thread(own_server.start)
            for handle in handles:
                assert len(await handle.result(timeout=WAIT_S)) == 60
            await whole(client, handles, 60)
        steps = [line.split(" ", 1)[1] for line in processes.done]
        assert len(steps) == len(set(steps)) == 600
        assert "took over" not in processes.logs
        assert "the lease was lost" not in processes.logs
    finally:
        processes.end()
