"""Engines and stores behind a PgBouncer: what it takes away is not needed, and that it is there is noticed."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from perdure import Engine, Handle, Tx, flow, step, transaction
from perdure.errors import StoreUnavailable
from perdure.model.writes import Batch
from perdure.stores.postgres import PostgresStore
from perdure.testing.conformance.kit import create
from tests.servers import worker
from tests.servers.conftest import through
from tests.servers.processes import Processes, journal, whole
from tests.servers.services import pgbouncer as started
from tests.support.world import eventually

WAIT_S = 40
LEASE_S = 2.0


@pytest.fixture
def pooled(pgbouncer: str, url: str) -> str:
    """The store of `url`, with PgBouncer in between; the URL does not say so."""
    return through(pgbouncer, url)


@pytest.fixture
async def store(pooled: str) -> AsyncIterator[PostgresStore]:
    """Opened, without a word of the pooler."""
    store = PostgresStore(pooled)
    await store.open()
    yield store
    await store.close()


# -- engines


@pytest.mark.fault(19)
@pytest.mark.parametrize("said", ["", "&pooler=on"], ids=["unsaid", "said"])
async def test_a_killed_process_is_taken_over_by_its_lease(tmp_path: Path, pooled: str, said: str) -> None:
    processes = Processes(tmp_path, pooled + said)
    try:
        async with Engine(processes.url, execute=False) as client:
            first = processes.start(LEASE_S)
            handles = [await client.start(worker.busy, 40, id=str(i)) for i in range(10)]
            echo = await client.start(worker.echo, id="echo")
            await eventually(lambda: asyncio.sleep(0, processes.by(first) > 20), seconds=WAIT_S)
            second = processes.start(LEASE_S)
            first.kill()
            for message in ("a", "b", "end"):
                await echo.send(message)
            ran = {pid for handle in handles for pid in await handle.result(timeout=WAIT_S)}
            assert ran == {first.pid, second.pid}
            assert await echo.result(timeout=WAIT_S) == ["a", "b"]
            await whole(client, handles, 40)
            assert len(processes.done) <= 40 * 10 + 10 + 2
    finally:
        processes.end()


async def note(tx: Tx, schema: str, what: int) -> int:
    """What was noted is there; gives how many notes there are."""
    await tx.execute(f"insert into {schema}.note values ($1)", what)
    (row,) = await tx.fetch(f"select count(*) as found from {schema}.note")
    found: int = row["found"]
    return found


@step
async def number(of: int) -> int:
    return of


@flow(name="pgbouncer.notes")
async def notes(schema: str, count: int) -> list[int]:
    """A transaction after each step."""
    return [await transaction(note, schema, await number(i)) for i in range(count)]


@pytest.mark.fault(19)
async def test_transactions_and_their_entries_are_made_once(url: str, pooled: str) -> None:
    async with Engine(pooled, flows=[notes]) as engine:
        store = engine._store
        assert isinstance(store, PostgresStore)
        schema = store.address.schema
        connection = await asyncpg.connect(url.partition("?")[0])
        await connection.execute(f"create table {schema}.note(what bigint)")
        handles = [await engine.start(notes, schema, 5, id=str(i)) for i in range(4)]
        for handle in handles:
            assert len(await handle.result(timeout=WAIT_S)) == 5
        assert await connection.fetchval(f"select count(*) from {schema}.note") == 20
        await connection.close()


@flow(name="pgbouncer.numbers")
async def numbers(count: int) -> int:
    """Steps, one after the other."""
    return sum([await number(1) for _ in range(count)])


async def test_two_sessions_of_the_server_are_enough_for_many_flows(postgresql: str, url: str) -> None:
    with started(postgresql, default_pool_size=2) as small:
        async with Engine(through(small, url), flows=[numbers], lease=LEASE_S) as engine:
            handles = await engine.start_many(numbers, [(str(i), 10) for i in range(200)])
            assert [await handle.result(timeout=WAIT_S) for handle in handles] == [10] * 200


@pytest.mark.fault(19)
async def test_a_pooler_that_is_killed_and_started_again_loses_nothing(postgresql: str, url: str) -> None:
    with ExitStack() as stack:
        again = stack.enter_context(ExitStack())
        pooled = through(again.enter_context(started(postgresql)), url)
        async with Engine(pooled, flows=[numbers]) as engine:
            handles = [await engine.start(numbers, 100, id=str(i)) for i in range(20)]
            for begun in (10, 30, 50):
                await eventually(lambda at=begun: passed(engine, handles[0], at), seconds=WAIT_S)
                again.close()
                again.enter_context(started(postgresql, port=urlsplit(pooled).port or 0))
            assert [await handle.result(timeout=WAIT_S) for handle in handles] == [100] * 20
            await whole(engine, handles, 100)


async def passed(engine: Engine, handle: Handle[int], steps: int) -> bool:
    """Whether the flow has come that far."""
    try:
        return len(await journal(engine, handle)) > steps
    except StoreUnavailable:
        return False


# -- what is noticed, and what is left

OURS = "('client_encoding', 'application_name', 'synchronous_commit')"  # the client's, and what this PgBouncer sets
LEFT = (
    f"select name from pg_settings where source = 'session' and setting <> reset_val and name not in {OURS}",
    "select name from pg_prepared_statements where name <> ''",
    "select locktype from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'",
    "select pg_listening_channels()",
)


@pytest.mark.fault(19)
async def test_a_pooler_that_the_url_does_not_tell_of_is_noticed(pooled: str, caplog: pytest.LogCaptureFixture) -> None:
    store = PostgresStore(pooled)
    with caplog.at_level(logging.WARNING, "perdure"):
        await store.open()
    assert (store.address.pooler, store.address.notify) == (True, False)
    assert "pooler=on" in caplog.text
    await store.close()


def test_listening_behind_a_pooler_is_refused() -> None:
    with pytest.raises(ValueError, match=r"notify=on.*leave it out"):
        PostgresStore("postgresql://db/app?pooler=on&notify=on")


async def test_a_server_is_taken_for_no_pooler(url: str) -> None:
    store = PostgresStore(url)
    await store.open()
    assert (store.address.pooler, store.address.notify) == (False, True)
    await store.close()


async def test_nothing_is_left_in_a_session_that_others_get(postgresql: str, url: str) -> None:
    with started(postgresql, default_pool_size=1) as one:
        store = PostgresStore(through(one, url))
        await store.open()
        epoch = await store.join("a", 10.0)
        await store.commit(Batch("a", epoch, [create(1)], 1.0))
        store.renew("a", 10.0)
        await store.close()
        other = await asyncpg.connect(one, statement_cache_size=0)
        async with other.transaction():
            for left in LEFT:
                assert [tuple(row) for row in await other.fetch(left)] == []
        await other.close()


async def test_a_pooler_in_session_mode_is_used_as_a_server_if_the_url_says_that_it_may(
    postgresql: str, url: str
) -> None:
    with started(postgresql, pool_mode="session") as pooler:
        ours, theirs = (PostgresStore(f"{through(pooler, url)}&pooler=off") for _ in range(2))
        await ours.open()
        await theirs.open()
        assert not ours.address.pooler
        heard = asyncio.Event()
        theirs.on_change(heard.set)
        epoch = await ours.join("a", 10.0)

        async def told(n: int) -> bool:
            await ours.commit(Batch("a", epoch, [create(n, owned=False)], 1.0))
            return heard.is_set()

        ids = itertools.count(1)
        await eventually(lambda: told(next(ids)))
        await ours.close()
        await theirs.close()


@pytest.mark.parametrize("setting", ["statement_timeout=1000", "search_path=app", "options=-c%20jit%3Doff"])
async def test_a_setting_that_the_pooler_does_not_take_is_named_with_what_to_do(pooled: str, setting: str) -> None:
    name = setting.partition("=")[0]
    with pytest.raises(StoreUnavailable, match=f"startup parameter: {name}.*alter role"):
        await PostgresStore(f"{pooled}&{setting}").open()
