"""Claims, leases, takeover, and who is told of changes."""

import os

import pytest

from perdure.clock import Clock
from perdure.errors import ForkedEngine, LeaseLost, NotSupported
from perdure.model.records import Entry, State
from perdure.model.tx import Tx
from perdure.model.writes import NotOwned, Release, Update
from perdure.stores.contract import Store
from perdure.system import System
from tests.conformance.kit import LEASE, Kit, create, entry, finish, message, send, suspend, uid


async def test_a_claim_gives_the_rows_as_they_were_and_makes_them_the_replicas(kit: Kit) -> None:
    await kit.commit(create(1, owned=False, due_at=5.0), create(2))
    await kit.commit(suspend(2, due_at=6.0))
    before = [await kit.row(1), await kit.row(2)]
    assert await kit.claim() == before
    for number in (1, 2):
        row = await kit.row(number)
        assert (row.state, row.owner, row.waiting, row.due_at) == (State.RUNNING, "a", False, None)
    assert await kit.claim() == []


async def test_only_what_is_due_is_claimed_longest_due_first(kit: Kit) -> None:
    now = kit.clock.now
    await kit.commit(
        create(1, owned=False, due_at=now - 1), create(2, owned=False, due_at=now - 3),
        create(3, owned=False, due_at=now), create(4, owned=False, due_at=now + 1), create(5),
    )  # fmt: skip
    await kit.commit(suspend(5, due_at=now - 2))
    assert await kit.claimed() == [2, 5, 1, 3]


async def test_a_claim_takes_at_most_its_limit(kit: Kit) -> None:
    await kit.commit(*(create(n, owned=False, due_at=float(n)) for n in range(10)))
    assert [r.due_at for r in await kit.claim(limit=3)] == [0.0, 1.0, 2.0]
    assert [r.due_at for r in await kit.claim(limit=4)] == [3.0, 4.0, 5.0, 6.0]
    assert len(await kit.claim(limit=100)) == 3


async def test_a_claim_tells_when_the_next_is_due(kit: Kit) -> None:
    assert await kit.next_due() is None
    now = kit.clock.now
    await kit.commit(
        create(1, owned=False, due_at=now + 9), create(2, owned=False, due_at=now + 4),
        create(3, owned=False, due_at=now + 1, flow="g"), create(4),
    )  # fmt: skip
    await kit.commit(Update(uid(4), True, now + 2))
    assert await kit.next_due() == now + 4
    kit.clock.now += 5
    assert await kit.claimed() == [2]
    assert await kit.next_due() == now + 9


async def test_only_the_given_flow_types_are_claimed(kit: Kit) -> None:
    await kit.commit(*(create(n, flow=f, owned=False, due_at=1.0) for n, f in enumerate("ffgh")))
    assert len(await kit.claim(flows={"g": "", "h": ""})) == 2
    assert await kit.claim(flows={}) == []
    assert len(await kit.claim()) == 2


@pytest.mark.parametrize("state", [State.BLOCKED, State.SUSPENDED])
async def test_what_has_no_cause_to_go_on_is_not_claimed(kit: Kit, state: State) -> None:
    await kit.commit(create(1), create(2), create(3))
    await kit.commit(Release(uid(1), state, None), finish(2))
    assert await kit.claimed(thorough=True) == []


async def test_an_instance_is_claimed_by_one(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(*(create(n, owned=False, due_at=1.0) for n in range(20)))
    mine = await kit.claim("a", limit=12)
    theirs = await kit.claim("b", limit=12)
    assert len(mine) == 12
    assert len(theirs) == 8
    assert not {r.uid for r in mine} & {r.uid for r in theirs}


async def test_a_claim_needs_the_fence(kit: Kit) -> None:
    await kit.commit(create(1, owned=False, due_at=1.0))
    kit.epochs["a"] += 1
    with pytest.raises(LeaseLost):
        await kit.claim()
    kit.epochs["nobody"] = 1
    with pytest.raises(LeaseLost):
        await kit.claim("nobody")
    assert (await kit.row(1)).owner is None


async def test_a_thorough_claim_finds_messages_without_a_wakeup_row(kit: Kit) -> None:
    await kit.commit(create(1), suspend(1))
    await kit.commit(send(1, 1), by=None)
    assert await kit.claimed() == [1]  # the wake-up row is gone now
    await kit.commit(suspend(1, seen=(message(1).mid,)))
    assert await kit.claimed(thorough=True) == []


async def test_who_lost_an_instance_to_nobody_can_write_its_row_no_more(kit: Kit) -> None:
    await kit.join("b")
    await kit.commit(create(1))
    await kit.commit(Release(uid(1), State.SCHEDULED, None))
    assert await kit.claimed("b") == [1]
    assert await kit.commit(Update(uid(1), True, None), suspend(1)) == [None, NotOwned(uid(1))]
    assert (await kit.row(1)).owner == "b"


# -- membership


async def test_epochs_of_a_fresh_replica_hold_at_once(kit: Kit) -> None:
    assert await kit.store.join("a", LEASE) == kit.epochs["a"]
    assert kit.store.renew("a", LEASE) == kit.clock.now


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


# -- noticing, and the rest


async def test_one_who_shares_the_store_is_told_of_changes(kit: Kit) -> None:
    told: list[str] = []
    kit.store.on_change(lambda: told.append("one"))
    kit.store.on_change(lambda: told.append("two"))
    await kit.commit(create(1))
    assert "one" in told
    assert "two" in told


async def test_one_who_is_alone_is_not_told_of_its_own_commits(kit: Kit) -> None:
    told: list[str] = []
    kit.store.on_change(lambda: told.append("one"))
    await kit.commit(create(1))
    await kit.commit(suspend(1, due_at=1.0))
    await kit.claim()
    await kit.store.check()
    assert told == []


async def test_a_forked_child_is_refused(kit: Kit) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            kit.store.renew("a", LEASE)
        except ForkedEngine:
            os.write(writer, b"forked")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        assert answer.read() == b"forked"
    os.waitpid(child, 0)


async def test_a_store_has_transactions_or_says_so(kit: Kit) -> None:
    await kit.commit(create(1))

    async def work(tx: Tx) -> Entry:
        return entry(1, 1)

    if kit.store.transactions:
        assert await kit.store.transact("a", kit.epochs["a"], work, limit=5) == entry(1, 1)
        assert await kit.seqs(1) == [0, 1]
    else:
        with pytest.raises(NotSupported, match="sqlite://"):
            await kit.store.transact("a", kit.epochs["a"], work, limit=5)
        assert await kit.seqs(1) == [0]


async def test_close_may_be_repeated(store: Store) -> None:
    await store.close()
    await store.close()


def test_the_clock_is_the_systems(store: Store, clock: Clock) -> None:
    assert isinstance(store.system, System)
    assert store.system.clock is clock
