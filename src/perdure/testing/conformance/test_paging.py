"""Long journals come in pages of so many bytes; nothing is left out, nothing comes twice."""

from perdure.model.records import Entry, Loaded
from perdure.stores.contract import BUDGET
from perdure.testing.conformance.kit import Kit, again, create, entry, message, pending, plain_tests, send, suspend, uid

SIZE = 2 + 98
"""Bytes of an entry's arguments and outcome."""


def sized(of: int, seq: int) -> Entry:
    return entry(of, seq, b"x" * (SIZE - 2))


def seqs(entries: list[Entry]) -> list[int]:
    return [e.seq for e in entries]


async def three(kit: Kit) -> None:
    """There are instances 1, 2 and 3, each with a journal of 1,000 bytes."""
    for of in (1, 2, 3):
        await kit.commit(create(of, owned=False), *(sized(of, seq) for seq in range(-2, 8)))


async def loaded(kit: Kit, budget: int, *numbers: int) -> list[Loaded]:
    return await kit.store.load([uid(n) for n in numbers], budget=budget)


async def test_a_journal_is_cut_where_the_budget_is_reached(kit: Kit) -> None:
    await three(kit)
    for budget, last in ((1, -2), (SIZE, -2), (SIZE + 1, -1), (5 * SIZE, 2), (10 * SIZE - 100, 6)):
        (one,) = await loaded(kit, budget, 1)
        assert (seqs(one.entries), one.more) == (list(range(-2, last + 1)), True)


async def test_a_journal_that_fits_is_whole(kit: Kit) -> None:
    await three(kit)
    for budget in (10 * SIZE, 10 * SIZE + 1, BUDGET):
        (one,) = await loaded(kit, budget, 1)
        assert (seqs(one.entries), one.more) == (list(range(-2, 8)), False)


async def test_the_budget_is_for_all_instances_of_a_call_in_the_order_of_uids(kit: Kit) -> None:
    await three(kit)
    one, two = await loaded(kit, 15 * SIZE, 2, 9, 1, 3)
    assert (one.instance.uid, len(one.entries), one.more) == (uid(1), 10, False)
    assert (two.instance.uid, len(two.entries), two.more) == (uid(2), 5, True)
    assert [len(x.entries) for x in await loaded(kit, BUDGET, 1, 2, 3)] == [10, 10, 10]
    assert [(len(x.entries), x.more) for x in await loaded(kit, 10 * SIZE, 1, 2, 3)] == [(10, False)]


async def test_a_call_reads_at_least_one_entry(kit: Kit) -> None:
    await three(kit)
    await kit.commit(create(0, owned=False))
    empty, one = await loaded(kit, 0, 1, 0, 2)
    assert (empty.entries, empty.more) == ([], False)
    assert (seqs(one.entries), one.more) == ([-2], True)
    assert await kit.store.entries(uid(1), 0, -2, budget=0) == ([sized(1, -1)], True)


async def test_pages_together_are_the_journal(kit: Kit) -> None:
    await three(kit)
    (one,) = await loaded(kit, 3 * SIZE, 1)
    found, more, pages = one.entries, one.more, 1
    while more:
        page, more = await kit.store.entries(uid(1), 0, found[-1].seq, budget=3 * SIZE)
        found += page
        pages += 1
    assert found == [sized(1, seq) for seq in range(-2, 8)]
    assert pages == 4


async def test_entries_are_those_of_the_run_above_the_seq(kit: Kit) -> None:
    await three(kit)
    assert await kit.store.entries(uid(1), 0, 5) == ([sized(1, 6), sized(1, 7)], False)
    assert await kit.store.entries(uid(1), 0, 5, budget=2 * SIZE) == ([sized(1, 6), sized(1, 7)], False)
    assert await kit.store.entries(uid(1), 0, 5, budget=SIZE) == ([sized(1, 6)], True)
    assert await kit.store.entries(uid(1), 0, 7) == ([], False)
    assert await kit.store.entries(uid(1), 1, -100) == ([], False)
    assert await kit.store.entries(uid(9), 0, -100) == ([], False)


async def test_pending_operations_and_messages_of_a_cut_journal_are_all_there(kit: Kit) -> None:
    await three(kit)
    await kit.commit(pending(1, "1"), pending(1, "2"), send(1, 1), send(1, 2))
    (one,) = await loaded(kit, SIZE, 1)
    assert one.more
    assert [p.key for p in one.pending] == ["1", "2"]
    assert one.inbox == [message(1), message(2)]


async def test_entries_without_bytes_cost_nothing(kit: Kit) -> None:
    empty = [Entry(uid(1), 0, seq, "", "arrival", "", None, b"", False, None, 0, 0.0, 0.0) for seq in range(50)]
    await kit.commit(create(1, owned=False), *empty)
    (one,) = await loaded(kit, 1, 1)
    assert (one.entries, one.more) == (empty, False)


async def test_a_page_is_of_the_current_run(kit: Kit) -> None:
    await kit.commit(create(1), *(sized(1, seq) for seq in range(1, 5)), again(1))
    await kit.commit(suspend(1))
    (one,) = await loaded(kit, 1, 1)
    assert ([(e.run, e.seq) for e in one.entries], one.more) == ([(1, 0)], False)


plain_tests(globals())
