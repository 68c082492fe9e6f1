"""What only the PostgreSQL store can be asked: its address, its tables, its connections, what it says and what it hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from perdure.errors import CommitUnknown, EngineClosed, LeaseLost, NotOurs, StoreRefused, StoreUnavailable
from perdure.model.writes import Batch, Expose
from perdure.stores.open import open_store
from perdure.stores.postgres import PostgresStore
from perdure.stores.postgres.connection import parse
from perdure.stores.postgres.schema import VERSION
from perdure.testing.conformance.kit import LEASE, create, entry, finish, send, suspend, uid
from tests.servers.proxy import Proxy


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(url)
    await proxy.start()
    yield proxy
    await proxy.stop()


async def sql(store: PostgresStore, text: str, *args: object) -> list[asyncpg.Record]:
    """Asked beside the store."""
    connection = await asyncpg.connect(store.address.url)
    try:
        return await connection.fetch(text.replace("perdure.", f"{store.address.schema}."), *args)
    finally:
        await connection.close()


# -- the address


def test_our_options_are_taken_out_of_the_url_and_others_left_in() -> None:
    address = parse("postgresql://me:secret@db:5433/app?schema=flows&pooler=on&sslmode=require")
    assert address.url == "postgresql://me:secret@db:5433/app?sslmode=require"
    assert (address.schema, address.pooler, address.notify) == ("flows", True, False)
    assert address.shown == "postgresql://me@db:5433/app"
    assert parse("postgresql://db/app").notify


@pytest.mark.parametrize("wrong", ["schema=a-b", "schema=A", "schema=", "schema=a;drop", "pooler=yes", "notify=1"])
def test_an_option_with_another_value_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.partition("=")[0]):
        open_store(f"postgresql://db/app?{wrong}")


@pytest.mark.parametrize("wrong", ["/no_such_database", "/test?user=no_such_user&sslmode=nope"])
async def test_a_database_that_is_not_there_is_named(postgresql: str, wrong: str) -> None:
    store = PostgresStore(postgresql.rpartition("/")[0] + wrong.partition("?")[0])
    if "?" in wrong:
        store = PostgresStore("postgresql://postgres@127.0.0.1:1/test")
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
        await store.open()
    with pytest.raises(EngineClosed):
        await store.check()


# -- the tables


async def test_many_who_open_a_new_schema_at_once_make_it_once(url: str) -> None:
    stores = [PostgresStore(url) for _ in range(6)]
    await asyncio.gather(*(store.open() for store in stores))
    assert [tuple(r) for r in await sql(stores[0], "select version from perdure.migration order by 1")] == [
        (version,) for version in range(VERSION + 1)
    ]
    await asyncio.gather(*(store.close() for store in stores))


async def test_a_newer_schema_is_refused_and_left_as_it_is(store: PostgresStore) -> None:
    await sql(store, "insert into perdure.migration values ($1, now())", VERSION + 7)
    with pytest.raises(NotOurs, match=f"version {VERSION + 7}.*upgrade"):
        await PostgresStore(f"{store.address.url}&schema={store.address.schema}").open()


@pytest.mark.parametrize("table", ["migration(version text)", "instance(id text)", "migration(number bigint)"])
async def test_another_programs_tables_are_refused(url: str, table: str) -> None:
    store = PostgresStore(url)
    await sql(store, f"create schema {store.address.schema}")
    await sql(store, f"create table perdure.{table}")
    with pytest.raises(NotOurs, match="schema="):
        await store.open()


@pytest.mark.fault(17, 25)
async def test_a_schema_that_is_there_needs_no_right_to_make_one(store: PostgresStore) -> None:
    readonly = PostgresStore(
        f"{store.address.url}&schema={store.address.schema}&default_transaction_read_only=on&notify=off"
    )
    await readonly.open()
    try:
        assert await readonly.instance("f", "x") is None
        with pytest.raises(StoreUnavailable, match="read-only or a standby"):
            await readonly.check()
    finally:
        await readonly.close()


# -- what is refused


@pytest.mark.fault(44)
@pytest.mark.parametrize("bad", ["nul\0", "\ud800"])
async def test_data_that_the_server_never_takes_is_refused(store: PostgresStore, bad: str) -> None:
    epoch = await store.join("a", LEASE)
    await store.commit(Batch("a", epoch, [create(1)], 1.0))
    with pytest.raises(StoreRefused):
        await store.commit(Batch("a", epoch, [entry(1, 1), Expose(uid(1), bad, b"")], 1.0))
    (loaded,) = await store.load([uid(1)])
    assert len(loaded.entries) == 1
    assert (await store.commit(Batch("a", epoch, [entry(1, 1)], 1.0))) == [None]


# -- commits whose answer is lost


@pytest.mark.fault(14)
@pytest.mark.parametrize("general", [False, True], ids=["in one statement", "in several"])
async def test_a_commit_whose_answer_is_lost_is_settled_by_the_epoch(
    store: PostgresStore, proxy: Proxy, general: bool
) -> None:
    cut = PostgresStore(f"{parse(proxy.url).url}&schema={store.address.schema}&notify=off")
    await cut.open()
    try:
        epoch = await cut.join("a", LEASE)
        batch = [create(1), entry(1, 1), *([send(1, 1)] if general else [])]
        await cut.commit(Batch("a", epoch, [create(9), entry(9, 1), *([send(9, 9)] if general else [])], 1.0))
        proxy.cut_answers_after = b"commit\0" if general else uid(1)
        with pytest.raises(CommitUnknown):
            await cut.commit(Batch("a", epoch, batch, 1.0))
        assert proxy.cut == 1
        raised = await cut.raise_epoch("a", epoch)
        (there,) = await cut.load([uid(1)])
        assert [e.seq for e in there.entries] == [0, 1]
        answers = await cut.commit(Batch("a", raised, batch, 1.0))
        assert len(answers) == len(batch)
        (again,) = await cut.load([uid(1)])
        assert (again.entries, len(again.inbox)) == (there.entries, int(general))
        with pytest.raises(LeaseLost):
            await cut.commit(Batch("a", epoch, [entry(1, 2)], 1.0))
    finally:
        await cut.close()


@pytest.mark.fault(11, 12)
async def test_a_connection_lost_before_the_commit_is_made_good_unseen(store: PostgresStore, proxy: Proxy) -> None:
    cut = PostgresStore(f"{parse(proxy.url).url}&schema={store.address.schema}&notify=off")
    await cut.open()
    try:
        epoch = await cut.join("a", LEASE)
        await cut.commit(Batch("a", epoch, [create(1)], 1.0))
        for seq in range(1, 4):
            proxy.cut_all()
            await asyncio.sleep(0.02)
            assert await cut.instance("f", "i1") is not None
            await cut.commit(Batch("a", epoch, [entry(1, seq), send(1, seq)], 1.0))
            assert await asyncio.to_thread(cut.renew, "a", LEASE) > 0
        proxy.refusing = True
        proxy.cut_all()
        with pytest.raises(StoreUnavailable):
            await cut.check()
        with pytest.raises(StoreUnavailable):
            await asyncio.to_thread(cut.renew, "a", LEASE)
        proxy.refusing = False
        await cut.check()
        assert len(await cut.inbox([uid(1)])) == 1
    finally:
        await cut.close()


@pytest.mark.fault(3, 14)
async def test_raising_the_epoch_waits_for_a_transaction_that_holds_the_fence(store: PostgresStore) -> None:
    epoch = await store.join("a", LEASE)
    other = await asyncpg.connect(store.address.url)
    try:
        await other.execute("begin")
        await other.fetch(f"select 1 from {store.address.schema}.fence for share")
        raising = asyncio.ensure_future(store.raise_epoch("a", epoch))
        await asyncio.sleep(0.05)
        assert not raising.done()
        await other.execute("commit")
        assert await raising > epoch
    finally:
        await other.close()


@pytest.mark.fault(15, 18)
async def test_what_holds_the_fence_for_too_long_makes_the_store_unavailable(store: PostgresStore) -> None:
    epoch = await store.join("a", 1.0)
    other = await asyncpg.connect(store.address.url)
    try:
        await other.execute("begin")
        await other.fetch(f"select 1 from {store.address.schema}.fence for update")
        with pytest.raises(StoreUnavailable):
            await store.commit(Batch("a", epoch, [create(1), send(1, 1)], 1.0))
    finally:
        await other.close()


# -- leases


@pytest.mark.fault(21)
@pytest.mark.peer(40)
async def test_a_lease_counts_by_the_clock_of_the_database(store: PostgresStore) -> None:
    await store.join("a", 5.0)
    at = store.renew("a", 5.0)
    ((now, until),) = await sql(
        store, "select extract(epoch from clock_timestamp())::float8, until from perdure.lease where replica = 'a'"
    )
    assert until == pytest.approx(at + 5.0)
    assert 0 <= now - at < 1.0


@pytest.mark.fault(10)
async def test_after_an_outage_nobody_judges_before_a_full_lease(store: PostgresStore) -> None:
    await store.join("dead", 0.05)
    await store.join("b", 1.0)
    store.renew("b", 1.0)
    store._members["b"].lease._since -= 10  # it has held its lease for long
    await sql(
        store,
        "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and strpos(query, $1) > 0",
        store.address.schema,
    )
    await asyncio.sleep(0.05)
    store.renew("b", 1.0)
    assert (await store.reap("b", kill_hung=False)).taken == ()
    store._members["b"].lease._since -= 10
    store._members["b"].look_at = 0  # it need not wait for the next look
    assert (await store.reap("b", kill_hung=False)).taken == ("dead",)


# -- noticing


async def test_another_process_is_told_of_what_concerns_it(store: PostgresStore, url: str) -> None:
    other = PostgresStore(url)
    await other.open()
    told = asyncio.Event()
    try:
        epoch = await store.join("a", LEASE)
        await other.join("b", LEASE)
        other.on_change(told.set)
        while not await sql(
            store, "select 1 from pg_stat_activity where query like $1", f"LISTEN%{store.address.schema}%"
        ):
            await asyncio.sleep(0.01)
        for writes in ([create(1, owned=False)], [create(2), create(3)], [finish(2)], [suspend(3)], [send(3, 1)]):
            told.clear()
            await store.commit(Batch("a", epoch, writes, 1.0))
            if writes != [create(2), create(3)] and writes != [suspend(3)]:
                await asyncio.wait_for(told.wait(), 5)
    finally:
        await other.close()


async def test_a_store_that_shall_not_listen_does_not(url: str) -> None:
    store = PostgresStore(url + "&notify=off")
    await store.open()
    await store.check()
    found = await sql(store, "select 1 from pg_stat_activity where query like $1", f"LISTEN%{store.address.schema}%")
    await store.close()
    assert found == []
