"""Who is a member of the store: epochs, leases, takeovers, and what becomes of the instances of who is none any more."""

import asyncio
import threading

import pytest

from perdure.errors import LeaseLost
from perdure.model.records import State
from perdure.model.writes import Batch, Finished, Update
from perdure.testing.conformance.kit import LEASE, Kit, block, create, entry, finish, plain_tests, send, suspend, uid


async def test_epochs_of_a_fresh_replica_hold_at_once(kit: Kit) -> None:
    assert await kit.store.join("a", LEASE) == kit.epochs["a"]
    assert kit.store.renew("a", LEASE) == kit.clock.now


async def test_joining_once_more_gives_the_epoch_that_holds(kit: Kit) -> None:
    old = kit.epochs["a"]
    raised = await kit.store.raise_epoch("a", old)
    assert await kit.store.join("a", LEASE) == raised
    with pytest.raises(LeaseLost):
        await kit.commit(create(1))
    kit.epochs["a"] = raised
    await kit.commit(create(1))


async def test_leave_frees_what_is_left(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(*(create(n) for n in range(1, 5)), send(3, 1), send(4, 2))
    await kit.commit(Update(uid(2), True, 7.0), Update(uid(3), True, None))
    await kit.store.leave("a")
    rows = [await kit.row(n) for n in (1, 2, 3, 4)]
    assert {r.owner for r in rows} == {None}
    assert [(r.state, r.due_at) for r in rows] == [
        (State.SCHEDULED, kit.clock.now), (State.SUSPENDED, 7.0), (State.SUSPENDED, None),
        (State.SCHEDULED, kit.clock.now),
    ]  # fmt: skip
    with pytest.raises(LeaseLost):
        await kit.commit(entry(1, 1))
    with pytest.raises(LeaseLost):
        kit.store.renew("a", LEASE)
    await kit.store.leave("a")
    assert sorted(await kit.claimed("b")) == [1, 2, 3, 4]


@pytest.mark.parametrize("leaves", [False, True])
async def test_what_others_run_or_nobody_does_is_as_it_was_when_one_is_gone(kit: Kit, leaves: bool) -> None:
    await kit.join("b")
    await kit.commit(create(1), create(2, owned=False, due_at=9e12), create(3), block(3), create(4), suspend(4))
    await kit.commit(create(5), create(6), Update(uid(6), True, 7.0), send(6, 1), by="b")
    before = [await kit.row(n) for n in range(2, 7)]
    if leaves:
        await kit.store.leave("a")
    else:
        await kit.taken_over("a", me="b")
    assert [await kit.row(n) for n in range(2, 7)] == before
    assert await kit.wakeups("b") == []
    assert await kit.claimed("b", thorough=True) == [1]
    assert await kit.commit(entry(5, 1), finish(6), by="b") == [None, Finished(())]


async def test_a_replica_that_misses_its_lease_is_taken_over(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(*(create(n) for n in range(1, 4)))
    await kit.commit(Update(uid(2), True, None))
    await kit.taken_over("a", me="b")
    assert [(r.state, r.owner) for r in [await kit.row(n) for n in (1, 2, 3)]] == [
        (State.SCHEDULED, None), (State.SUSPENDED, None), (State.SCHEDULED, None),
    ]  # fmt: skip
    assert sorted(await kit.claimed("b")) == [1, 3]
    with pytest.raises(LeaseLost):
        await kit.commit(entry(1, 1))
    with pytest.raises(LeaseLost):
        kit.store.renew("a", LEASE)
    with pytest.raises(LeaseLost):
        await kit.store.raise_epoch("a", kit.epochs["a"])
    assert (await kit.store.reap("b", kill_hung=False)).taken == ()


async def test_a_takeover_in_small_chunks_frees_all(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(*(create(n) for n in range(25)))
    kit.clock.now += LEASE * 0.7
    kit.store.renew("b", LEASE)
    kit.clock.now += LEASE * 0.7
    assert (await kit.store.reap("b", kill_hung=False, limit=10)).taken == ("a",)
    assert len(await kit.claimed("b")) == 25


async def test_a_message_that_the_dead_owner_has_not_seen_wakes_after_the_takeover(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(*(create(n) for n in (1, 2, 3)), send(2, 1))
    await kit.commit(*(Update(uid(n), True, None) for n in (1, 2, 3)))
    await kit.commit(send(3, 2), by=None)
    assert await kit.wakeups("a") == [3]  # collected, and then it died
    await kit.taken_over("a", me="b")
    assert sorted(await kit.claimed("b")) == [2, 3]


async def test_a_replica_that_renews_is_left_alone(kit: Kit) -> None:
    await kit.join("b")
    for _ in range(5):
        kit.clock.now += LEASE * 0.6
        kit.store.renew("a", LEASE)
        kit.store.renew("b", LEASE)
        assert (await kit.store.reap("b", kill_hung=False)).taken == ()


async def test_who_was_stopped_too_takes_nobody_over_before_a_full_lease(kit: Kit) -> None:
    await kit.join("b")
    kit.clock.now += 100 * LEASE  # the whole machine slept; b wakes first
    assert (await kit.store.reap("b", kill_hung=False)).taken == ()
    kit.store.renew("b", LEASE)
    assert (await kit.store.reap("b", kill_hung=False)).taken == ()
    kit.clock.now += LEASE * 0.5
    kit.store.renew("a", LEASE)  # the other had its chance, and took it
    kit.store.renew("b", LEASE)
    kit.clock.now += LEASE * 0.6
    assert (await kit.store.reap("b", kill_hung=False)).taken == ()
    kit.store.renew("b", LEASE)
    kit.clock.now += LEASE * 0.5
    assert (await kit.store.reap("b", kill_hung=False)).taken == ("a",)


async def test_who_has_only_just_joined_takes_nobody_over_by_lease(kit: Kit) -> None:
    kit.clock.now += 100 * LEASE
    await kit.join("b")
    assert (await kit.store.reap("b", kill_hung=False)).taken == ()


async def test_a_replica_that_was_taken_over_joins_under_a_new_id(kit: Kit) -> None:
    await kit.commit(create(1))
    await kit.taken_over_by_b()
    await kit.join("a2")
    assert await kit.claimed("a2") == [1]
    await kit.commit(entry(1, 1), by="a2")


# -- the lease


async def test_a_lease_is_renewed_from_a_thread_while_the_loop_stands_still(kit: Kit) -> None:
    kit.clock.now += 3
    given: list[float] = []
    thread = threading.Thread(target=lambda: given.append(kit.store.renew("a", LEASE)), daemon=True)
    thread.start()
    thread.join(10)  # on the loop: it does not turn meanwhile
    assert given == [kit.clock.now]


@pytest.mark.parametrize("renewed", [False, True])
async def test_a_lease_lasts_as_long_as_it_was_asked_for(kit: Kit, renewed: bool) -> None:
    await kit.join("b")
    if renewed:
        kit.store.renew("a", 3 * LEASE)
    else:
        await kit.store.leave("a")
        await kit.store.join("c", 3 * LEASE)
    for _ in range(4):
        kit.clock.now += LEASE * 0.7
        kit.store.renew("b", LEASE)
        assert (await kit.store.reap("b", kill_hung=False)).taken == ()
    kit.clock.now += LEASE * 0.7
    assert (await kit.store.reap("b", kill_hung=False)).taken == ("a" if renewed else "c",)


async def test_who_shall_kill_what_hangs_kills_nobody_who_does_not_hold_the_database(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1))
    kit.clock.now += LEASE * 0.7
    kit.store.renew("b", LEASE)
    kit.clock.now += LEASE * 0.7
    reaped = await kit.store.reap("b", kill_hung=True)
    assert (reaped.taken, reaped.hung) == (("a",), ())
    assert await kit.claimed("b") == [1]


# -- at once, and cut off


async def test_a_batch_under_way_is_done_when_the_epoch_is_raised_or_can_never_be(kit: Kit) -> None:
    await kit.commit(create(1))
    for seq in range(1, 31):
        old = kit.epochs["a"]
        batch = asyncio.ensure_future(kit.store.commit(Batch("a", old, [entry(1, seq)], kit.clock.now)))
        for _ in range(seq % 4):
            await asyncio.sleep(0)
        kit.epochs["a"] = await kit.store.raise_epoch("a", old)
        there = seq in await kit.seqs(1)
        (answer,) = await asyncio.gather(batch, return_exceptions=True)
        assert answer == [None] if there else isinstance(answer, LeaseLost), answer
        assert (seq in await kit.seqs(1)) == there


async def test_a_batch_under_way_is_done_when_its_replica_is_taken_over_or_can_never_be(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1))
    kit.clock.now += LEASE * 0.7
    kit.store.renew("b", LEASE)
    kit.clock.now += LEASE * 0.7
    kit.store.renew("b", LEASE)
    batches = [asyncio.ensure_future(kit.commit(entry(1, seq))) for seq in range(1, 11)]
    await asyncio.sleep(0)
    await kit.store.reap("b", kill_hung=False)
    there = await kit.seqs(1)
    answers = await asyncio.gather(*batches, return_exceptions=True)
    assert all(a == [None] or isinstance(a, LeaseLost) for a in answers), answers
    assert await kit.seqs(1) == there == [0, *(seq for seq, a in enumerate(answers, 1) if a == [None])]


async def test_two_who_look_at_the_others_at_once_free_all_that_a_dead_one_had(kit: Kit) -> None:
    await kit.join("b")
    await kit.join("c")
    await kit.commit(*(create(n) for n in range(20)))
    kit.clock.now += LEASE * 0.7
    kit.store.renew("b", LEASE)
    kit.store.renew("c", LEASE)
    kit.clock.now += LEASE * 0.7
    reaped = await asyncio.gather(*(kit.store.reap(by, kill_hung=False, limit=3) for by in "bc"))
    assert {replica for one in reaped for replica in one.taken} == {"a"}
    assert sorted(await kit.claimed("c")) == list(range(20))


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 10, 30])
async def test_a_takeover_that_was_cut_off_is_finished_by_another(kit: Kit, turns: int) -> None:
    await kit.join("b")
    await kit.join("c")
    await kit.commit(*(create(n) for n in range(10)))
    kit.clock.now += LEASE * 0.7
    kit.store.renew("b", LEASE)
    kit.store.renew("c", LEASE)
    kit.clock.now += LEASE * 0.7
    takeover = asyncio.ensure_future(kit.store.reap("b", kill_hung=False, limit=2))
    for _ in range(turns):
        await asyncio.sleep(0)
    takeover.cancel()
    await asyncio.gather(takeover, return_exceptions=True)
    await kit.store.reap("c", kill_hung=False)
    assert sorted(await kit.claimed("c")) == list(range(10))
    with pytest.raises(LeaseLost):
        await kit.commit(entry(1, 1))


plain_tests(globals())
