"""The user's own SQL in one transaction with its entry: whole or not at all, kept off our tables, and never for long."""

import asyncio
import contextvars
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import apsw
import pytest

from perdure.clock import Clock
from perdure.errors import CommitUnknown, LeaseLost, NotDurable, StoreFull, StoreRefused
from perdure.model.records import Entry, Kind
from perdure.model.tx import Tx
from perdure.model.writes import Batch, Create, Created, Edited, Outdated
from perdure.stores.sqlite import SqliteStore, schema, writing
from perdure.system import System
from perdure.testing.conformance.kit import Kit, MovableClock, again, suspend

LIMIT = 20.0
UID = (1).to_bytes(16, "big")
ENDLESS = "with recursive n(i) as (values (1) union all select i + 1 from n) select max(i) from n"
LONG = "with recursive n(i) as (values (1) union all select i + 1 from n where i < 200000) select max(i) from n"

Work = Callable[[Tx], Awaitable[object]]


class SkippingClock(MovableClock):
    skipped = 0.0

    def monotonic(self) -> float:
        return super(MovableClock, self).monotonic() + self.skipped


def entry(seq: int = 1, kind: str = Kind.TRANSACTION) -> Entry:
    return Entry(UID, 0, seq, str(seq), kind, "pay", None, b"", False, b"1", 1, 1.0, 1.0)


class Till:
    """A store with an instance, and a table of the user's."""

    def __init__(self, store: SqliteStore, clock: SkippingClock) -> None:
        self.store = store
        self.clock = clock
        self.epoch = 0

    async def open(self) -> None:
        await self.store.open()
        self.epoch = await self.store.join("a", 10.0)
        create = Create(UID, "f", "i", "f", b"[]", b"d", None, True, None, "v", 1.0, entry(0, Kind.BEGUN))
        await self.store.commit(Batch("a", self.epoch, [create], 1.0))
        await self.user("create table payment(id integer primary key, amount real, note text unique)")

    async def user(self, sql: str) -> Any:
        """The SQL is done beside the store."""
        other = apsw.Connection(self.store.path)
        try:
            return other.execute(sql).get
        finally:
            other.close()

    async def do(self, work: Work, *, limit: float = LIMIT, seq: int = 1) -> Entry:
        """The work and entry `seq` as one transaction."""

        async def whole(tx: Tx) -> Entry:
            await work(tx)
            return entry(seq)

        return await self.store.transact("a", self.epoch, whole, limit=limit)

    async def sql(self, *texts: str) -> Entry:
        async def work(tx: Tx) -> None:
            for text in texts:
                await tx.execute(text)

        return await self.do(work)

    async def seqs(self) -> list[int]:
        (loaded,) = await self.store.load([UID])
        return [e.seq for e in loaded.entries]

    async def payments(self) -> int:
        count: int = await self.user("select count(*) from payment")
        return count

    async def nothing_written(self) -> None:
        assert (await self.payments(), await self.seqs()) == (0, [0])

    async def on_writer(self, work: Callable[[Any], Any]) -> Any:
        assert self.store._writer is not None
        return await self.store._writer.do(work)

    async def unguarded(self) -> None:
        """The connection that writes is as before: nothing authorizes, nothing looks at the clock."""

        def look(db: Any) -> Any:
            assert db.authorizer is None
            return db.execute(LONG).get

        self.clock.skipped += 1_000_000.0
        assert await self.on_writer(look) == 200_000
        await self.store.check()


@pytest.fixture
async def till(tmp_path: Path) -> AsyncIterator[Till]:
    clock = SkippingClock()
    till = Till(SqliteStore(tmp_path / "test.db", System(clock)), clock)
    await till.open()
    yield till
    await till.store.close()


PAY = "insert into payment(amount, note) values (?, ?)"


async def pay(tx: Tx, note: str = "rent") -> None:
    await tx.execute(PAY, 7.5, note)


# -- whole or not at all


def test_the_store_says_that_it_can() -> None:
    assert SqliteStore("x.db").transactions


async def test_what_the_work_writes_and_its_entry_are_there_together(till: Till) -> None:
    assert await till.do(pay) == entry(1)
    (loaded,) = await till.store.load([UID])
    assert loaded.entries[1:] == [entry(1)]
    assert await till.user("select amount, note from payment") == (7.5, "rent")
    await till.unguarded()


async def test_rows_come_as_dicts_with_the_databases_values(till: Till) -> None:
    got: list[Any] = []

    async def work(tx: Tx) -> None:
        for note in ("a", "b"):
            await pay(tx, note)
        got.append(await tx.fetch("select id, note, amount * ? as twice from payment order by id", 2))
        got.append(await tx.fetch("select ? as n, ? as x, ? as b", None, 1.5, b"\0\xff"))
        got.append(await tx.fetch("select * from payment where note = ?", "none"))
        got.append(await tx.fetch("insert into payment(note) values ('c') returning note"))
        got.append(await tx.fetch("delete from payment where note = 'c'"))

    await till.do(work)
    assert got == [
        [{"id": 1, "note": "a", "twice": 15.0}, {"id": 2, "note": "b", "twice": 15.0}],
        [{"n": None, "x": 1.5, "b": b"\0\xff"}],
        [],
        [{"note": "c"}],
        [],
    ]


async def test_a_statement_that_gives_rows_is_done_to_its_end_without_asking_for_them(till: Till) -> None:
    await till.sql("insert into payment(note) values ('a'), ('b'), ('c') returning id")
    assert await till.payments() == 3


class Broke(Exception):
    pass


@pytest.mark.parametrize(
    "error",
    [Broke("no money"), OSError("theirs"), TypeError("theirs"), TimeoutError("theirs"), asyncio.CancelledError("x")],
)
async def test_what_the_work_raises_is_raised_as_it_is_and_nothing_is_written(
    till: Till, error: BaseException
) -> None:  # fmt: skip
    async def work(tx: Tx) -> None:
        await pay(tx)
        raise error

    with pytest.raises(type(error)) as raised:
        await till.do(work)
    assert raised.value is error
    await till.nothing_written()
    await till.unguarded()


async def test_a_work_that_raises_before_its_coroutine_is_there_is_no_different(till: Till) -> None:
    def work(tx: Tx) -> Coroutine[Any, Any, Entry]:
        raise Broke

    with pytest.raises(Broke):
        await till.store.transact("a", till.epoch, work, limit=LIMIT)
    await till.unguarded()


@pytest.mark.parametrize(
    ("error", "sql", "args"),
    [
        (apsw.ConstraintError, PAY, (1, "twice")),
        (apsw.SQLError, "insert into nothing values (1)", ()),
        (apsw.SQLError, "selec", ()),
        (apsw.BindingsError, PAY, (1,)),
        (TypeError, PAY, (1, object())),
        (OverflowError, PAY, (1 << 70, "x")),
        (UnicodeError, PAY, (1, "\ud800")),
    ],
)
async def test_what_is_wrong_with_the_sql_is_told_in_the_databases_words(
    till: Till, error: type[Exception], sql: str, args: tuple[Any, ...]
) -> None:
    async def work(tx: Tx) -> None:
        await pay(tx, "twice")
        await tx.execute(sql, *args)

    with pytest.raises(error):
        await till.do(work)
    await till.nothing_written()
    await till.unguarded()


async def test_the_work_may_go_on_after_a_statement_that_failed(till: Till) -> None:
    async def work(tx: Tx) -> None:
        await pay(tx)
        with pytest.raises(apsw.ConstraintError):
            await pay(tx)
        with pytest.raises(PermissionError):
            await tx.execute("delete from entry")
        await pay(tx, "food")

    await till.do(work)
    assert (await till.payments(), await till.seqs()) == (2, [0, 1])


async def test_after_a_statement_that_rolled_all_back_nothing_is_written_whatever_the_work_does(till: Till) -> None:
    seen: list[BaseException] = []

    async def work(tx: Tx) -> None:
        await pay(tx)
        for sql in ("insert or rollback into payment(note) values ('rent')", "insert into payment(note) values ('x')"):
            try:
                await tx.execute(sql)
            except apsw.ConstraintError as error:
                seen.append(error)

    with pytest.raises(apsw.ConstraintError):
        await till.do(work)
    assert len(seen) == 2
    await till.nothing_written()
    await till.unguarded()


async def test_the_fence_is_proved_before_the_work_begins(till: Till) -> None:
    begun: list[Tx] = []

    async def work(tx: Tx) -> Entry:
        begun.append(tx)
        return entry()

    for replica, epoch in (("a", till.epoch + 1), ("stranger", 1)):
        with pytest.raises(LeaseLost):
            await till.store.transact(replica, epoch, work, limit=LIMIT)
    assert begun == []


@pytest.mark.parametrize("now", ["nobody's", "another's", "in its next run", "deleted"])
async def test_who_gave_the_instance_up_writes_nothing_more_for_it(till: Till, now: str) -> None:
    kit = Kit(till.store, till.clock)
    kit.epochs["a"] = till.epoch
    await kit.join("b")
    match now:
        case "nobody's":
            await kit.commit(suspend(1))
        case "another's":
            await kit.commit(suspend(1, to="b"))
        case "deleted":
            await kit.edited(1, by="a", delete=True)
        case _:
            await kit.commit(again(1))
    with pytest.raises(LeaseLost, match="does not run this instance"):
        await till.do(pay)
    assert await till.payments() == 0
    assert await till.store.entries(UID, 0, 0) == ([], False)
    await till.unguarded()


async def test_an_entry_that_is_there_already_keeps_the_work_from_being_done_again(till: Till) -> None:
    await till.do(pay)
    with pytest.raises(StoreRefused, match="already"):
        await till.do(lambda tx: pay(tx, "again"))
    assert await till.payments() == 1


async def test_a_transaction_that_runs_again_is_recorded_at_its_old_place(till: Till) -> None:
    await till.store.commit(Batch("a", till.epoch, [entry(1, Kind.AGAIN)], 1.0))
    await till.do(pay)
    (loaded,) = await till.store.load([UID])
    assert loaded.entries[1] == entry(1)


async def test_a_full_database_is_the_stores_error_even_if_the_work_hides_it(till: Till) -> None:
    pages = await till.on_writer(lambda db: db.pragma("page_count"))
    await till.on_writer(lambda db: db.pragma("max_page_count", pages + 5))

    async def work(tx: Tx) -> None:
        await pay(tx)
        with pytest.raises(apsw.FullError):
            await pay(tx, "x" * 100_000)

    with pytest.raises(StoreFull, match="make room"):
        await till.do(work)
    await till.on_writer(lambda db: db.pragma("max_page_count", 1_000_000))
    await till.nothing_written()
    await till.do(pay)


class FailingCommit:
    """A connection whose commits fail on the disk, after or before they were done."""

    def __init__(self, db: Any, *, after: bool) -> None:
        self._db = db
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, text: str, values: Any = None, **how: Any) -> Any:
        if text == "commit":
            if self._after:
                self._db.execute(text)
            raise apsw.IOError("disk I/O error")
        return self._db.execute(text, values, **how)


@pytest.mark.parametrize("after", [False, True])
async def test_a_commit_that_fails_on_the_disk_is_unknown_and_the_journal_tells(till: Till, after: bool) -> None:
    writer = till.store._writer
    assert writer is not None
    await till.on_writer(lambda db: None)
    db, writer._db = writer._db, FailingCommit(writer._db, after=after)  # type: ignore[assignment]
    with pytest.raises(CommitUnknown):
        await till.do(pay)
    writer._db = db
    till.epoch = await till.store.raise_epoch("a", till.epoch)
    found, _ = await till.store.entries(UID, 0, 0)
    assert (len(found), await till.payments()) == ((1, 1) if after else (0, 0))


KILLED = """
import asyncio, os, signal, sys
from perdure.stores.sqlite import SqliteStore

async def work(tx):
    await tx.execute("insert into payment(note) values ('killed')")
    print(await tx.fetch("select count(*) as n from payment"), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    store = SqliteStore(sys.argv[1])
    await store.open()
    await store.transact("b", await store.join("b", 10.0), work, limit=10.0)

asyncio.run(main())
"""


async def test_a_process_killed_in_its_transaction_leaves_nothing_of_it(till: Till) -> None:
    command = [sys.executable, "-c", KILLED, till.store.path]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-9, "[{'n': 1}]\n"), done.stderr
    await till.nothing_written()
    await till.do(pay)


# -- the work awaits the transaction alone


async def sleeps(tx: Tx) -> None:
    await asyncio.sleep(1)


async def yields(tx: Tx) -> None:
    await asyncio.sleep(0)


async def takes_a_thread(tx: Tx) -> None:
    await asyncio.to_thread(print)


async def waits_for_a_future(tx: Tx) -> None:
    await FOREIGN.get()


async def holds_on(tx: Tx) -> None:
    try:
        await asyncio.sleep(0)
    except GeneratorExit:
        await asyncio.sleep(0)


FOREIGN: contextvars.ContextVar[asyncio.Future[None]] = contextvars.ContextVar("foreign")


@pytest.mark.parametrize("other", [sleeps, yields, takes_a_thread, waits_for_a_future, holds_on])
async def test_a_work_that_awaits_something_else_is_told_to_do_that_elsewhere(till: Till, other: Work) -> None:
    FOREIGN.set(asyncio.get_running_loop().create_future())

    async def work(tx: Tx) -> None:
        await pay(tx)
        await other(tx)

    with pytest.raises(NotDurable, match=r"only tx\.execute and tx\.fetch.*in a step"):
        await till.do(work)
    await till.nothing_written()
    await till.unguarded()


async def test_a_work_that_is_cut_off_is_closed(till: Till) -> None:
    closed: list[object] = []

    async def work(tx: Tx) -> None:
        try:
            await yields(tx)
        finally:
            await pay(tx)
            closed.append(await tx.fetch("select note from payment"))

    with pytest.raises(NotDurable):
        await till.do(work)
    assert closed == [[{"note": "rent"}]]
    await till.nothing_written()


async def test_what_another_database_of_the_users_says_is_theirs_and_not_the_stores(till: Till, tmp_path: Path) -> None:
    async def work(tx: Tx) -> None:
        await pay(tx)
        apsw.Connection(str(tmp_path / "none" / "x.db"))

    with pytest.raises(apsw.CantOpenError):
        await till.do(work)
    await till.nothing_written()


async def test_the_errors_of_a_work_without_a_loop_are_its_own(till: Till) -> None:
    async def work(tx: Tx) -> None:
        raise RuntimeError("theirs")

    with pytest.raises(RuntimeError, match="theirs"):
        await till.do(work)


async def test_a_transaction_is_of_no_use_when_it_is_over(till: Till) -> None:
    kept: list[Tx] = []

    async def work(tx: Tx) -> None:
        kept.append(tx)

    await till.do(work)
    for call in (kept[0].execute, kept[0].fetch):
        with pytest.raises(NotDurable, match="over"):
            await call("delete from payment")
    await till.on_writer(lambda db: None)


async def test_a_transaction_is_of_no_use_in_another_thread(till: Till) -> None:
    raised: list[BaseException] = []

    def use(tx: Tx) -> None:
        try:
            tx.execute("insert into payment(note) values ('x')").send(None)
        except BaseException as error:
            raised.append(error)

    async def work(tx: Tx) -> None:
        thread = threading.Thread(target=use, args=(tx,))
        thread.start()
        thread.join()

    await till.do(work)
    assert [type(error) for error in raised] == [NotDurable]
    assert await till.payments() == 0


async def test_the_work_sees_the_context_of_its_caller(till: Till) -> None:
    told: contextvars.ContextVar[str] = contextvars.ContextVar("told", default="nothing")
    told.set("something")
    seen: list[str] = []

    async def work(tx: Tx) -> None:
        seen.append(told.get())
        told.set("otherwise")

    await till.do(work)
    assert (seen, told.get()) == (["something"], "something")


# -- what is ours


async def refused(till: Till, sql: str, what: str = "", *args: object) -> None:
    async def work(tx: Tx) -> None:
        await pay(tx)
        await tx.fetch(sql, *args)

    with pytest.raises(PermissionError, match=f"may not .*{what}"):
        await till.do(work)


def is_table(name: str) -> bool:
    return f"create table {name}(" in schema._TABLES


@pytest.mark.parametrize("name", [name for name in sorted(schema.OWN) if is_table(name)])
async def test_no_table_of_the_stores_is_read_written_or_changed(till: Till, name: str) -> None:
    column = await till.user(f"select name from pragma_table_info('{name}') limit 1")
    for sql in (
        f"select count(*) from {name}",
        f"select {column} from main.{name.upper()}",
        f"select 1 from payment where exists (select 1 from {name})",
        f"insert into {name} default values",
        f"insert or replace into {name}({column}) values (1)",
        f"update {name} set {column} = {column}",
        f"delete from {name}",
        f"insert into payment(note) select {column} from {name}",
        f"drop table {name}",
        f"alter table {name} rename to mine",
        f"alter table {name} add column mine",
        f"create index mine on {name}({column})",
        f"create trigger mine after insert on {name} begin select 1; end",
        f"create table if not exists {name}(a)",
        f"reindex sqlite_autoindex_{name}_1",
        f"/* mine */ delete from [{name}]",
    ):
        if not (sql.startswith("reindex") and name in ("early", "entry", "inbox", "checked")):  # these have none
            await refused(till, sql, f"(?i:{name}).*Perdure's own")
    await till.nothing_written()


@pytest.mark.parametrize("name", [name for name in sorted(schema.OWN) if not is_table(name)])
async def test_no_index_of_the_stores_is_touched(till: Till, name: str) -> None:
    for sql in (f"drop index {name}", f"reindex {name}"):
        await refused(till, sql, "Perdure's own")


def test_all_names_of_the_store_are_known() -> None:
    db = apsw.Connection(":memory:")
    for statement in schema._TABLES.split(";\n"):
        db.execute(statement)
    made = {row[0] for row in db.execute("select name from sqlite_schema where name not like 'sqlite%'")}
    assert made == schema.OWN
    assert sum(map(is_table, made)) > 8


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("begin", "begin or end"), ("commit", "begin or end"), ("end", "begin or end"), ("rollback", "begin or end"),
        ("insert into payment(note) values ('x'); commit", "begin or end"),
        ("select 1; -- and then\n COMMIT", "begin or end"),
        ("savepoint a", "savepoints"), ("release a", "savepoints"), ("rollback to a", "savepoints"),
        ("attach ':memory:' as other", "attach"), ("detach main", "detach"),
        ("pragma foreign_keys = on", "pragma foreign_keys"), ("pragma user_version", "pragma user_version"),
        ("pragma writable_schema = 1", "pragma"), ("pragma data_version = 1", "pragma"),
        ("select * from pragma_table_info('payment')", "pragma table_info"),
        ("select * from pragma_journal_mode", "pragma journal_mode"),
        ("create temp table entry(a)", "temporary"), ("create table temp.entry(a)", "temporary"),
        ("create temp view entry as select 1", "temporary"), ("create view temp.entry as select 1", "temporary"),
        ("create temp trigger mine after insert on payment begin select 1; end", "temporary"),
        ("create virtual table temp.entry using fts5(a)", "temporary"),
        ("analyze", "analyze"), ("analyze payment", "analyze"),
    ],
)  # fmt: skip
async def test_what_reaches_beyond_the_transaction_is_refused(till: Till, sql: str, what: str) -> None:
    await refused(till, sql, what)
    await till.nothing_written()
    await till.unguarded()


async def test_our_tables_are_not_reached_by_views_or_triggers_of_the_users(till: Till) -> None:
    await till.sql(
        "create view mine as select * from instance",
        "create trigger spy after insert on payment begin delete from entry; end",
    )
    for sql in ("select * from mine", "insert into payment(note) values ('x')"):
        with pytest.raises(PermissionError, match="Perdure's own"):
            await till.sql(sql)
    assert await till.seqs() == [0, 1]


async def test_statistics_of_our_tables_are_not_the_users_to_write(till: Till) -> None:
    await till.user("analyze payment")
    await refused(till, "insert into sqlite_stat1 values ('entry', 'entry_seq', '1 1 1 1')", "analyze")
    await refused(till, "update sqlite_stat1 set stat = '1'", "analyze")


async def test_a_statement_that_the_store_has_just_used_itself_is_refused_to_the_user(till: Till) -> None:
    await till.store.commit(Batch("a", till.epoch, [], 1.0))  # it is prepared on the connection now
    await refused(till, writing.FENCE, "fence", "a", till.epoch)
    await till.store.commit(Batch("a", till.epoch, [], 1.0))


async def test_tables_of_ones_own_may_be_made_and_changed_and_their_columns_called_as_one_likes(till: Till) -> None:
    got: list[Any] = []

    async def work(tx: Tx) -> None:
        await tx.execute("create table mine(instance text, entry integer primary key autoincrement, watch)")
        await tx.execute("create index mine_watch on mine(watch)")
        await tx.execute("create view shown as select instance, watch as pending from mine")
        await tx.execute("create trigger noted after insert on mine begin update mine set watch = 'w'; end")
        await tx.execute("alter table mine add column early")
        await tx.execute("alter table mine rename column early to late")
        await tx.execute("insert into mine(instance) values ('i')")
        got.append(await tx.fetch("select instance, pending from shown"))
        got.append(await tx.fetch("select max(entry) as fence from mine"))
        await tx.execute("drop trigger noted")
        await tx.execute("drop index mine_watch")
        await tx.execute("alter table mine rename to yours")
        await tx.execute("drop view shown")
        await tx.execute("drop table yours")
        got.append(await tx.fetch("select count(*) as n from sqlite_schema where name in ('mine', 'yours')"))

    await till.do(work)
    assert got == [[{"instance": "i", "pending": "w"}], [{"fence": 1}], [{"n": 0}]]


async def test_full_text_and_spatial_tables_work(till: Till) -> None:
    got: list[Any] = []

    async def work(tx: Tx) -> None:
        await tx.execute("create virtual table text using fts5(body)")
        await tx.execute("create virtual table place using rtree(id, x0, x1)")
        await tx.execute("insert into text values (?)", "nothing is lost")
        await tx.execute("insert into place values (1, 2, 3)")
        got.append(await tx.fetch("select rowid from text where text match 'lost'"))
        got.append(await tx.fetch("select id from place where x0 < 5"))
        await tx.execute("delete from text")

    await till.do(work)
    assert got == [[{"rowid": 1}], [{"id": 1}]]
    await till.do(lambda tx: tx.fetch("select * from text"), seq=2)


# -- never for long


async def test_sql_that_takes_too_long_is_stopped(till: Till) -> None:
    async def work(tx: Tx) -> None:
        await pay(tx)
        await tx.fetch(ENDLESS)

    with pytest.raises(TimeoutError, match=r"longer than 0\.05 s; nothing was written"):
        await till.do(work, limit=0.05)
    await till.nothing_written()
    await till.unguarded()


async def test_rows_without_end_are_stopped(till: Till) -> None:
    with pytest.raises(TimeoutError):
        await till.do(lambda tx: tx.fetch(ENDLESS.replace("max(i)", "i")), limit=0.02)
    await till.nothing_written()


async def test_what_was_too_late_is_not_written_even_if_the_work_hides_it(till: Till) -> None:
    seen: list[type[BaseException]] = []

    async def work(tx: Tx) -> None:
        for sql in (ENDLESS, "insert into payment(note) values ('late')"):
            try:
                await tx.execute(sql)
            except Exception as error:
                seen.append(type(error))

    with pytest.raises(TimeoutError):
        await till.do(work, limit=0.05)
    assert seen == [TimeoutError, TimeoutError]
    await till.nothing_written()


async def test_a_write_that_is_stopped_leaves_the_connection_in_order(till: Till) -> None:
    endless = ENDLESS.replace("select max(i) from n", "select i, 1, i from n")
    with pytest.raises(TimeoutError):
        await till.do(lambda tx: tx.execute(f"insert into payment {endless}"), limit=0.05)
    await till.nothing_written()
    await till.do(pay)


async def test_time_that_passes_outside_of_the_database_counts_too(till: Till) -> None:
    async def work(tx: Tx) -> None:
        await pay(tx)
        till.clock.skipped += LIMIT + 1  # and no statement comes after

    with pytest.raises(TimeoutError):
        await till.do(work)
    await till.nothing_written()

    async def another(tx: Tx) -> None:
        till.clock.skipped += LIMIT + 1
        with pytest.raises(TimeoutError):
            await pay(tx)

    with pytest.raises(TimeoutError):
        await till.do(another)
    await till.nothing_written()


async def test_an_error_of_the_work_that_comes_too_late_is_its_own(till: Till) -> None:
    async def work(tx: Tx) -> None:
        till.clock.skipped += LIMIT + 1
        raise Broke

    with pytest.raises(Broke):
        await till.do(work)


async def test_time_spent_waiting_for_ones_turn_does_not_count(till: Till) -> None:
    other = apsw.Connection(till.store.path)
    other.execute("begin immediate")
    task = asyncio.ensure_future(till.do(pay, limit=LIMIT))
    await asyncio.sleep(0)
    till.clock.skipped += LIMIT + 1
    other.execute("rollback")
    other.close()
    await task
    assert await till.payments() == 1


# -- beside others


async def test_what_is_committed_meanwhile_waits_its_turn(till: Till) -> None:
    inside, go_on = threading.Event(), threading.Event()

    async def work(tx: Tx) -> None:
        inside.set()
        assert go_on.wait(20)
        await pay(tx)

    task = asyncio.ensure_future(till.do(work))
    await asyncio.to_thread(inside.wait, 20)
    create = Create((2).to_bytes(16, "big"), "f", "i2", "f", b"[]", b"d", None, False, None, "v", 1.0, None)
    small = asyncio.ensure_future(till.store.commit(Batch("a", till.epoch, [create], 1.0)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not small.done()
    assert await till.store.instance("f", "i2") is None  # reading waits for nobody
    go_on.set()
    assert await small == [Created()]
    assert task.done()
    await task


async def test_who_shares_the_store_is_told_and_who_is_alone_is_not(till: Till) -> None:
    async def looked() -> None:
        for _ in range(2):  # the thread looks whether others wrote when a job is done
            await till.on_writer(lambda db: None)

    await looked()
    told: list[str] = []
    till.store.on_change(lambda: told.append("one"))
    await till.do(pay)
    await looked()
    assert told == []
    till.store.on_change(lambda: told.append("two"))
    await till.do(lambda tx: pay(tx, "more"), seq=2)
    assert told == ["one", "two"]


async def test_a_longer_journal_makes_an_edit_outdated(till: Till) -> None:
    kit = Kit(till.store, till.clock)
    kit.epochs["a"] = till.epoch
    edit = await kit.staged(1)
    await till.do(pay)
    assert await kit.edit(edit, "a") == Outdated()
    assert await kit.edited(1, by="a") == Edited()


async def test_transactions_follow_each_other(till: Till) -> None:
    async def take(tx: Tx) -> None:
        (row,) = await tx.fetch("select coalesce(max(amount), 0) as most from payment")
        await tx.execute(PAY, row["most"] + 1, None)

    await asyncio.gather(*(till.do(take, seq=n) for n in range(1, 21)))
    assert await till.user("select count(*), max(amount) from payment") == (20, 20.0)
    assert await till.seqs() == list(range(21))


def test_the_clock_of_the_tests_moves_what_it_should() -> None:
    clock = SkippingClock()
    before = clock.monotonic()
    clock.skipped = 5.0
    assert clock.monotonic() - before >= 5.0
    assert isinstance(clock, Clock)
