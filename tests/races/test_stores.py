"""What two do to a store at the same instant, again and again. The numbers are those of what could go wrong."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable
from typing import Any, TypeVar

import asyncpg
import pytest

from perdure.errors import LeaseLost, StoreRefused
from perdure.model.records import State
from perdure.model.writes import Batch, Created, Edited, Existing, Expose, Finished, Outdated, OwnedBy, Take
from perdure.stores.postgres import PostgresStore
from perdure.testing.conformance.kit import (
    LEASE,
    Kit,
    create,
    entry,
    finish,
    message,
    mids,
    send,
    suspend,
    uid,
    watch,
)
from tests.races.conftest import ROUNDS

A = TypeVar("A")
B = TypeVar("B")

Two = tuple[Kit, Kit]
chance = random.Random(7)


async def at_once(one: Awaitable[A], two: Awaitable[B]) -> tuple[A, B]:
    """What the two gave, of whom now the one and now the other is let go first, by a hair."""

    async def after(turns: int, what: Awaitable[Any]) -> Any:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await what

    first, second = chance.choice([(0, 0), (0, 0), (0, 1), (1, 0), (0, 3), (3, 0), (0, 8), (8, 0)])
    got = await asyncio.gather(after(first, one), after(second, two), return_exceptions=True)
    for each in got:
        if isinstance(each, BaseException) and not isinstance(each, LeaseLost | StoreRefused):
            raise each
    return got[0], got[1]


def take(mid: bytes, of: int = 1) -> Take:
    """The message is taken."""
    return Take(uid(of), mid)


# -- 2: who edits, and who owns


@pytest.mark.fault(52, 53)
@pytest.mark.peer(6, 7)
async def test_02_an_instance_is_edited_or_claimed_and_never_both(two: Two) -> None:
    a, b = two
    for n in range(ROUNDS):
        await a.commit(create(n, owned=False, due_at=1.0))
        edit = await b.staged(n, change={"state": State.BLOCKED, "due_at": None})
        claimed, answer = await at_once(a.claimed(), b.edit(edit))
        row = await a.row(n)
        if isinstance(answer, Edited):
            assert (claimed, row.state, row.owner) == ([], State.BLOCKED, None)
        else:
            assert isinstance(answer, OwnedBy | Outdated)
            assert (claimed, row.state, row.owner) == ([n], State.RUNNING, "a")
            await a.commit(entry(n, 1), finish(n))


@pytest.mark.fault(52)
async def test_02_what_its_owner_writes_is_never_written_beside_a_deletion(two: Two) -> None:
    a, b = two
    for n in range(ROUNDS):
        await a.commit(create(n))
        deletion = await b.staged(n, delete=True)
        _, answer = await at_once(a.commit(entry(n, 1), finish(n)), b.edit(deletion))
        there = await a.store.load([uid(n)])
        assert isinstance(answer, OwnedBy | Outdated)
        assert [e.seq for e in there[0].entries] == [0, 1]


@pytest.mark.fault(52)
@pytest.mark.peer(9, 37)
async def test_02_of_two_ways_to_end_one_is_written(two: Two) -> None:
    a, b = two
    for n in range(ROUNDS):
        await a.commit(create(n, owned=False, due_at=9e12))
        ends = [
            await kit.staged(
                n, id=f"by {state}", change={"state": state, "due_at": None, "outcome": state.value.encode()}
            )
            for kit, state in ((a, State.SUCCEEDED), (b, State.FAILED))
        ]
        answers = await at_once(a.edit(ends[0]), b.edit(ends[1]))
        assert sorted(type(answer).__name__ for answer in answers) == ["Edited", "Outdated"]
        row = await a.row(n)
        assert row.outcome == row.state.value.encode()
        assert (row.state is State.SUCCEEDED) == isinstance(answers[0], Edited)


# -- 3: one's own batch that comes late


@pytest.mark.fault(10, 14)
async def test_03_a_batch_of_an_old_epoch_is_done_when_the_new_one_is_raised_or_never(two: Two) -> None:
    a, b = two
    await a.commit(create(1))
    for seq in range(1, ROUNDS + 1):
        old = a.epochs["a"]
        late = Batch("a", old, [entry(1, seq), suspend(1, due_at=1.0)], a.clock.now)

        async def raised(old: int = old) -> set[int]:
            a.epochs["a"] = await a.store.raise_epoch("a", old)
            return set(await a.seqs(1))

        answer, there = await at_once(a.store.commit(late), raised())
        assert (seq in there) == (not isinstance(answer, LeaseLost)), answer
        if seq not in there:
            await a.commit(entry(1, seq), suspend(1, due_at=1.0))
        assert await b.claimed("b") == [1]
        with pytest.raises(LeaseLost):
            await a.store.commit(late)
        assert (await a.row(1)).owner == "b"
        await b.commit(suspend(1, due_at=1.0), by="b")
        assert await a.claimed() == [1]


# -- 8: a wake-up that nobody hears


@pytest.mark.fault(41)
@pytest.mark.peer(8, 23, 39)
async def test_08_a_message_sent_as_its_receiver_is_claimed_is_read_or_called_for(two: Two) -> None:
    a, b = two

    async def claims() -> list[bytes]:
        await a.claimed()
        return await a.mids(1)

    await a.commit(create(1), suspend(1, due_at=1.0))
    for n in range(1, ROUNDS + 1):
        read, _ = await at_once(claims(), b.sent(send(1, n), None))
        called = await a.wakeups()
        assert mids(n)[0] in read or called == [1]
        assert await a.mids(1) == mids(n)
        await a.commit(take(mids(n)[0]), suspend(1, due_at=1.0))


@pytest.mark.fault(41)
@pytest.mark.peer(23, 39)
async def test_08_a_message_sent_as_its_owner_looks_is_read_or_called_for(two: Two) -> None:
    a, b = two

    async def looks() -> list[bytes]:
        await a.wakeups()
        return await a.mids(1)

    await a.commit(create(1))
    for n in range(ROUNDS):
        one, other = send(1, 2 * n), send(1, 2 * n + 1)
        await b.sent(one, None)
        read, _ = await at_once(looks(), b.sent(other, None))
        called = await a.wakeups()
        assert mids(2 * n)[0] in read
        assert mids(2 * n + 1)[0] in read or called == [1]
        await a.commit(*(take(mid) for mid in mids(2 * n, 2 * n + 1)))


@pytest.mark.fault(37, 41)
@pytest.mark.peer(39)
async def test_08_a_message_sent_as_its_receiver_begins_is_there_and_told_of(two: Two) -> None:
    a, b = two
    for n in range(ROUNDS):
        created, sent = await at_once(a.created(create(n)), b.sent(send(n, n), None))
        assert await a.mids(n) == mids(n)
        waited = created.inbox == (message(n),)
        assert waited == (sent.uid is None)
        assert await a.wakeups() == ([] if waited else [n])


@pytest.mark.fault(37)
@pytest.mark.peer(22)
async def test_08_messages_that_are_committed_out_of_order_are_all_read(two: Two) -> None:
    a, b = two
    await a.commit(create(1))
    seen: list[bytes] = []

    async def sends(kit: Kit, first: int) -> None:
        for number in (first, first + 1):
            await kit.sent(send(1, number), None)

    for n in range(0, 4 * ROUNDS, 4):
        sending = asyncio.gather(sends(a, n), sends(b, n + 2))
        while True:
            over = sending.done()
            await asyncio.sleep(0)
            seen += [mid for mid in await a.mids(1) if mid not in seen]
            if over:
                break
        assert sorted(seen) == mids(*range(n, n + 4))
        for mine in (mids(n, n + 1), mids(n + 2, n + 3)):
            assert seen.index(mine[0]) < seen.index(mine[1])
        await a.commit(*(take(mid) for mid in seen))
        seen.clear()


# -- 9, 15: a takeover in the middle of a batch


class Mortals:
    """Replicas of one store object, each of which lets its lease run out and is taken over by `b`."""

    def __init__(self, mortal: Kit, heir: Kit) -> None:
        self.mortal, self.heir = mortal, heir
        self._numbers = itertools.count()

    async def born(self) -> str:
        """A replica that has joined, and whose lease is over now; the heir may judge."""
        name = f"m{next(self._numbers)}"
        await self.mortal.join(name)
        for _ in range(2):
            self.heir.clock.now += LEASE * 0.7
            self.heir.store.renew("b", LEASE)
        return name

    async def reaped(self) -> tuple[str, ...]:
        return (await self.heir.store.reap("b", kill_hung=False)).taken


@pytest.fixture
async def mortals(two: Two) -> Mortals:
    a, b = two
    await a.store.leave("a")
    return Mortals(a, b)


@pytest.mark.fault(3, 53)
@pytest.mark.peer(2, 5, 27, 28)
async def test_09_a_batch_and_the_takeover_of_who_sends_it_are_whole(two: Two, mortals: Mortals) -> None:
    """Its entry, the child that it began and the message that it sent are there together, or none of them."""
    a, b = two
    for n in range(0, 3 * ROUNDS, 3):
        me = await mortals.born()
        await a.commit(create(n), create(n + 2, owned=False), by=me)
        batch = [entry(n, 1), create(n + 1, parent=n), send(n + 2, n)]
        answer, taken = await at_once(a.commit(*batch, by=me), mortals.reaped())
        done = not isinstance(answer, LeaseLost)
        assert taken == (me,)
        assert await b.seqs(n) == ([0, 1] if done else [0])
        children = await b.store.instances([uid(n + 1)])
        assert [child.owner for child in children] == ([None] if done else [])
        assert await b.mids(n + 2) == (mids(n) if done else [])
        assert (await b.row(n)).owner is None
        await b.commit(*(finish(each) for each in await b.claimed("b")), by="b")


@pytest.mark.fault(3)
@pytest.mark.peer(5, 31)
async def test_15_who_renews_as_it_is_taken_over_has_lost_its_lease_or_not_and_knows(
    two: Two, mortals: Mortals
) -> None:
    a, b = two
    for n in range(ROUNDS):
        me = await mortals.born()
        await a.commit(create(n), by=me)
        renewed, taken = await at_once(asyncio.to_thread(a.store.renew, me, LEASE), mortals.reaped())
        (answer,) = await asyncio.gather(a.commit(entry(n, 1), by=me), return_exceptions=True)
        assert isinstance(answer, LeaseLost) == (taken == (me,)), (answer, taken)
        if isinstance(renewed, LeaseLost):
            assert taken == (me,)
        if not taken:
            await a.store.leave(me)
        assert (await b.row(n)).owner is None
        with pytest.raises(LeaseLost):
            a.store.renew(me, LEASE)


@pytest.mark.fault(53)
@pytest.mark.peer(6, 8)
async def test_15_of_two_who_find_one_dead_both_may_free_it_and_each_instance_has_one_heir(
    two: Two, mortals: Mortals
) -> None:
    a, b = two
    await a.join("c")
    for n in range(0, 4 * ROUNDS, 4):
        a.store.renew("c", LEASE)
        me = await mortals.born()
        await a.commit(*(create(n + i) for i in range(4)), by=me)
        a.store.renew("c", LEASE)

        async def recovers(kit: Kit, by: str) -> list[int]:
            await kit.store.reap(by, kill_hung=False, limit=2)
            return await kit.claimed(by)

        mine, theirs = await at_once(recovers(a, "c"), recovers(b, "b"))
        late = await b.claimed("b")
        assert sorted(mine + theirs + late) == [n + i for i in range(4)]
        for by, kit, found in (("c", a, mine), ("b", b, theirs + late)):
            await kit.commit(*(finish(each) for each in found), by=by)


# -- 14: bad data beside good data


@pytest.mark.fault(18)
@pytest.mark.peer(4, 15, 29)
@pytest.mark.parametrize("made", ["sqlite", "postgresql"], indirect=True)  # a store in memory takes everything
async def test_14_a_batch_that_is_refused_takes_no_other_with_it(two: Two) -> None:
    a, b = two
    for n in range(0, 2 * ROUNDS, 2):
        await a.commit(create(n), by="a")
        await b.commit(create(n + 1), by="b")
        bad = [entry(n, 1), Expose(uid(n), "\ud800", b"")]
        refused, answer = await at_once(a.commit(*bad), b.commit(entry(n + 1, 1), finish(n + 1), by="b"))
        assert isinstance(refused, StoreRefused)
        assert isinstance(answer[1], Finished)
        assert await a.seqs(n) == [0]
        assert await a.commit(entry(n, 1)) == [None]


# -- 16: a lock that comes free is no death


@pytest.mark.peer(1, 31)
async def test_16_who_lives_is_not_taken_over_however_often_one_looks(two: Two) -> None:
    a, b = two
    await a.commit(create(1))
    for seq in range(1, ROUNDS + 1):
        a.clock.now += LEASE * 0.4
        for kit, by in ((a, "a"), (b, "b")):
            kit.store.renew(by, LEASE)
        reaped, answer = await at_once(b.store.reap("b", kill_hung=True), a.commit(entry(1, seq)))
        assert (reaped.taken, reaped.hung) == ((), ())
        assert answer == [None]


@pytest.mark.fault(12)
@pytest.mark.peer(1, 31)
@pytest.mark.parametrize("made", ["postgresql"], indirect=True)
async def test_16_a_lock_that_is_free_because_its_connection_was_cut_is_no_death(two: Two) -> None:
    a, b = two
    assert isinstance(a.store, PostgresStore)
    cutter = await asyncpg.connect(a.store.address.url)
    try:
        for _ in range(ROUNDS):
            for kit, by in ((a, "a"), (b, "b")):
                await asyncio.to_thread(kit.store.renew, by, LEASE)
            assert a.store._beside is not None
            assert a.store._beside._connection is not None
            pid = a.store._beside._connection.get_server_pid()
            reaped, _ = await at_once(
                b.store.reap("b", kill_hung=False), cutter.fetch("select pg_terminate_backend($1)", pid)
            )
            assert reaped.taken == ()
            await asyncio.to_thread(a.store.renew, "a", LEASE)  # the lock is held again
            a.clock.now += 1.5  # longer than one is suspected
            assert (await b.store.reap("b", kill_hung=False)).taken == ()
    finally:
        await cutter.close()
    assert await a.commit(create(1)) == [Created()]


# -- 18: rows in another order


@pytest.mark.fault(18)
@pytest.mark.peer(36)
async def test_18_batches_that_touch_the_same_rows_in_another_order_are_all_written(two: Two) -> None:
    a, b = two
    every = range(8)
    await a.commit(*(create(n) for n in range(4)))
    await b.commit(*(create(n) for n in range(4, 8)), by="b")
    for number in range(1, ROUNDS + 1):
        there = [send(to, 100 * number + to) for to in every]
        back = [send(to, 100 * number + 50 + to) for to in reversed(every)]
        mine = [entry(n, number) for n in range(4)]
        theirs = [entry(n, number) for n in range(7, 3, -1)]
        await at_once(a.commit(*mine, *there), b.commit(*theirs, *back, by="b"))
        for to in every:
            got = await a.mids(to)
            assert sorted(got) == mids(100 * number + to, 100 * number + 50 + to)
            kit, by = (a, "a") if to < 4 else (b, "b")
            await kit.commit(*(take(mid, to) for mid in got), by=by)


# -- 20: a release, and what comes meanwhile


@pytest.mark.fault(41, 48)
@pytest.mark.peer(24, 38)
async def test_20_a_message_sent_as_its_receiver_is_released_wakes_it_once(two: Two) -> None:
    a, b = two
    await a.commit(create(1))
    for n in range(1, ROUNDS + 1):
        await at_once(a.commit(suspend(1, seen=tuple(await a.mids(1)))), b.sent(send(1, n), None))
        claims = await at_once(a.claimed("a"), b.claimed("b"))
        assert sorted(itertools.chain(*claims)) == [1]
        by = "a" if claims[0] else "b"
        kit = a if claims[0] else b
        assert (await kit.mids(1))[-1] == mids(n)[0]
        await kit.wakeups(by)
        await kit.commit(*(take(mid) for mid in await kit.mids(1)), by=by)
        if by == "b":
            await b.commit(suspend(1, to="a"), by="b")
            assert (await a.row(1)).owner == "a"


@pytest.mark.fault(41)
@pytest.mark.peer(24)
async def test_20_who_ends_as_somebody_asks_for_its_end_tells_it(two: Two) -> None:
    a, b = two
    for n in range(0, 2 * ROUNDS, 2):
        await a.commit(create(n))
        await b.commit(create(n + 1), by="b")
        await at_once(a.commit(watch(n, n + 1)), b.commit(finish(n + 1), by="b"))
        assert [m.type for m in await a.inbox(n)] == ["succeeded"]
        await a.wakeups()


# -- who is first


@pytest.mark.fault(54)
async def test_of_two_who_create_one_id_one_does(two: Two) -> None:
    a, b = two
    for n in range(0, 2 * ROUNDS, 2):
        mine, theirs = create(n, f"x{n}"), create(n + 1, f"x{n}")
        answers = await at_once(a.one(mine), b.one(theirs, "b"))
        assert sorted(type(answer).__name__ for answer in answers) == ["Created", "Existing"]
        winner = mine.uid if isinstance(answers[0], Created) else theirs.uid
        assert {answer.uid for answer in answers if isinstance(answer, Existing)} == {winner}


@pytest.mark.fault(52, 55)
async def test_who_is_removed_as_it_is_restarted_is_the_one_or_the_other(two: Two) -> None:
    a, b = two
    for n in range(ROUNDS):
        await a.commit(create(n))
        await a.commit(finish(n, at=1.0))
        again = await b.staged(n, change={"state": State.SCHEDULED, "due_at": 9e12, "ended_at": None, "outcome": None})
        gone, answer = await at_once(a.retire(2.0), b.edit(again))
        left = await a.store.instances([uid(n)])
        assert (gone, isinstance(answer, Edited), len(left)) in ((1, False, 0), (0, True, 1))
