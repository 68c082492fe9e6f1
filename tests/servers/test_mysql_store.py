"""What only the MariaDB and MySQL store can be asked: its address, its tables, its connections, what it says and hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from perdure.errors import CommitUnknown, EngineClosed, LeaseLost, NotOurs, StoreFull, StoreRefused, StoreUnavailable
from perdure.model.records import Entry
from perdure.model.tx import Tx
from perdure.model.writes import Batch, Expose
from perdure.stores.mysql import MysqlStore, quick, schema, writing
from perdure.stores.mysql.connection import Connection, connect, meant, parse, too_old
from perdure.stores.mysql.literals import Texts, literal, literals
from perdure.stores.mysql.schema import VERSION
from perdure.stores.open import open_store
from perdure.testing.conformance.kit import LEASE, create, entry, finish, send, suspend, uid
from tests.servers.conftest import mysql_done
from tests.servers.proxy import Proxy


@pytest.fixture
async def store(mysql_url: str) -> AsyncIterator[MysqlStore]:
    store = MysqlStore(mysql_url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def proxy(mysql_url: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(mysql_url)
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.fixture
async def beside(mysql_url: str) -> AsyncIterator[Connection]:
    """A connection that is nobody's."""
    connection = await connect(parse(mysql_url), 10, ours=False)
    yield connection
    connection.terminate()


# -- the address


def test_a_url_says_where_the_database_is() -> None:
    address = parse("mysql://me%40x:s%2Fe:cret@db:3307/app?prefix=flows_&notify=off&tls=on")
    assert (address.host, address.port, address.user, address.password) == ("db", 3307, "me@x", "s/e:cret")
    assert (address.database, address.prefix, address.notify, address.tls) == ("app", "flows_", False, "on")
    assert address.shown == "mysql://me%40x@db:3307/app"
    assert (parse("mariadb://db/app").port, parse("mysql://db/app").notify) == (3306, True)
    assert parse("mysql://db/app?ca=/etc/ca.pem").tls == "verify"
    assert "s/e" not in f"{address} {address!r}"


@pytest.mark.parametrize(
    "wrong",
    [
        "prefix=a-b",
        "prefix=A",
        "prefix=",
        "prefix=a;drop",
        "notify=1",
        "tls=yes",
        "ca=",
        "socket=",
        "sslmode=on",
        "charset=x",
    ],
)
def test_an_option_that_is_unknown_or_has_another_value_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.partition("=")[0]):
        open_store(f"mysql://db/app?{wrong}")


@pytest.mark.parametrize("wrong", ["mysql://db", "mysql://db/", "mysql://db/a/b"])
def test_a_url_without_a_database_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="database"):
        open_store(wrong)


@pytest.mark.parametrize(
    "wrong", ["root@127.0.0.1:3306/no_such_database", "nobody:secret@127.0.0.1:3306/test", "root@127.0.0.1:1/x"]
)
async def test_a_database_that_is_not_there_is_named_without_the_password(mysql: str, wrong: str) -> None:
    store = MysqlStore(f"mysql://{wrong}")
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1") as raised:
        await store.open()
    assert "secret" not in str(raised.value)
    with pytest.raises(EngineClosed):
        await store.check()


@pytest.mark.parametrize(
    ("info", "old"),
    [("5.5.5-10.11.19-MariaDB-0+deb12u1", False), ("11.4.2-MariaDB", False), ("5.5.5-10.3.39-MariaDB", True),
     ("8.0.36", False), ("8.4.0-commercial", False), ("8.0.19", True), ("5.7.44-log", True), ("something", False)],
)  # fmt: skip
def test_a_server_that_is_too_old_is_told_so(info: str, old: bool) -> None:
    assert (too_old(info) is not None) == old


# -- the tables


async def versions(url: str) -> list[tuple[int, int]]:
    return await mysql_done(url, "select version, done from perdure_migration order by 1")


async def test_many_who_open_a_new_store_at_once_make_it_once(mysql_url: str) -> None:
    stores = [MysqlStore(mysql_url) for _ in range(6)]
    await asyncio.gather(*(store.open() for store in stores))
    assert await versions(mysql_url) == [(version, 1) for version in range(1, VERSION + 1)]
    await asyncio.gather(*(store.close() for store in stores))


@pytest.mark.parametrize("steps", range(1, len(schema.MIGRATIONS[0]) + 1, 4))
async def test_what_died_while_it_made_the_tables_is_gone_on_with(mysql_url: str, steps: int) -> None:
    store = MysqlStore(mysql_url)
    await store.open()
    await store.close()
    undone = [
        f"drop table perdure_{name}" for name in schema.TABLES[steps:]
    ]  # the last one made was not noted any more
    await mysql_done(mysql_url, *undone, f"update perdure_migration set done = 0, steps = {steps - 1}")
    await store.open()
    await store.check()
    assert await versions(mysql_url) == [(1, 1)]
    assert await store.join("a", LEASE) == 1
    await store.commit(Batch("a", 1, [create(1), entry(1, 1), send(1, 1)], 1.0))
    await store.close()


async def test_a_newer_schema_is_refused_and_left_as_it_is(store: MysqlStore, mysql_url: str) -> None:
    await mysql_done(mysql_url, f"insert into perdure_migration values ({VERSION + 7}, 1, 1)")
    with pytest.raises(NotOurs, match=f"version {VERSION + 7}.*upgrade"):
        await MysqlStore(mysql_url).open()


@pytest.mark.parametrize("table", ["migration(version text)", "instance(id text)", "migration(number bigint)"])
async def test_another_programs_tables_are_refused_and_left_as_they_are(mysql_url: str, table: str) -> None:
    await mysql_done(mysql_url, f"create table perdure_{table}")
    with pytest.raises(NotOurs, match="prefix="):
        await MysqlStore(mysql_url).open()
    assert len(await mysql_done(mysql_url, "show tables")) == 1
    other = MysqlStore(f"{mysql_url}?prefix=flows_")
    await other.open()
    await other.close()


async def test_stores_of_two_prefixes_know_nothing_of_each_other(store: MysqlStore, mysql_url: str) -> None:
    other = MysqlStore(f"{mysql_url}?prefix=other_")
    await other.open()
    epoch = await store.join("a", LEASE)
    await store.commit(Batch("a", epoch, [create(1)], 1.0))
    assert await other.instances([uid(1)]) == []
    await other.join("a", LEASE)
    await other.close()


# -- what a database would do by itself


async def test_ids_are_distinct_byte_by_byte(store: MysqlStore) -> None:
    epoch = await store.join("a", LEASE)
    ids = ["a", "A", "a ", "ä", "a\u0308", "\U0001f600", "\\", "'", "%s", "a\n", '"', "\x1a", "`"]
    await store.commit(Batch("a", epoch, [create(n, id) for n, id in enumerate(ids)], 1.0))
    for n, id in enumerate(ids):
        found = await store.instance("f", id)
        assert found is not None
        assert (found.uid, found.id) == (uid(n), id)


async def test_the_session_is_as_it_must_be_whatever_the_servers_defaults(store: MysqlStore) -> None:
    async with store._open().connection() as connection:
        ((mode, isolation, names),), _ = (
            await connection.ask(b"select @@sql_mode, @@session.tx_isolation, @@character_set_connection")
        )[0]
    assert "STRICT_ALL_TABLES" in mode
    assert "NO_BACKSLASH_ESCAPES" not in mode
    assert (isolation, names) == ("READ-COMMITTED", "binary")


async def test_an_update_that_changes_nothing_is_not_taken_for_a_lost_instance(store: MysqlStore) -> None:
    epoch = await store.join("a", LEASE)
    await store.commit(Batch("a", epoch, [create(1)], 1.0))
    for _ in range(2):
        assert await store.commit(Batch("a", epoch, [suspend(1, to="a"), Expose(uid(1), "k", b"v")], 1.0)) == [
            None,
            None,
        ]


@pytest.mark.parametrize("bad", ["\ud800", "long"])
async def test_data_that_the_server_never_takes_is_refused(store: MysqlStore, bad: str) -> None:
    epoch = await store.join("a", LEASE)
    await store.commit(Batch("a", epoch, [create(1)], 1.0))
    key = "x" * 5000 if bad == "long" else bad
    with pytest.raises(StoreRefused):
        await store.commit(Batch("a", epoch, [entry(1, 1), Expose(uid(1), key, b"")], 1.0))
    with pytest.raises(StoreRefused):
        await store.commit(Batch("a", epoch, [replace(entry(1, 1), at=float("nan"))], 1.0))
    (loaded,) = await store.load([uid(1)])
    assert len(loaded.entries) == 1
    assert (await store.commit(Batch("a", epoch, [entry(1, 1)], 1.0))) == [None]


async def test_a_value_that_is_larger_than_a_packet_is_refused_before_it_is_sent(store: MysqlStore) -> None:
    epoch = await store.join("a", LEASE)
    async with store._open().connection() as connection:
        limit = connection.packet
    with pytest.raises(StoreRefused, match="max_allowed_packet"):
        await store.commit(Batch("a", epoch, [create(1), entry(1, 1, b"x" * (limit + 1))], 1.0))
    await store.commit(Batch("a", epoch, [create(1), *(entry(1, n, b"'" * (limit // 3)) for n in range(1, 6))], 1.0))
    entries, more = await store.entries(uid(1), 0, 0, budget=10 * limit)
    assert ([len(e.outcome or b"") for e in entries], more) == ([limit // 3] * 5, False)


@pytest.mark.parametrize(
    "value", [b"", b"\0'\\\"\n\r\x1a%s", bytes(range(256)), "é\U0001f600\\'", 1.1, -1e300, 5e-324, 2**62, None]
)
async def test_literals_come_back_as_they_were(store: MysqlStore, value: Any) -> None:
    async with store._open().connection() as connection:
        if isinstance(value, bytes | str):
            (((found,),), _) = (await connection.ask(b"select hex(%s)" % literal(value)))[0]
            assert bytes.fromhex(found) == (value if isinstance(value, bytes) else value.encode())
        else:
            (((found,),), _) = (await connection.ask(b"select " + literal(value)))[0]
            assert found == value


@pytest.mark.parametrize(
    ("code", "expected"),
    [(1021, StoreFull), (1114, StoreFull), (1290, StoreUnavailable), (1792, StoreUnavailable), (1836, StoreUnavailable),
     (1045, StoreUnavailable), (2013, StoreUnavailable), (1406, StoreRefused), (9999, StoreUnavailable)],
)  # fmt: skip
def test_what_the_server_says_is_told_as_what_it_means(code: int, expected: type[Exception]) -> None:
    from asyncmy.errors import OperationalError

    assert (
        type(meant(OperationalError(code, "words of the server"), parse("mysql://u:pw@h/d")))
        .__mro__[0:2]
        .count(expected)
    )


# -- commits whose answer is lost


@pytest.mark.parametrize("general", [False, True], ids=["in one message", "in several"])
async def test_a_commit_whose_answer_is_lost_is_settled_by_the_epoch(
    store: MysqlStore, proxy: Proxy, general: bool
) -> None:
    cut = MysqlStore(f"{proxy.url}?notify=off")
    await cut.open()
    try:
        epoch = await cut.join("a", LEASE)
        batch = [create(1), entry(1, 1), *([send(1, 1)] if general else [])]
        await cut.commit(Batch("a", epoch, [create(9), entry(9, 1), *([send(9, 9)] if general else [])], 1.0))
        proxy.cut_answers_after = b"commit"
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


async def test_a_transaction_whose_commit_is_not_answered_may_have_been_made(
    store: MysqlStore, proxy: Proxy, mysql_url: str
) -> None:
    await mysql_done(mysql_url, "create table note(n integer primary key)")
    cut = MysqlStore(f"{proxy.url}?notify=off")
    await cut.open()
    try:
        epoch = await cut.join("a", LEASE)
        await cut.commit(Batch("a", epoch, [create(1)], 1.0))
        tries: list[str] = []

        async def work(tx: Tx) -> Entry:
            tries.append("try")
            await tx.execute("insert into note values (1)")
            proxy.cut_answers_after = b"commit"
            return entry(1, 1)

        with pytest.raises(CommitUnknown):
            await cut.transact("a", epoch, work, limit=20)
        await cut.raise_epoch("a", epoch)
        assert [e.seq for e in (await cut.entries(uid(1), 0, 0))[0]] == [1]
        assert await mysql_done(mysql_url, "select n from note") == [(1,)]
        assert tries == ["try"]
    finally:
        await cut.close()


async def test_a_connection_lost_before_the_commit_is_made_good_unseen(store: MysqlStore, proxy: Proxy) -> None:
    cut = MysqlStore(f"{proxy.url}?notify=off")
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
        assert len((await cut.inbox([uid(1)]))[uid(1)]) == 3
    finally:
        await cut.close()


@pytest.mark.parametrize("proof", [quick.FENCED, writing.FENCE], ids=["in one message", "in several"])
async def test_raising_the_epoch_waits_for_a_transaction_that_has_proved_the_fence(
    store: MysqlStore, beside: Connection, proof: str
) -> None:
    epoch = await store.join("a", LEASE)
    await beside.ask(b"begin;" + Texts(store.address.prefix).filled(proof, literals(("a", epoch))))
    raising = asyncio.ensure_future(store.raise_epoch("a", epoch))
    await asyncio.sleep(0.1)
    assert not raising.done()
    await beside.ask(b"commit")
    assert await raising > epoch


@pytest.mark.parametrize("general", [False, True], ids=["in one message", "in several"])
async def test_what_holds_the_fence_for_too_long_makes_the_store_unavailable(
    store: MysqlStore, beside: Connection, general: bool
) -> None:
    epoch = await store.join("a", 1.0)
    await beside.ask(b"begin; select 1 from perdure_fence for update")
    with pytest.raises((StoreUnavailable, CommitUnknown)):
        await store.commit(Batch("a", epoch, [create(1), *([send(1, 1)] if general else [])], 1.0))


async def test_a_deadlock_is_tried_again_unseen(store: MysqlStore, beside: Connection) -> None:
    epoch = await store.join("a", LEASE)
    await store.commit(Batch("a", epoch, [create(1), create(2)], 1.0))
    heavy = b";".join(b"update perdure_place set early = 0 where id = 'i%d'" % n for n in (1, 2))
    await beside.ask(b"begin; update perdure_instance set reason = 'x' where uid = " + literal(uid(2)))
    await beside.ask(heavy)  # the server gives up the transaction that has changed less: not this one
    both = asyncio.ensure_future(store.commit(Batch("a", epoch, [finish(1), finish(2)], 1.0)))
    await asyncio.sleep(0.1)
    assert not both.done()
    await beside.ask(b"update perdure_instance set reason = 'x' where uid = " + literal(uid(1)) + b"; commit")
    await both
    assert all(row.ended_at for row in await store.instances([uid(1), uid(2)]))


async def test_a_server_that_takes_no_writes_is_told_so(store: MysqlStore) -> None:
    async with store._open().connection() as connection:
        await connection.ask(b"set session transaction read only")
        connection_id = connection.id
    with pytest.raises(StoreUnavailable, match="read-only"):
        await store.check()
    async with store._open().connection() as connection:
        assert connection.id == connection_id  # a refusal is no reason for a new one
        await connection.ask(b"set session transaction read write")
    await store.check()


# -- leases


async def test_a_lease_counts_by_the_clock_of_the_database(store: MysqlStore, mysql_url: str) -> None:
    await store.join("a", 5.0)
    at = store.renew("a", 5.0)
    ((now, until),) = await mysql_done(
        mysql_url, "select unix_timestamp(now(6)) + 0e0, until from perdure_lease where replica = 'a'"
    )
    assert until == pytest.approx(at + 5.0)
    assert 0 <= now - at < 1.0


# -- noticing


async def test_another_process_is_told_of_what_concerns_it(store: MysqlStore, mysql_url: str) -> None:
    other = MysqlStore(mysql_url)
    await other.open()
    told = asyncio.Event()
    own: list[str] = []
    try:
        epoch = await store.join("a", LEASE)
        await other.join("b", LEASE)
        while not (other.poll == store.poll == 5.0):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        other.on_change(told.set)
        store.on_change(lambda: own.append("own"))
        for writes in ([create(1, owned=False)], [create(2), create(3)], [finish(2)], [suspend(3)], [send(3, 1)]):
            told.clear()
            await store.commit(Batch("a", epoch, writes, 1.0))
            if writes != [create(2), create(3)] and writes != [suspend(3)]:
                await asyncio.wait_for(told.wait(), 5)
        assert own == []
    finally:
        await other.close()


async def test_a_store_that_shall_not_listen_does_not(mysql_url: str) -> None:
    store = MysqlStore(f"{mysql_url}?notify=off")
    await store.open()
    await store.check()
    found = await mysql_done(
        mysql_url, "select id from information_schema.processlist where db = database() and id <> connection_id()"
    )
    assert (len(found), store.poll) == (1, 1.0)
    await store.close()


async def test_without_the_table_in_memory_all_is_found_by_polling_and_the_lease(mysql_url: str) -> None:
    store = MysqlStore(mysql_url)
    await store.open()
    await store.close()
    await mysql_done(mysql_url, "drop table perdure_bell")
    await store.open()
    try:
        epoch = await store.join("a", LEASE)
        store.renew("a", LEASE)
        assert await store.commit(Batch("a", epoch, [create(1, owned=False), send(2, 1)], 1.0))
        assert (await store.reap("a", kill_hung=False)).taken == ()
        assert store.poll == 1.0
        assert len(await mysql_done(mysql_url, "select server from perdure_lease where server is null")) == 1
    finally:
        await store.close()


# -- the user's transactions


async def transacted(store: MysqlStore, *statements: str, seq: int = 1) -> list[Any]:
    """What the last statement gives."""
    found: list[Any] = []

    async def work(tx: Tx) -> Entry:
        for statement in statements:
            found[:] = await tx.fetch(statement)
        return entry(1, seq)

    await store.transact("a", 1, work, limit=20)
    return found


@pytest.fixture
async def notes(store: MysqlStore, mysql_url: str) -> MysqlStore:
    await mysql_done(mysql_url, "create table note(n integer primary key, text varchar(100))")
    await store.join("a", LEASE)
    await store.commit(Batch("a", 1, [create(1)], 1.0))
    return store


@pytest.mark.parametrize(
    "sql",
    ["create table other(n int)", "  -- so\n/* and so */ TRUNCATE note", "drop table note", "commit", "rollback",
     "start transaction", "lock tables note write", "/*!50000 commit */", "alter table note add column x int",
     "savepoint x", "delete from perdure_instance", "select * from `perdure_entry`"],
)  # fmt: skip
async def test_a_statement_that_ends_the_transaction_or_is_not_for_it_is_refused(
    notes: MysqlStore, mysql_url: str, sql: str
) -> None:
    with pytest.raises(PermissionError):
        await transacted(notes, "insert into note(n) values (1)", sql)
    assert await mysql_done(mysql_url, "select count(*) from note") == [(0,)]
    assert await transacted(notes, "insert into note(n) values (1)", "select n from note") == [{"n": 1}]


async def test_several_statements_at_once_are_refused(notes: MysqlStore, mysql_url: str) -> None:
    with pytest.raises(Exception, match="syntax"):
        await transacted(notes, "insert into note(n) values (1); commit")
    assert await mysql_done(mysql_url, "select count(*) from note") == [(0,)]


async def test_a_procedure_that_ends_the_transaction_is_noticed(notes: MysqlStore, mysql_url: str) -> None:
    await mysql_done(mysql_url, "create procedure ends() begin commit; start transaction; end")
    with pytest.raises(PermissionError, match="end a transaction"):
        await transacted(notes, "insert into note(n) values (1)", "call ends()")
    assert [e.seq for e in (await notes.entries(uid(1), 0, -1))[0]] == [0]
    assert await transacted(notes, "select n from note") == [{"n": 1}]


async def test_what_a_work_sets_for_the_session_does_not_reach_our_own_statements(
    notes: MysqlStore, mysql_url: str
) -> None:
    async def work(tx: Tx) -> Entry:
        await tx.execute("set sql_mode = 'NO_BACKSLASH_ESCAPES,ANSI_QUOTES'")
        return entry(1, 1, outcome=b"\\' or 1=1 -- ")

    await notes.transact("a", 1, work, limit=20)
    found, _ = await notes.entries(uid(1), 0, 0)
    assert found[0].outcome == b"\\' or 1=1 -- "
    assert "ANSI" not in (await transacted(notes, "select @@sql_mode as mode", seq=2))[0]["mode"]


async def test_parameters_are_the_drivers_and_text_stays_text(notes: MysqlStore) -> None:
    rows: list[Any] = []

    async def work(tx: Tx) -> Entry:
        await tx.execute("insert into note(n, text) values (%s, %s)", 1, "100 % \U0001f600 'x'")
        rows.extend(await tx.fetch("select n, text from note where text like '100 \\%%%%' and n = %s", 1))
        rows.extend(await tx.fetch("select n from note where text like '100%'"))
        return entry(1, 1)

    await notes.transact("a", 1, work, limit=20)
    assert rows == [{"n": 1, "text": "100 % \U0001f600 'x'"}, {"n": 1}]


async def test_a_statement_that_fails_leaves_the_rest_of_the_work(notes: MysqlStore, mysql_url: str) -> None:
    async def work(tx: Tx) -> Entry:
        await tx.execute("insert into note(n) values (1)")
        with pytest.raises(Exception, match="Duplicate"):
            await tx.execute("insert into note(n) values (1)")
        await tx.execute("insert into note(n) values (2)")
        return entry(1, 1)

    await notes.transact("a", 1, work, limit=20)
    assert await mysql_done(mysql_url, "select n from note order by n") == [(1,), (2,)]


async def test_a_deadlock_makes_the_work_be_done_again_whole(
    notes: MysqlStore, mysql_url: str, beside: Connection
) -> None:
    await mysql_done(mysql_url, "insert into note(n) values (1), (2), (3), (4), (5)")
    tries: list[str] = []
    met = asyncio.Event()

    async def work(tx: Tx) -> Entry:
        tries.append("try")
        await tx.execute("update note set text = 'a' where n = 1")
        met.set()
        try:
            await tx.execute("update note set text = 'b' where n = 2")
        except Exception:
            await tx.execute("update note set text = 'alone' where n = 3")  # would stand, whatever becomes of the rest
        return entry(1, 1)

    await beside.ask(b"begin; update note set text = 'x' where n in (2, 3, 4, 5); delete from note where n = 5")
    doing = asyncio.ensure_future(notes.transact("a", 1, work, limit=20))
    await met.wait()
    await asyncio.sleep(0.1)
    await beside.ask(b"update note set text = 'x' where n = 1; commit")
    await doing
    assert tries == ["try", "try"]
    assert await mysql_done(mysql_url, "select text from note order by n") == [("a",), ("b",), ("x",), ("x",)]


async def test_a_statement_that_takes_too_long_is_ended_on_the_server_too(notes: MysqlStore, mysql_url: str) -> None:
    async def work(tx: Tx) -> Entry:
        await tx.execute("insert into note(n) values (1)")
        await tx.fetch("select sleep(30)")
        return entry(1, 1)

    with pytest.raises(TimeoutError):
        await notes.transact("a", 1, work, limit=0.2)
    assert await notes.raise_epoch("a", 1) == 2  # the fence is free
    assert await mysql_done(mysql_url, "select count(*) from note") == [(0,)]
    notes.renew("a", LEASE)
