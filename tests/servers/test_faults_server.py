"""A PostgreSQL server that hangs, is full, takes no writes, has no connection left, is damaged or becomes another one."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from perdure import Engine, StoreCorrupt, StoreUnavailable, flow, receive, step
from perdure.errors import PerdureError
from perdure.stores.postgres import PostgresStore
from tests.servers.own import OwnServer, Standby, need_binaries, resize, small_disk
from tests.servers.processes import whole
from tests.servers.proxy import Proxy
from tests.support.world import eventually

ran: Counter[str] = Counter()
_numbers = itertools.count()


@step
async def work(what: str) -> str:
    """Noted."""
    ran[what] += 1
    await asyncio.sleep(0.01)
    return what


@step
async def large(what: str) -> bytes:
    """Noted; a lot for the journal."""
    ran[what] += 1
    return os.urandom(60_000)


@flow(name="faults.busy")
async def busy(name: str, steps: int) -> int:
    """Steps, one after the other."""
    return len([await work(f"{name} {i}") for i in range(steps)])


@flow(name="faults.half")
async def half(name: str, steps: int) -> int:
    """As many steps before a message as after it."""
    before = [await work(f"{name} {i}") for i in range(steps)]
    await receive(str)
    return len(before) + len([await work(f"{name} {steps + i}") for i in range(steps)])


@flow(name="faults.fill")
async def fill(name: str) -> int:
    """Large entries after a message."""
    await receive(str)
    return sum([len(await large(f"{name} {i}")) for i in range(4)])


FLOWS = (busy, half, fill)


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


@pytest.fixture(scope="module")
def _running() -> Iterator[OwnServer]:
    need_binaries()
    server = OwnServer()
    server.configure(max_connections=25, superuser_reserved_connections=3)
    server.start()
    yield server
    server.remove()


@pytest.fixture
def own(_running: OwnServer) -> Iterator[OwnServer]:
    """A server that other tests break too, and leave as it was."""
    yield _running
    _running.thaw()


@pytest.fixture
def url(own: OwnServer) -> str:
    """A store of the test's own."""
    return f"{own.url}?schema=test{next(_numbers)}"


async def paused(engine: Engine) -> str:
    """Why the engine writes nothing now; empty: it does."""
    try:
        return (await engine.health(timeout=1)).paused or ""
    except PerdureError as error:
        return str(error)


async def until_ran(count: int) -> None:
    """So many steps were run."""
    await eventually(lambda: asyncio.sleep(0, ran.total() >= count), seconds=10)


# -- it hangs


@pytest.mark.fault(15)
async def test_a_server_that_hangs_for_a_while_costs_time_alone(own: OwnServer, url: str) -> None:
    async with Engine(url, flows=FLOWS, lease=4) as engine:
        handles = [await engine.start(busy, str(i), 60, id=str(i)) for i in range(5)]
        await until_ran(20)
        own.freeze()
        asked = time.monotonic()
        with pytest.raises(StoreUnavailable, match="not answered within"):
            await engine.health(timeout=0.5)
        assert time.monotonic() - asked < 1.0
        await asyncio.sleep(0.3)
        done = ran.total()
        await asyncio.sleep(0.3)
        assert ran.total() == done  # what could not be recorded is not gone beyond
        own.thaw()
        for handle in handles:
            assert await handle.result(timeout=20) == 60
        await whole(engine, handles, 60)
    assert set(ran.values()) == {1}


@pytest.mark.fault(15, 13)
@pytest.mark.peer(42)
async def test_an_engine_whose_server_hangs_ends_all_the_same(own: OwnServer, url: str) -> None:
    async with Engine(url, flows=FLOWS, lease=2, drain=0.2) as engine:
        await engine.start(busy, "x", 500, id="x")
        await until_ran(5)
        own.freeze()
        ending = time.monotonic()
    took = time.monotonic() - ending
    own.thaw()
    assert took < 10, took


# -- no connection is left


@pytest.mark.fault(16)
async def test_without_a_connection_left_a_new_engine_is_told_and_a_running_one_goes_on(
    own: OwnServer, url: str
) -> None:
    async with Engine(url, flows=FLOWS, lease=2) as engine:
        await engine.run(busy, "first", 3, id="first")
        taken: list[asyncpg.Connection] = []
        try:
            with pytest.raises(asyncpg.TooManyConnectionsError):
                while True:
                    taken.append(await asyncpg.connect(own.url, user="postgres"))
            with pytest.raises(StoreUnavailable, match="no connection left"):
                await PostgresStore(url).open()
            handles = [await engine.start(busy, str(i), 50, id=str(i)) for i in range(5)]
            await asyncio.sleep(2.5)  # longer than the lease: it has a connection of its own
            for handle in handles:
                assert await handle.result(timeout=20) == 50
            assert (await engine.health()).lease_left.total_seconds() > 0.5
        finally:
            for connection in taken:
                await connection.close()
    assert set(ran.values()) == {1}


@pytest.mark.fault(16)
async def test_who_waits_for_a_connection_does_not_storm_the_server(own: OwnServer, url: str) -> None:
    proxy = Proxy(url)
    await proxy.start()
    try:
        async with Engine(proxy.url, flows=FLOWS, lease=10) as engine:
            handles = [await engine.start(busy, str(i), 30, id=str(i)) for i in range(20)]
            await until_ran(40)
            proxy.refusing = True
            proxy.cut_all()
            made = proxy.made
            await asyncio.sleep(1)
            assert proxy.made - made < 50, proxy.made - made
            proxy.refusing = False
            for handle in handles:
                assert await handle.result(timeout=20) == 30
    finally:
        await proxy.stop()
    assert set(ran.values()) == {1}


# -- it takes no writes, or has lost some


@pytest.mark.fault(17, 25)
async def test_a_server_that_turns_read_only_is_said_and_waited_for(own: OwnServer, url: str) -> None:
    async with Engine(url, flows=FLOWS, lease=30) as engine:
        handles = [await engine.start(busy, str(i), 60, id=str(i)) for i in range(5)]
        await until_ran(20)
        await own.sql("alter system set default_transaction_read_only = on", "select pg_reload_conf()")
        try:
            await eventually(lambda: paused(engine), lambda why: "read-only" in why)
            with pytest.raises(StoreUnavailable, match="read-only or a standby"):
                await PostgresStore(f"{own.url}?schema=new").open()
        finally:
            reset = await asyncpg.connect(own.url, server_settings={"default_transaction_read_only": "off"})
            await reset.execute("alter system reset default_transaction_read_only")
            await reset.execute("select pg_reload_conf()")
            await reset.close()
        for handle in handles:
            assert await handle.result(timeout=20) == 60
        await whole(engine, handles, 60)
    assert set(ran.values()) == {1}


@pytest.fixture
async def pair() -> AsyncIterator[tuple[OwnServer, Standby, Proxy]]:
    """A server, a standby of it, and an address that leads to the one or the other."""
    need_binaries()
    primary = OwnServer()
    standby = proxy = None
    try:
        primary.start()
        standby = Standby(primary)
        standby.start()
        proxy = Proxy(primary.url)
        await proxy.start()
        yield primary, standby, proxy
    finally:
        if proxy is not None:
            await proxy.stop()
        for server in (primary, standby):
            if server is not None:
                server.remove()


LENGTHS = "select count(*), max(seq) from perdure.entry group by uid"


@pytest.mark.fault(17)
@pytest.mark.peer(22, 27)
async def test_a_standby_that_lost_the_last_commits_is_noticed_and_begun_from(
    pair: tuple[OwnServer, Standby, Proxy], caplog: pytest.LogCaptureFixture
) -> None:
    primary, standby, proxy = pair
    async with Engine(proxy.url, flows=FLOWS, lease=10) as engine:
        handles = [await engine.start(half, str(i), 40, id=str(i)) for i in range(3)]
        await until_ran(12)
        await asyncio.to_thread(standby.stop, "fast")
        await until_ran(3 * 40)
        await eventually(lambda: primary.sql(LENGTHS), lambda rows: {row[1] for row in rows} == {40})
        primary.stop("immediate")
        proxy.refusing = True
        proxy.cut_all()
        standby.start()
        with pytest.raises(PerdureError):  # so long it follows a server that is gone
            await PostgresStore(f"{standby.url}?schema=new").open()
        standby.promote()
        assert {row[1] for row in await standby.sql(LENGTHS)} != {40}
        proxy.lead_to(standby.url)
        proxy.refusing = False
        for handle in handles:
            await handle.send("go")
        for handle in handles:
            assert await handle.result(timeout=20) == 80
        await whole(engine, handles, 80)
    assert "is another server than before" in caplog.text


@pytest.mark.fault(17)
async def test_a_standby_in_the_place_of_its_server_is_not_taken_for_it(
    pair: tuple[OwnServer, Standby, Proxy], caplog: pytest.LogCaptureFixture
) -> None:
    primary, standby, proxy = pair
    async with Engine(proxy.url, flows=FLOWS, lease=10) as engine:
        handle = await engine.start(busy, "x", 60, id="x")
        await until_ran(10)
        proxy.lead_to(standby.url)
        await eventually(lambda: paused(engine), lambda why: "is a standby" in why)
        proxy.lead_to(primary.url)
        assert await handle.result(timeout=20) == 60
        await whole(engine, [handle], 60)
    assert set(ran.values()) == {1}
    assert "is another server" not in caplog.text


@pytest.mark.fault(10, 17)
async def test_commits_that_waited_for_no_disk_may_be_lost_and_nothing_goes_on_beyond_them(
    own: OwnServer, url: str
) -> None:
    async with Engine(f"{url}&synchronous_commit=off", flows=FLOWS, lease=10) as engine:
        handles = [await engine.start(half, str(i), 40, id=str(i)) for i in range(3)]
        await until_ran(3 * 40)
        own.stop("immediate")
        own.start()
        for handle in handles:
            await handle.send("go")
        for handle in handles:
            assert await handle.result(timeout=20) == 80
        await whole(engine, handles, 80)


# -- its disk is slow, full or damaged


@pytest.mark.fault(29)
async def test_a_commit_that_takes_long_costs_no_lease(
    own: OwnServer, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As with a slow disk: each commit waits for a standby that is not there, until it is let go."""
    async with Engine(url, flows=FLOWS, lease=3) as engine:
        handle = await engine.start(busy, "x", 6, id="x")
        await until_ran(2)
        await own.sql("alter system set synchronous_standby_names = 'nobody'", "select pg_reload_conf()")
        try:
            await asyncio.sleep(2)  # of a lease of 2.7
            assert engine._member is not None
            assert engine._member.replica is not None
            assert engine._member.replica.left() > 1.5
        finally:
            alone = await asyncpg.connect(own.url, server_settings={"synchronous_commit": "off"})
            await alone.execute("alter system reset synchronous_standby_names")
            await alone.execute("select pg_reload_conf()")
            await alone.close()
        assert await handle.result(timeout=20) == 6
        await whole(engine, [handle], 6)
    assert set(ran.values()) == {1}
    assert "the lease was lost" not in caplog.text


@pytest.fixture
def disk(own: OwnServer) -> Iterator[Path]:
    """A small disk, which the server may write to."""
    folder = own.data.parent / "disk"
    folder.mkdir()
    small_disk(folder, "4m", own.user)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.fault(24)
async def test_a_full_disk_pauses_and_goes_on_when_there_is_room(own: OwnServer, disk: Path) -> None:
    await own.sql(f"create tablespace small location '{disk}'")
    try:
        async with Engine(f"{own.url}?schema=filled&default_tablespace=small", flows=FLOWS) as engine:
            handles = [await engine.start(fill, str(i), id=str(i)) for i in range(30)]
            sending = [asyncio.create_task(handle.send("go")) for handle in handles]
            await eventually(lambda: paused(engine), lambda why: "full" in why, seconds=10)
            late = asyncio.create_task(engine.start(busy, "late", 1, id="late"))
            await asyncio.sleep(0.3)
            assert not late.done()  # what is not on disk is not acknowledged
            resize(disk, "64m")
            await asyncio.gather(*sending)
            assert await (await late).result(timeout=10) == 1
            for handle in handles:
                assert await handle.result(timeout=20) == 240_000
            assert await paused(engine) == ""
            await whole(engine, handles, 4)
        assert set(ran.values()) == {1}
    finally:
        await own.sql("drop schema filled cascade", "drop tablespace small")


@pytest.mark.fault(26)
async def test_a_table_that_is_damaged_is_said_and_the_engine_stays(own: OwnServer, url: str) -> None:
    schema = url.rpartition("=")[2]
    async with Engine(url, flows=FLOWS) as engine:
        for i in range(20):
            await engine.run(busy, f"{i}", 1, id=str(i))
        ((file,),) = await own.sql(f"select pg_relation_filepath('{schema}.instance')")
        own.stop("fast")
        with (own.data / file).open("r+b") as table:
            table.write(b"\xa5" * 8192)
        own.start()
        with pytest.raises(StoreCorrupt, match="damaged"):
            async for _ in engine.find():
                pass
        assert (await engine.health()).running == 0


@pytest.mark.fault(27)
async def test_tables_that_go_away_while_in_use_are_said_and_nothing_is_acknowledged(own: OwnServer, url: str) -> None:
    schema = url.rpartition("=")[2]
    async with Engine(url, flows=FLOWS, drain=0, lease=1) as engine:
        handle = await engine.start(half, "x", 1, id="x")
        await until_ran(1)
        await own.sql(f"drop schema {schema} cascade")
        said = await eventually(lambda: paused(engine))
        assert "gone" in said
        with pytest.raises((TimeoutError, PerdureError)):
            await asyncio.wait_for(handle.send("go"), 0.5)


# -- somebody reads and never ends


@pytest.mark.fault(30)
async def test_a_reader_without_end_holds_nobody_up(own: OwnServer, url: str) -> None:
    schema = url.rpartition("=")[2]
    async with Engine(url, flows=FLOWS) as engine:
        reader = await asyncpg.connect(own.url)
        await reader.execute("begin isolation level repeatable read")
        await reader.fetch(f"select * from {schema}.instance")
        assert await engine.run(busy, "x", 20, id="x", timeout=20) == 20
        assert await reader.fetch(f"select * from {schema}.instance") == []
        await reader.close()
