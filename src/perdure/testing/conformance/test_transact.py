"""The user's own SQL in one transaction with its entry: whole or not at all. For stores that declare transactions."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from perdure.errors import CommitUnknown, LeaseLost, NotSupported, StoreRefused
from perdure.model.records import Entry, Kind
from perdure.model.tx import Tx
from perdure.model.writes import Edited, Outdated
from perdure.testing.conformance.kit import Kit, again, create, entry, plain_tests, suspend, uid, until

Work = Callable[[Tx], Awaitable[object]]


class Seen(Exception):
    """Carries out of a transaction what it saw, and rolls it back."""


async def do(kit: Kit, work: Work, seq: int = 1, *, of: int = 1, by: str = "a", limit: float = 20.0) -> Entry:
    """The work and entry `seq` of an instance as one transaction."""

    async def whole(tx: Tx) -> Entry:
        await work(tx)
        return entry(of, seq, kind=Kind.TRANSACTION)

    return await kit.store.transact(by, kit.epochs[by], whole, limit=limit)


async def aside(kit: Kit, work: Work) -> None:
    """The work is done in a transaction by a replica and for an instance of its own, of which nothing is left."""
    by, of = kit.store.system.random_bytes(6).hex(), 1_000_000
    await kit.join(by)
    await kit.commit(create(of, by, flow="aside"), by=by)
    try:
        await do(kit, work, of=of, by=by)
    finally:
        await kit.edited(of, by=by, delete=True)
        await kit.store.leave(by)


class Notes:
    """A table of the user's."""

    def __init__(self, kit: Kit, table: str) -> None:
        self._kit = kit
        self.table = table
        self.count = f"select count(*) as n from {table}"

    async def add(self, tx: Tx) -> None:
        """There is one note more."""
        await tx.execute(f"insert into {self.table}(n) values (1)")

    async def all(self) -> int:
        """How many notes are there, as a transaction sees it that changes nothing."""

        async def look(tx: Tx) -> None:
            (row,) = await tx.fetch(self.count)
            raise Seen(row["n"])

        with pytest.raises(Seen) as seen:
            await aside(self._kit, look)
        return seen.value.args[0]


async def notes_of(kit: Kit) -> Notes:
    """There is instance 1, and no note yet; the test is skipped where there are no transactions.

    The table is made here, under a name that no other test has. A database in which `create table` ends a transaction
    has one from the factory.
    """
    if not kit.store.transactions:
        pytest.skip("this store declares no transactions")
    await kit.commit(create(1))
    name = f"conformance_note_{kit.store.system.random_bytes(6).hex()}"
    try:
        await aside(kit, lambda tx: tx.execute(f"create table {name}(n integer)"))
    except Exception:
        return Notes(kit, "conformance_note")
    kit.at_end.push_async_callback(aside, kit, lambda tx: tx.execute(f"drop table {name}"))
    return Notes(kit, name)


async def test_a_store_has_transactions_or_says_so(kit: Kit) -> None:
    await kit.commit(create(1))

    async def work(tx: Tx) -> Entry:
        return entry(1, 1)

    if kit.store.transactions:
        assert await kit.store.transact("a", kit.epochs["a"], work, limit=5) == entry(1, 1)
        assert await kit.seqs(1) == [0, 1]
    else:
        with pytest.raises(NotSupported):
            await kit.store.transact("a", kit.epochs["a"], work, limit=5)
        assert await kit.seqs(1) == [0]


async def test_what_the_work_writes_and_its_entry_are_there_together(kit: Kit) -> None:
    notes = await notes_of(kit)
    assert await do(kit, notes.add) == entry(1, 1, kind=Kind.TRANSACTION)
    assert (await kit.load(1)).entries[1:] == [entry(1, 1, kind=Kind.TRANSACTION)]
    assert await notes.all() == 1


async def test_the_work_sees_what_it_has_written_by_column_names(kit: Kit) -> None:
    notes = await notes_of(kit)
    seen: list[Any] = []

    async def work(tx: Tx) -> None:
        await notes.add(tx)
        seen.extend(dict(row) for row in await tx.fetch(f"select n, n + 1 as next from {notes.table}"))

    await do(kit, work)
    assert seen == [{"n": 1, "next": 2}]


@pytest.mark.parametrize(
    "error", [ValueError("theirs"), TimeoutError("theirs"), LeaseLost("theirs"), CommitUnknown("theirs")], ids=repr
)
async def test_what_the_work_raises_is_raised_as_it_is_and_nothing_is_written(kit: Kit, error: Exception) -> None:
    notes = await notes_of(kit)

    async def work(tx: Tx) -> None:
        await notes.add(tx)
        raise error

    with pytest.raises(type(error)) as raised:
        await do(kit, work)
    assert raised.value is error
    assert (await notes.all(), await kit.seqs(1)) == (0, [0])
    await do(kit, notes.add)


async def test_a_statement_that_fails_is_the_works_own_error(kit: Kit) -> None:
    notes = await notes_of(kit)

    async def work(tx: Tx) -> None:
        await notes.add(tx)
        try:
            await tx.execute("insert into conformance_none values (1)")
        except Exception as error:
            raise Seen from error

    with pytest.raises(Seen):
        await do(kit, work)
    assert (await notes.all(), await kit.seqs(1)) == (0, [0])


async def test_a_transaction_needs_the_fence(kit: Kit) -> None:
    notes = await notes_of(kit)
    old = kit.epochs["a"]
    kit.epochs |= {"a": await kit.store.raise_epoch("a", old), "old": old, "stranger": 1}
    for replica, epoch in (("a", old), ("stranger", 1)):

        async def work(tx: Tx) -> Entry:
            await notes.add(tx)
            return entry(1, 1)

        with pytest.raises(LeaseLost):
            await kit.store.transact(replica, epoch, work, limit=20)
    assert (await notes.all(), await kit.seqs(1)) == (0, [0])
    await do(kit, notes.add)


async def test_a_replica_that_was_taken_over_makes_no_transaction(kit: Kit) -> None:
    notes = await notes_of(kit)
    await kit.taken_over_by_b()
    with pytest.raises(LeaseLost):
        await do(kit, notes.add)
    assert (await notes.all(), await kit.seqs(1)) == (0, [0])


@pytest.mark.parametrize("now", ["nobody's", "another's", "in its next run", "deleted"])
async def test_who_gave_the_instance_up_writes_nothing_more_for_it(kit: Kit, now: str) -> None:
    notes = await notes_of(kit)
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
    with pytest.raises(LeaseLost):
        await do(kit, notes.add)
    assert await notes.all() == 0
    assert await kit.store.entries(uid(1), 0, 0) == ([], False)


async def test_an_entry_that_is_there_already_keeps_the_work_from_being_done_again(kit: Kit) -> None:
    notes = await notes_of(kit)
    await do(kit, notes.add)
    with pytest.raises(StoreRefused):
        await do(kit, notes.add)
    assert await notes.all() == 1


async def test_a_transaction_that_runs_again_is_recorded_at_its_old_place(kit: Kit) -> None:
    notes = await notes_of(kit)
    await kit.commit(entry(1, 1, kind=Kind.AGAIN), entry(1, 2))
    await do(kit, notes.add)
    assert [e.kind for e in (await kit.load(1)).entries[1:]] == [Kind.TRANSACTION, Kind.STEP]


async def test_a_work_that_takes_too_long_is_stopped_and_nothing_is_written(kit: Kit) -> None:
    notes = await notes_of(kit)

    async def work(tx: Tx) -> None:
        await notes.add(tx)
        while True:
            await tx.fetch(notes.count)

    with pytest.raises(TimeoutError):
        await do(kit, work, limit=0.05)
    assert (await notes.all(), await kit.seqs(1)) == (0, [0])
    await do(kit, notes.add)


async def test_transactions_asked_for_at_once_follow_each_other(kit: Kit) -> None:
    notes = await notes_of(kit)
    seen: list[int] = []

    async def count(tx: Tx) -> None:
        await notes.add(tx)
        (row,) = await tx.fetch(notes.count)
        seen.append(row["n"])

    await kit.commit(*(create(n) for n in range(2, 12)))
    await asyncio.gather(*(do(kit, count, of=n) for n in range(2, 12)), kit.commit(entry(1, 1)))
    assert await notes.all() == 10
    assert [await kit.seqs(n) for n in range(1, 12)] == [[0, 1]] * 11


async def test_a_transaction_makes_what_an_edit_has_read_outdated(kit: Kit) -> None:
    notes = await notes_of(kit)
    edit = await kit.staged(1)
    await do(kit, notes.add)
    assert await kit.edit(edit, "a") == Outdated()
    assert await kit.edited(1, by="a") == Edited()


async def test_one_who_shares_the_store_is_told_of_a_transaction(kit: Kit) -> None:
    notes = await notes_of(kit)
    told: list[str] = []
    kit.store.on_change(lambda: told.append("one"))
    kit.store.on_change(lambda: told.append("two"))
    await do(kit, notes.add)
    await until(lambda: {*told} == {"one", "two"})


async def test_what_a_transaction_wrote_is_there_after_the_store_was_closed_and_opened_again(kit: Kit) -> None:
    notes = await notes_of(kit)
    await do(kit, notes.add)
    await kit.store.leave("a")
    await kit.store.close()
    await kit.store.open()
    await kit.join("b")
    assert await kit.claimed("b") == [1]
    assert (await notes.all(), await kit.seqs(1)) == (1, [0, 1])


plain_tests(globals())
